"""Canonical JSON of messages: one text for one content, in every language, so that it can be hashed.

ProtoJSON with the names of the contract, without fields that are at their default, written as RFC 8785 says: members
sorted by the UTF-16 code units of their names, no white space, UTF-8. Floating-point numbers have no such form here.
"""

from __future__ import annotations

import base64
from collections.abc import Callable
from typing import Any, TypeAlias

import orjson
from google.protobuf.descriptor import EnumDescriptor, FieldDescriptor
from google.protobuf.message import Message

__all__ = ["canonical_json"]

Encode: TypeAlias = Callable[[Any], Any]

_LONG = {FieldDescriptor.CPPTYPE_INT64, FieldDescriptor.CPPTYPE_UINT64}
_NUMBERS = {FieldDescriptor.CPPTYPE_INT32, FieldDescriptor.CPPTYPE_UINT32, FieldDescriptor.CPPTYPE_BOOL}
_OWN_TEXT = {"google.protobuf.Timestamp", "google.protobuf.Duration"}
"""Messages whose JSON is a text of their own."""
_WELL_KNOWN = "google.protobuf."


def canonical_json(message: Message, without: str = "") -> bytes:
    """The canonical JSON of a message, without the field `without`.

    Raises `TypeError` for what has no such form: a floating-point number, `Any`, `Struct` and the like.
    """
    members = _members(message)
    members.pop(without, None)
    return orjson.dumps(members)


def _members(message: Message) -> dict[str, Any]:
    found: list[tuple[str, Any]] = []
    for field, value in message.ListFields():
        name, encode = _known.get(field) or _know(field)
        found.append((name, value if encode is None else encode(value)))
    # The names of a contract are ASCII, where code units and code points sort alike.
    found.sort(key=_name)
    return dict(found)


def _name(member: tuple[str, Any]) -> str:
    return member[0]


_known: dict[FieldDescriptor, tuple[str, Encode | None]] = {}
"""By field: its name, and what makes JSON of its value; None where that is JSON already."""


def _know(field: FieldDescriptor) -> tuple[str, Encode | None]:
    kind = field.message_type
    if kind is not None and kind.GetOptions().map_entry:
        encode = _of_map(kind.fields_by_name["key"], _of_one(kind.fields_by_name["value"]))
    else:
        encode = _of_one(field)
        if field.is_repeated:
            encode = _of_list(encode)
    known = _known[field] = field.name, encode
    return known


def _of_one(field: FieldDescriptor) -> Encode | None:
    kind = field.cpp_type
    if kind in _LONG:
        return str
    if kind in _NUMBERS:
        return None
    if kind == FieldDescriptor.CPPTYPE_STRING:
        return _base64 if field.type == FieldDescriptor.TYPE_BYTES else None
    if field.enum_type is not None:
        return _of_enum(field.enum_type)
    name = field.message_type.full_name if field.message_type is not None else ""
    if name in _OWN_TEXT:
        return _text
    if not name or name.startswith(_WELL_KNOWN):
        raise TypeError(f"{field.full_name} has no canonical form")
    return _members


def _of_list(encode: Encode | None) -> Encode:
    return list if encode is None else lambda values: [encode(value) for value in values]


def _of_map(key: FieldDescriptor, encode: Encode | None) -> Encode:
    if key.cpp_type != FieldDescriptor.CPPTYPE_STRING:
        raise TypeError(f"{key.full_name} is no text, which has no canonical form")
    return lambda values: {
        name: values[name] if encode is None else encode(values[name]) for name in sorted(values, key=_utf16)
    }


def _of_enum(kind: EnumDescriptor) -> Encode:
    names = {value.number: value.name for value in kind.values}
    return lambda number: names.get(number, number)


def _text(value: Any) -> str:
    return value.ToJsonString()


def _base64(value: bytes) -> str:
    return base64.b64encode(value).decode()


def _utf16(name: str) -> bytes:
    # As RFC 8785 wants it: Python itself sorts by code points.
    return name.encode("utf-16-be")
