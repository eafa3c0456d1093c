"""The caller's own parameters for one provider: `provider_options`, merged last into what goes to the wire."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, cast

from google.protobuf.struct_pb2 import Struct, Value

from maestro_sdk.errors import InvalidRequest


def merge_options(
    options: Mapping[str, Struct], provider: str, body: dict[str, Any], reserved: Mapping[str, str]
) -> None:
    """Merges the options of `provider` into `body`; see `merge_patch`.

    Raises `InvalidRequest` for names in `reserved`, which map to what decides them instead.
    """
    given = own_options(options, provider)
    refuse_reserved(given, provider, reserved)
    merge_patch(body, given)


def own_options(options: Mapping[str, Struct], provider: str) -> dict[str, Any]:
    """The options of `provider` as JSON values, empty when there are none. Raises `InvalidRequest` for a NaN."""
    # Looking a missing key up in a map of messages would put it there.
    return _plain_struct(options[provider], f"provider_options.{provider}") if provider in options else {}


def refuse_reserved(given: Mapping[str, Any], provider: str, reserved: Mapping[str, str]) -> None:
    """Raises `InvalidRequest` for a name in `reserved`, which map to what decides them instead."""
    for name in reserved:
        if name in given:
            raise InvalidRequest.at(f"provider_options.{provider}.{name}", f"can't be set here: {reserved[name]}")


def merge_patch(target: dict[str, Any], patch: Mapping[str, Any]) -> None:
    """Merges objects by key; null removes (RFC 7396). So one more stream option does not switch usage off."""
    for name, value in patch.items():
        if value is None:
            target.pop(name, None)
        elif isinstance(value, dict) and isinstance(below := target.get(name), dict):
            merge_patch(cast("dict[str, Any]", below), cast("dict[str, Any]", value))
        else:
            target[name] = value


def _plain_struct(struct: Struct, path: str) -> dict[str, Any]:
    # A Struct keeps no order; the same options have to give the same prompt, or the provider's cache misses.
    return {name: _plain(struct.fields[name], f"{path}.{name}") for name in sorted(struct.fields)}


def _plain(value: Value, path: str) -> Any:
    match value.WhichOneof("kind"):
        case "number_value":
            # A Struct knows doubles only, the wire wants `1024`, not `1024.0`.
            number = value.number_value
            if not math.isfinite(number):
                raise InvalidRequest.at(path, f"holds {number}, which JSON does not know")
            return int(number) if number.is_integer() and abs(number) <= 2**53 else number
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "struct_value":
            return _plain_struct(value.struct_value, path)
        case "list_value":
            return [_plain(item, f"{path}[{place}]") for place, item in enumerate(value.list_value.values)]
        case _:
            return None
