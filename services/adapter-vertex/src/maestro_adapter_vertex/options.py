"""`provider_options.vertex`: the caller's own parameters, merged into the body last."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from google.protobuf.struct_pb2 import Struct, Value

from maestro_adapter_vertex.models import PROVIDER
from maestro_sdk.errors import InvalidRequest


def own_options(provider_options: Mapping[str, Struct]) -> dict[str, Any]:
    """This provider's options as JSON values, empty when there are none."""
    if PROVIDER not in provider_options:
        return {}
    return _plain_struct(provider_options[PROVIDER])


def merge_patch(target: dict[str, Any], patch: Mapping[str, Any]) -> None:
    """Merges objects by key; null removes."""
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        elif isinstance(value, dict) and isinstance(below := target.get(name), dict):
            merge_patch(cast("dict[str, Any]", below), cast("dict[str, Any]", value))
        else:
            target[name] = value


def _plain_struct(struct: Struct) -> dict[str, Any]:
    # A Struct keeps no order; the same options have to give the same prompt, or the provider's cache misses.
    return {name: _plain(struct.fields[name]) for name in sorted(struct.fields)}


def _plain(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            # A Struct knows doubles only, the wire wants `1024`, not `1024.0`.
            number = value.number_value
            if not math.isfinite(number):
                raise InvalidRequest.at(f"provider_options.{PROVIDER}", f"holds {number}, which JSON does not know")
            return int(number) if number.is_integer() and abs(number) <= 2**53 else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return _plain_struct(value.struct_value)
        case "list_value":
            return [_plain(item) for item in value.list_value.values]
        case _:
            return None
