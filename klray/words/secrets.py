"""Secrets in words: what gives access is taken out of whatever is shown, logged or kept. The only such rule."""

import logging
import os
import re
from collections.abc import Iterator
from urllib.parse import unquote

from klray.words.outside import one_line, printable

VARIABLES = (
    *("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_ACCESS_KEY_ID"),
    *("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN", "RAY_AUTH_TOKEN"),
)
# Of addresses, which may hold a password.
ADDRESSES = ("HF_ENDPOINT", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY")
_FOLDER = re.compile(r"(?<![\w:/.])(?:file://)?~?/(?:[^\s/'\",;()<>]+/)+([^\s/'\",;()<>]*)")
WHOLE_WORD_LENGTH, ANYWHERE_LENGTH = 4, 8  # shorter ones keep no secret, and would take words apart

# A password that is not escaped, as in https://me:wo/rd@host: what follows the colon is no port. It is looked for in
# what ends with an @: elsewhere each address of a stranger's thousands would be read to the end.
_UP_TO_AN_AT = re.compile(r"""(?<![^\s'"])[^\s'"]+@""")
_UNESCAPED = re.compile(r"""\b(\w+://)[^\s/@:\['"]+:(?!\d*(?:[/?#\s'"]|$))[^\s'"<>]*@""")

_RULES = (
    # Of a URL, user and password before the host and the signature in the query give access; the rest may be shown.
    (re.compile(r"""\b(\w+://)(?:[^\s/?#]*@)?([^\s?#'"<>]*)(?:[?#][^\s'"<>]*)?"""), r"\1\2"),
    # httpx says of a token that no header can hold: Illegal header value b'Bearer hf_...'
    (re.compile(r"""(?i)(['"](?:bearer|basic) )[^'"]*"""), r"\1..."),
    (
        re.compile(r"(?i)\b(bearer |authorization\s*[=:]\s*(?:(?:bearer|basic|aws4-hmac-sha256) )?)[^\s'\",;]+"),
        r"\1...",
    ),
    (
        re.compile(
            r"(?i)(?<!no )\b((?:[\w-]{0,40}(?:hf|hub|face|access|auth|session|security|api|secret|amz)[_-])?"
            r"(?:token|secret|password|signature|credential|access[_-]key(?:[_-]id)?)['\"]?\s*[=:]\s*['\"]?)[^\s'\",;)]+"
        ),
        r"\1...",
    ),
    (re.compile(r"\bhf_\w{8,}"), "hf_..."),
    (re.compile(r"\b(AKIA|ASIA)[A-Z0-9]{16}\b"), r"\1..."),
)


def without_secrets(words: str, *known: str | None) -> str:
    """``words`` without what gives access: ``known`` secrets, the values of ``VARIABLES``, passwords in ``ADDRESSES``,
    and what looks like one.

    Such are user, password, query and fragment of a URL, the value of an Authorization header, what a name such as
    ``token`` or ``password`` is said to be, tokens of a hub (``hf_``) and ids of AWS's keys.

    >>> without_secrets("404 for url 'https://me:word@host/a/b?signature=1f', twice: Authorization: Bearer f00, hush")
    "404 for url 'https://host/a/b', twice: Authorization: Bearer ..., hush"
    >>> without_secrets("hush, hushed, and a hush-hush thing", "hush")
    '..., hushed, and a ...-... thing'
    """
    secrets = {*known, *_passwords(), *map(os.environ.get, VARIABLES)} - {None, ""}
    for secret in sorted(secrets, key=lambda each: -len(str(each))):
        if secret and len(secret) >= WHOLE_WORD_LENGTH:
            edge = "" if len(secret) >= ANYWHERE_LENGTH else r"\b"
            words = re.sub(f"{edge}{re.escape(secret)}{edge}", "...", words)
    words = _UP_TO_AN_AT.sub(lambda found: _UNESCAPED.sub(r"\1", found[0]), words)
    for pattern, replacement in _RULES:
        words = pattern.sub(replacement, words)
    return words


def _passwords() -> Iterator[str]:
    """What stands for a password in the addresses of the environment, sound or not."""
    for address in filter(None, (os.environ.get(each) for name in ADDRESSES for each in (name, name.lower()))):
        rest = re.sub(r"^\w+:/+", "", address)
        user, at, _ = rest.rpartition("@")
        password = (user if at else rest).partition(":")[2]
        if at or not (rest.startswith("[") or re.match(r"\d*(/|$)", password)):
            yield password
            yield unquote(password)


def bare_address(url: str) -> str:
    """A URL, or what was meant to be one, without user, password, query and fragment.

    >>> bare_address("http://me:word@host:1/a?b"), bare_address("me:word@host")
    ('http://host:1/a', 'host')
    """
    scheme, separator, rest = url.rpartition("://")
    return f"{scheme}{separator}{re.split('[?#]', rest.rpartition('@')[2])[0]}"


class Discreet(logging.Filter):
    """Takes secrets, and what cannot be printed, out of what a handler is given to log: one message is one line.

    The words of an error that goes with it keep their lines, which are indented.
    """

    def filter(self, record: logging.LogRecord) -> bool:
        """Always True: every record is logged."""
        record.msg, record.args = one_line(without_secrets(record.getMessage())), ()
        if record.exc_info and not record.exc_text:
            record.exc_text = logging.Formatter().formatException(record.exc_info)
        if record.exc_text:
            lines = without_secrets(record.exc_text).split("\n")
            record.exc_text = "\n".join(f"  {printable(line, None)}" for line in lines)
        return True


def public(text: str) -> str:
    """``text`` as a report may show it: one line, without secrets and the folders of absolute paths.

    >>> public("no space left in /home/ann/cache/model.bin for https://hub/x?X-Signature=1")
    'no space left in …/model.bin for https://hub/x'
    """
    return printable(_FOLDER.sub(r"…/\1", without_secrets(text)), 1000)
