"""What a published report may say of names and messages that come from anybody."""

from __future__ import annotations

import re

from klray.analysis.runs_table import printable

# What a message of a download or of a local folder may carry and a published report may not.
_SECRETS = (
    (re.compile(r"(https?://)[^\s/@]*@"), r"\1"),
    (re.compile(r"(https?://[^\s?#]+)\?\S+"), r"\1?…"),
    (re.compile(r"\bhf_\w{8,}"), "hf_…"),
    (re.compile(r"(?i)\b(bearer\s+|(?:token|secret|password|signature)\s*[=:]\s*)\S+"), r"\1…"),
    (re.compile(r"(?<![\w:/.])(?:file://)?~?/(?:[^\s/'\",;()<>]+/)+([^\s/'\",;()<>]*)"), r"…/\1"),
)


def public(text: str) -> str:
    """``text`` as a report may show it: one line, without tokens, query strings and the folders of absolute paths.

    >>> public("no space left in /home/ann/cache/model.bin for https://hub/x?X-Signature=1")
    'no space left in …/model.bin for https://hub/x?…'
    """
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return printable(text, 1000)
