"""TCP ports that stay free until somebody listens on them."""

from __future__ import annotations

import contextlib
import random
import socket
from pathlib import Path

_FIRST = 10240
_RANGE = Path("/proc/sys/net/ipv4/ip_local_port_range")
_USUAL_END = 32768
_TRIES = 1000


def find_free_ports(count: int) -> list[int]:
    """Different loopback ports on which nobody listens now.

    They lie below those that the system gives to outgoing connections: one of these might take a port between now and
    the moment when it is listened on.
    """
    dice = random.SystemRandom()
    end = _end()
    with contextlib.ExitStack() as stack:
        found: list[int] = []
        for _ in range(_TRIES):
            if len(found) == count:
                return found
            probe = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                probe.bind(("127.0.0.1", dice.randrange(_FIRST, end)))
                found.append(int(probe.getsockname()[1]))
    raise OSError(f"no {count} free ports between {_FIRST} and {end}")


def _end() -> int:
    try:
        start = int(_RANGE.read_text().split()[0])
    except (OSError, ValueError):
        return _USUAL_END
    # A machine that gives nearly all ports to outgoing connections leaves no better ones.
    return start if start >= _FIRST + 2 * _TRIES else 65536
