"""A model hub over a folder, for tests, tours and benchmarks: real HTTP that huggingface_hub and transformers speak.

It binds 127.0.0.1 and wants its token with every request. The folder's layout: see ``klray.tiny.repositories``.

    python -P -m klray.tiny.hub_server --root hub/      # prints what to export
"""

import argparse
import contextlib
import logging
import os
import secrets
import socket
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from http.server import ThreadingHTTPServer
from pathlib import Path
from typing import IO, Any, Self, cast

from klray.errors import KlrayError
from klray.sweep.processes import module_command, safe_environment
from klray.tiny.repositories import Repositories
from klray.tiny.routes import HubHandler, Throttle

log = logging.getLogger("klray")


class HubServer(ThreadingHTTPServer):
    """The hub, in threads of this process while the context is open. ``token`` None makes one up.

    ``requests`` counts requests by route: whoami, list, info, refs, tree, auth-check, resolve HEAD, resolve GET.
    """

    handler: type[HubHandler] = HubHandler
    request_queue_size = 128

    def __init__(self, root: Path, token: str | None = None, port: int = 0, bytes_per_second: float | None = None):
        if not Path(root).is_dir():
            raise KlrayError(f"the hub's folder {root} does not exist: give one with <organisation>/<name>/<revision>/")
        self.token = token or secrets.token_urlsafe(32)
        self.repositories = Repositories(Path(root))
        self.throttle = Throttle(bytes_per_second) if bytes_per_second else None
        self.requests: Counter[str] = Counter()
        self.connections: set[socket.socket] = set()
        self.lock = threading.Lock()
        super().__init__(("127.0.0.1", port), self.handler)

    @property
    def endpoint(self) -> str:
        """Address, as HF_ENDPOINT takes it."""
        return f"http://127.0.0.1:{self.server_address[1]}"

    def __enter__(self) -> Self:
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.shutdown()
        self.server_close()
        for connection in list(self.connections):  # clients keep theirs open, and would still be answered
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what ended a connection, instead of printing it."""
        log.debug("hub: connection ended", exc_info=True)


@contextlib.contextmanager
def local_hub(root: Path, bytes_per_second: float | None = None) -> Iterator[tuple[str, str]]:
    """Run the hub in a process of its own, which ends with this one however it ends: (endpoint, token).

    The token travels in the process's environment, not on its command line.
    """
    token = secrets.token_urlsafe(32)
    command = module_command("klray.tiny.hub_server", "--root", str(root), "--until-stdin-closes")
    if bytes_per_second:
        command += ["--bytes-per-second", str(bytes_per_second)]
    with subprocess.Popen(  # noqa: S603
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, **safe_environment(), "HF_TOKEN": token},
        start_new_session=True,  # an interrupt at the terminal is for the driver, which needs the hub to finish
    ) as process:
        stdin, stdout = cast(IO[str], process.stdin), cast(IO[str], process.stdout)
        first = stdout.readline().strip()
        if not first.startswith("export HF_ENDPOINT="):
            raise KlrayError(f"the hub over {root} did not start, and said {first!r}: see its error output")
        try:
            yield first.removeprefix("export HF_ENDPOINT="), token
        finally:
            stdin.close()
            process.wait(timeout=30)


def main(arguments: list[str] | None = None) -> None:
    """Serve a folder until interrupted."""
    parser = argparse.ArgumentParser(prog="python -m klray.tiny.hub_server", description="A model hub over a folder.")
    parser.add_argument("--root", type=Path, required=True, help="folder with <organisation>/<name>/<revision>/<files>")
    parser.add_argument("--port", type=int, default=0, help="default: any free port")
    parser.add_argument("--bytes-per-second", type=float, help="limit on all answers together")
    parser.add_argument("--until-stdin-closes", action="store_true", help="end when whoever started this ends")
    options = parser.parse_args(arguments)
    given = os.environ.get("HF_TOKEN")
    hub = HubServer(options.root, given, options.port, options.bytes_per_second)
    with hub, contextlib.suppress(KeyboardInterrupt):
        print(f"export HF_ENDPOINT={hub.endpoint}", flush=True)
        if not given:
            print(f"export HF_TOKEN={hub.token}", flush=True)
        if options.until_stdin_closes:
            sys.stdin.read()
        else:
            threading.Event().wait()


if __name__ == "__main__":
    main()
