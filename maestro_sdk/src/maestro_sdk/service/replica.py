"""Which of several processes of a service this one is."""

from __future__ import annotations

import os
import re
import zlib
from collections.abc import Mapping, Sequence

NAME_VARIABLE = "MAESTRO_NAME"
ADAPTER_VARIABLE = "MAESTRO_ADAPTER"
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
_NUMBER = re.compile(r"\d+$")


def process_name(service: str, env: Mapping[str, str] = os.environ) -> str:
    """The name of this process in events and reports: `MAESTRO_NAME`, as "gateway-2"; without it the service's own."""
    name = env.get(NAME_VARIABLE, "")
    return name if _NAME.fullmatch(name) else service


def adapter_name(program: str, env: Mapping[str, str] = os.environ) -> str:
    """The adapter of the configuration that this process serves: `MAESTRO_ADAPTER`, else that of its `program`'s name.

    So one program serves several of them: two accounts at one provider, say.
    """
    return env.get(ADAPTER_VARIABLE) or program


def in_turn(addresses: Sequence[str], name: str) -> list[str]:
    """The addresses in the order in which the process `name` prefers them, so that several spread over them.

    A number at the end of the name decides where it begins, otherwise a hash of the name.
    """
    number = _NUMBER.search(name)
    start = (int(number[0]) if number else zlib.crc32(name.encode())) % len(addresses) if addresses else 0
    return [*addresses[start:], *addresses[:start]]
