"""Whether anybody answers at an address. Asked first, because Ray waits over two minutes, Dask half of one."""

import socket

ANSWER_SECONDS = 5.0


def silence(address: str | None) -> str:
    """Why nobody can be reached at host:port, with any scheme before; "" if somebody can, or the address is no such."""
    host, separator, port = (address or "").rpartition("://")[2].rpartition(":")
    if not separator or not port.isdecimal():
        return ""
    try:
        socket.create_connection((host.strip("[]"), int(port)), ANSWER_SECONDS).close()
    except (OSError, OverflowError) as error:
        return str(error)
    return ""
