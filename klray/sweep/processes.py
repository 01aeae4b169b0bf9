"""How klray starts a process: nothing from the working directory is imported in it, and its sockets are its owner's.

``python -m``, ``python -c`` and Ray put the working directory on the path, where a file beside a stranger's weights, or
one that somebody left in /tmp, would stand in for a module.
"""

import contextlib
import os
import sys
import sysconfig
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path

from klray.errors import KlrayError

LOOPBACK = ("127.0.0.1", "localhost", "::1")
SOCKET_NAME_BYTES = 103  # the least of the systems (unix(7): 107; macOS: 103)


def module_command(module: str, *arguments: str) -> list[str]:
    """The command that runs one of klray's modules as a process."""
    return [sys.executable, "-P", "-m", module, *arguments]


def safe_environment() -> dict[str, str]:
    """Variables for a process of klray and all that it starts: no working directory on the path, this very klray,
    installed or not, and nothing compiled by PyTorch: it would run what lies in /tmp/torchinductor_<user>, which
    anybody may have made.
    """
    home = str(Path(__file__).resolve().parents[2])
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [each for each in given if os.path.isabs(each)]  # noqa: PTH117 - also of what is no path
    if home not in (sysconfig.get_path("purelib"), *paths):
        paths.insert(0, home)
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(paths), "TORCHDYNAMO_DISABLE": "1"}


def spare_loopback() -> None:
    """Have this process, and what it starts, ask no proxy for what this machine serves itself: it would ask its own."""
    given = os.environ.get("no_proxy") or os.environ.get("NO_PROXY") or ""
    if given.strip() != "*":
        names = [*filter(None, given.split(",")), *LOOPBACK]
        os.environ["no_proxy"] = os.environ["NO_PROXY"] = ",".join(dict.fromkeys(names))


@contextlib.contextmanager
def with_environment(variables: Mapping[str, str | None]) -> Iterator[None]:
    """Have these variables, and not those that are None, for the length of the context: what starts then keeps them."""
    before = {name: os.environ.get(name) for name in variables}
    _set(variables)
    try:
        yield
    finally:
        _set(before)


def _set(variables: Mapping[str, str | None]) -> None:
    for name, value in variables.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value


@contextlib.contextmanager
def private_folder(longest: str) -> Iterator[Path]:
    """A folder that only its owner may enter, for the length of the context; it has room for a socket ``longest``."""
    with tempfile.TemporaryDirectory(prefix="klray-", dir=socket_folder(f"klray-12345678/{longest}"),
                                     ignore_cleanup_errors=True) as folder:  # fmt: skip
        yield Path(folder)


def socket_folder(longest: str) -> str:
    """The folder of temporary files in which a socket of the relative name ``longest`` can be made: that of RAY_TMPDIR
    if it is set, else of TMPDIR or, where that is too long a name, /tmp.

    KlrayError if there is none.
    """
    asked = os.environ.get("RAY_TMPDIR")
    places = [asked] if asked else [tempfile.gettempdir(), "/tmp"]  # noqa: S108 - a folder of our own is made in it
    room = SOCKET_NAME_BYTES - 1 - len(os.fsencode(longest))
    for place in map(os.path.abspath, places):
        if len(os.fsencode(place)) <= room:
            with contextlib.suppress(OSError):
                Path(place).mkdir(parents=True, exist_ok=True)
                if os.access(place, os.W_OK | os.X_OK):
                    return place
    name = "RAY_TMPDIR" if asked else "TMPDIR"
    raise KlrayError(
        f"{name}={places[0]}: sockets cannot be made there{'' if asked else ' or in /tmp'}, because nothing can "
        f"be written there, or its name is longer than {room} bytes; set RAY_TMPDIR to a short one, such as /tmp"
    )
