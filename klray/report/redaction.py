"""What a published report may say of names and messages that come from anybody."""

from __future__ import annotations

import re

from klray.words.numbers import printable
from klray.words.secrets import without_secrets

_FOLDER = re.compile(r"(?<![\w:/.])(?:file://)?~?/(?:[^\s/'\",;()<>]+/)+([^\s/'\",;()<>]*)")


def public(text: str) -> str:
    """``text`` as a report may show it: one line, without secrets and the folders of absolute paths.

    >>> public("no space left in /home/ann/cache/model.bin for https://hub/x?X-Signature=1")
    'no space left in …/model.bin for https://hub/x'
    """
    return printable(_FOLDER.sub(r"…/\1", without_secrets(text)), 1000)
