"""The provider's own remarks beside an answer, as `provider_metadata` holds them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from google.protobuf.struct_pb2 import Struct

from maestro_sdk.errors import StreamBroken

MAX_DEPTH = 24
"""Objects and lists within each other: protobuf reads 100 levels, each of these takes three, and a Struct stands below
others. What is deeper would not arrive, and the answer with it."""


def to_struct(facts: Mapping[str, Any]) -> Struct:
    """JSON values as a Struct. Raises `StreamBroken` for what is nested more than `MAX_DEPTH` deep."""
    level: list[Any] = [facts]
    for _ in range(MAX_DEPTH):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            struct = Struct()
            struct.update(facts)
            return struct
    raise StreamBroken(f"the provider's remarks are nested more than {MAX_DEPTH} deep")


def _inside(value: Any) -> list[Any]:
    """The objects and lists that stand in one."""
    inner: Any = cast("Mapping[str, Any]", value).values() if isinstance(value, Mapping) else value
    return [found for found in inner if isinstance(found, dict | list)]
