"""The caller's own parameters: `provider_options.bedrock`, merged into the wire's body as a merge patch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from google.protobuf.struct_pb2 import Struct, Value

from maestro_adapter_bedrock.models import PROVIDER
from maestro_sdk.errors import InvalidRequest

PATH = f"provider_options.{PROVIDER}"


def merge_options(options: Mapping[str, Struct], body: dict[str, Any], own: tuple[str, ...]) -> None:
    """Merges them into `body`: objects by key, null removes. Raises `InvalidRequest` for the names in `own`."""
    if PROVIDER not in options:
        return
    given = plain_struct(options[PROVIDER])
    for name in own:
        if name in given:
            raise InvalidRequest.at(f"{PATH}.{name}", "belongs to the request itself")
    _merge(body, given)


def _merge(target: dict[str, Any], patch: Mapping[str, Any]) -> None:
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        elif isinstance(value, dict) and isinstance(below := target.get(name), dict):
            _merge(cast("dict[str, Any]", below), cast("dict[str, Any]", value))
        else:
            target[name] = value


def plain_struct(struct: Struct) -> dict[str, Any]:
    """A struct as plain values; whole numbers are integers."""
    # A Struct keeps no order; the same options have to give the same prompt, or the provider's cache misses.
    return {name: _plain(struct.fields[name]) for name in sorted(struct.fields)}


def _plain(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            # A Struct knows doubles only, the wire wants `1024`, not `1024.0`.
            number = value.number_value
            if not math.isfinite(number):
                raise InvalidRequest.at(PATH, f"holds {number}, which JSON does not know")
            return int(number) if number.is_integer() and abs(number) <= 2**53 else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return plain_struct(value.struct_value)
        case "list_value":
            return [_plain(item) for item in value.list_value.values]
        case _:
            return None
