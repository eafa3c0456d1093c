"""TCP ports of this machine: who holds one that is not free."""

from __future__ import annotations

import contextlib
import errno
import socket
from dataclasses import dataclass
from pathlib import Path

from maestro_sdk.cli.rendering import split_address


@dataclass(frozen=True, slots=True)
class Listener:
    """An address that a program of the mesh will listen on, and the setting that says so."""

    program: str
    setting: str
    address: str


def find_conflicts(listeners: list[Listener]) -> list[str]:
    """A sentence for every listener whose address can't be had; none when all are free."""
    found: list[str] = []
    for listener in listeners:
        host, port = split_address(listener.address)
        problem = _problem_of(host, port) if port else None
        if problem:
            found.append(f"port {port} for {listener.program} ({listener.setting}) {problem}")
    return found


def _problem_of(host: str, port: int) -> str | None:
    try:
        family = socket.getaddrinfo(host or None, port, type=socket.SOCK_STREAM)[0][0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
            probe.listen(1)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return f"is in use{_owner_of(port)}"
        return f"on {host!r}: {error.strerror or error}"
    return None


def _owner_of(port: int) -> str:
    # Linux tells it for processes of the same user, and everything to root.
    inodes: set[str] = set()
    for table in ("/proc/net/tcp", "/proc/net/tcp6"):
        with contextlib.suppress(OSError):
            for line in Path(table).read_text().splitlines()[1:]:
                columns = line.split()
                # 0A is LISTEN; addresses are hexadecimal, "0100007F:1F90".
                if columns[3] == "0A" and int(columns[1].rpartition(":")[2], 16) == port:
                    inodes.add(f"socket:[{columns[9]}]")
    for process in Path("/proc").glob("[0-9]*") if inodes else ():
        with contextlib.suppress(OSError):
            for descriptor in (process / "fd").iterdir():
                with contextlib.suppress(OSError):
                    if str(descriptor.readlink()) in inodes:
                        return f" by {(process / 'comm').read_text().strip()} (process {process.name})"
    return ""
