"""Any message as plain JSON data, off the hot path: snake_case, short enum names, numbers as numbers."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.protobuf.struct_pb2 import ListValue, Struct, Value
from google.protobuf.timestamp_pb2 import Timestamp

from maestro_gateway.json_codec.decoder import short_names


def plain(message: Message) -> dict[str, Any]:
    """The fields of a message that are set; durations in seconds, times as RFC 3339 in UTC, bytes in base64."""
    return {field.name: _field(field, value) for field, value in message.ListFields()}


def struct_data(struct: Struct) -> dict[str, Any]:
    """What a `Struct` holds; whole numbers are integers again."""
    return {key: _value(value) for key, value in struct.fields.items()}


def enum_name(enum: EnumDescriptor, number: int) -> str:
    """The short name of an enum's value: "tool_calls"."""
    return _names(enum).get(number) or str(number)


def _field(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None and field.message_type.GetOptions().map_entry:
        item = field.message_type.fields_by_name["value"]
        mapping: Mapping[Any, Any] = value
        return {str(key): _single(item, mapping[key]) for key in mapping}
    if field.is_repeated:
        return [_single(field, item) for item in value]
    return _single(field, value)


def _single(field: FieldDescriptor, value: Any) -> Any:
    if field.message_type is not None:
        known = _WELL_KNOWN.get(field.message_type.full_name)
        return known(value) if known else plain(value)
    if field.enum_type is not None:
        return enum_name(field.enum_type, value)
    if field.type == FieldDescriptor.TYPE_BYTES:
        return base64.b64encode(value).decode()
    return value


def _value(value: Value) -> Any:
    match value.WhichOneof("kind"):
        case "struct_value":
            return struct_data(value.struct_value)
        case "list_value":
            return [_value(item) for item in value.list_value.values]
        case "string_value":
            return value.string_value
        case "bool_value":
            return value.bool_value
        case "number_value":
            number = value.number_value
            if not math.isfinite(number):
                return None
            return int(number) if number.is_integer() and abs(number) <= 2**53 else number
        case _:
            return None


def _list(value: ListValue) -> list[Any]:
    return [_value(item) for item in value.values]


def _timestamp(value: Timestamp) -> str:
    return value.ToJsonString()


def _seconds(value: Duration) -> float:
    return value.ToNanoseconds() / 1e9


_WELL_KNOWN: dict[str, Callable[[Any], Any]] = {
    Struct.DESCRIPTOR.full_name: struct_data,
    Value.DESCRIPTOR.full_name: _value,
    ListValue.DESCRIPTOR.full_name: _list,
    Timestamp.DESCRIPTOR.full_name: _timestamp,
    Duration.DESCRIPTOR.full_name: _seconds,
}


@lru_cache(maxsize=256)
def _names(enum: EnumDescriptor) -> dict[int, str]:
    return short_names(enum)
