"""Messages of the contract in protobuf's own JSON: unknown fields are refused, and what is wrong has its path. Pure."""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import dataclass
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar, cast

import orjson
from buf.validate import validate_pb2
from google.protobuf import json_format
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message

from maestro_gateway.json_codec.document import parse_object
from maestro_sdk.errors import InvalidRequest
from maestro_sdk.service.validation import validate

Kind = TypeVar("Kind", bound=Message)
_WRONG = (json_format.ParseError, TypeError, AttributeError, ValueError, RecursionError)
_MOST = 256
"""Letters of a path, or of a reason, that an error tells: a reason may quote the value."""
_CHUNK = 1024
"""Entries of a list that are tried together, to find one that can't be read."""
_KINDS = {
    FieldDescriptor.CPPTYPE_STRING: "text",
    FieldDescriptor.CPPTYPE_BOOL: "true or false",
    FieldDescriptor.CPPTYPE_FLOAT: "a number",
    FieldDescriptor.CPPTYPE_DOUBLE: "a number",
    FieldDescriptor.CPPTYPE_INT32: "a whole number of 32 bits",
    FieldDescriptor.CPPTYPE_INT64: "a whole number of 64 bits",
    FieldDescriptor.CPPTYPE_UINT32: "a whole number of 32 bits, not below 0",
    FieldDescriptor.CPPTYPE_UINT64: "a whole number of 64 bits, not below 0",
}
_WELL_KNOWN = {
    "google.protobuf.Timestamp": 'a time with its zone, such as "2026-05-01T12:00:00Z"',
    "google.protobuf.Duration": 'a span in seconds, such as "3600s"',
}


def read_body(raw: bytes, asked: Kind, *, optional: bool = False) -> Kind:
    """Puts the JSON object of a body into `asked`, validates and gives it.

    `optional` takes an empty body for an empty object. What `asked` holds already was said by the path of the request.
    Raises `InvalidRequest` with the path of what is wrong.
    """
    document = {} if optional and not raw.strip() else parse_object(raw)
    message = read_message(document, asked)
    validate(message)
    return message


def encode_message(message: Message) -> bytes:
    """A message as JSON. Fields without a value that can be told from an unset one are there with their zeros."""
    return orjson.dumps(
        json_format.MessageToDict(message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True)
    )


def read_message(document: dict[str, Any], message: Kind) -> Kind:
    """Puts a JSON object into what a message does not hold yet, and gives it.

    Raises `InvalidRequest` with the path of what is wrong.
    """
    _check(document, message.DESCRIPTOR, "", {field.name for field, _ in message.ListFields()})
    try:
        return json_format.ParseDict(document, message)
    except _WRONG as error:
        path, what = _find_within(message, document, "", str(error))
        raise InvalidRequest.at(path[:_MOST] or "body", what[:_MOST]) from None


@dataclass(frozen=True, slots=True)
class _Place:
    """A field: the most entries of its list or map, and the message that it holds where that is one of ours."""

    name: str
    most: int | None
    inner: Any


@cache
def _places(message: Any) -> dict[str, _Place]:
    """The fields of a message by their names in JSON."""
    found: dict[str, _Place] = {}
    for field in message.fields:
        rules = field.GetOptions().Extensions[validate_pb2.field]
        of, most = field.message_type, rules.repeated.max_items or rules.map.max_pairs
        ours = of is not None and not of.GetOptions().map_entry and not of.full_name.startswith("google.protobuf.")
        found[field.name] = found[field.json_name] = _Place(field.name, most or None, of if ours else None)
    return found


def _check(value: dict[str, Any], message: Any, above: str, held: Collection[str] = ()) -> None:
    """Raises for names that are no fields, that are `held` already or said twice, and for lists that are too long.

    Lists first of all: to read a long one takes a hundred times as long as to count it.
    """
    places, seen = _places(message), set[str]()
    for name, inner in value.items():
        path, place = f"{above}{name}", places.get(name)
        if place is None:
            free = dict.fromkeys(each.name for each in places.values() if each.name not in held)
            raise InvalidRequest.at(path[:_MOST] or "body", f"is no field here{_hint(name, [*free])}"[:_MOST])
        if place.name in held:
            raise InvalidRequest.at(path, "is said by the path of the request and can't stand in its body too")
        if place.name in seen:
            raise InvalidRequest.at(path, f"stands there twice, as {place.name} and in another spelling")
        seen.add(place.name)
        if place.most is not None and isinstance(inner, (list, dict)):
            count = len(cast("list[Any] | dict[str, Any]", inner))
            if count > place.most:
                raise InvalidRequest.at(path, f"holds {count} entries, more than the {place.most} that are allowed")
        if place.inner is None:
            continue
        if isinstance(inner, dict):
            _check(cast("dict[str, Any]", inner), place.inner, f"{path}.")
        elif isinstance(inner, list):
            for index, each in enumerate(cast("list[Any]", inner)):
                if isinstance(each, dict):
                    _check(cast("dict[str, Any]", each), place.inner, f"{path}[{index}].")


def _find_within(message: Message, value: dict[str, Any], path: str, reason: str) -> tuple[str, str]:
    """The path of what can't be read in an object whose names are all fields of `message`, and why."""
    for name, inner in value.items():
        fields = message.DESCRIPTOR
        field = fields.fields_by_name.get(name) or fields.fields_by_camelcase_name.get(name)
        if field is None or (why := _why(message, {name: inner})) is None:
            continue
        here = f"{path}.{name}" if path else name
        if not field.is_repeated:
            return _find_in_one(message, field, inner, here, why)
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            return here, why
        if not isinstance(inner, list):
            return here, f"must be a list, and is {_shown(inner)}"
        entries = cast("list[Any]", inner)
        for start in range(0, len(entries), _CHUNK):
            if _why(message, {name: entries[start : start + _CHUNK]}) is None:
                continue
            for index, each in enumerate(entries[start : start + _CHUNK], start):
                if (why := _why(message, {name: [each]})) is not None:
                    return _find_in_one(message, field, each, f"{here}[{index}]", why)
    for choice in message.DESCRIPTOR.oneofs:
        names = [each.name for each in choice.fields if {each.name, each.json_name} & value.keys()]
        if len(names) > 1:
            return path, f"holds {' and '.join(names)}, of which only one may be there"
    return path, reason


def _find_in_one(message: Message, field: Any, value: Any, path: str, reason: str) -> tuple[str, str]:
    """The same for what is no single value of a field of `message`."""
    kind: str | None = _KINDS.get(field.cpp_type)
    if field.enum_type is not None:
        names = [each.name for each in field.enum_type.values if each.number]
        kind = f"one of {', '.join(names)}"
    elif field.message_type is not None:
        name: str = field.message_type.full_name
        kind = _WELL_KNOWN.get(name)
        if kind is None and name.startswith("google.protobuf."):
            return path, reason
        if kind is None and isinstance(value, dict):
            below = getattr(type(message)(), field.name)
            inner: Message = below.add() if field.is_repeated else below
            return _find_within(type(inner)(), cast("dict[str, Any]", value), path, reason)
        kind = kind or "a JSON object"
    return path, f"must be {kind}, and is {_shown(value)}"


def _hint(name: str, known: list[str]) -> str:
    # A name may be as long as the body, and each letter costs.
    near = get_close_matches(name[:64], known, n=1, cutoff=0.6)
    return f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"


def _shown(value: Any) -> str:
    return json.dumps(value)[:64]


def _why(message: Message, value: Any) -> str | None:
    """Why a value is none of the kind of `message`; None when it is one."""
    try:
        json_format.ParseDict(value, type(message)())
    except _WRONG as error:
        return str(error)
    return None
