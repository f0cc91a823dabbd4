"""Who listens, and to whom."""

from collections.abc import Iterable

import psutil

LOCAL = ("127.0.0.1", "::1")
PRIVATE = {8265: "Ray's dashboard", 10001: "Ray's client server"}  # their ports, unless told otherwise
NAMES = ("dashboard.py", "ray.util.client.server")  # and their processes


def open_doors(processes: Iterable[psutil.Process]) -> list[str]:
    """Sockets of Ray's dashboard and client server that are open to other machines.

    What is left listens on all interfaces whatever it is told (the store, the schedulers, the workers) and asks for a
    token.
    """
    found = []
    for process in processes:
        try:
            words, sockets = " ".join(process.cmdline()), process.net_connections("inet")
        except psutil.Error:
            continue
        for socket in sockets:
            if socket.status != psutil.CONN_LISTEN or socket.laddr.ip in LOCAL:
                continue
            if socket.laddr.port in PRIVATE or any(name in words for name in NAMES):
                found.append(f"{socket.laddr.ip}:{socket.laddr.port} of {words[:200]}")
    return found


def listening(processes: Iterable[psutil.Process]) -> set[tuple[str, int]]:
    """Every address and port on which one of the processes listens."""
    return {
        (socket.laddr.ip, socket.laddr.port)
        for process in processes
        for socket in process.net_connections("inet")
        if socket.status == psutil.CONN_LISTEN
    }
