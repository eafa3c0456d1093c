"""Messages of the contract in protobuf's own JSON: unknown fields are refused, and what is wrong has its path. Pure."""

from __future__ import annotations

import json
from typing import Any, TypeVar, cast

from google.protobuf import json_format
from google.protobuf.message import Message

from maestro_sdk.errors import InvalidRequest

Kind = TypeVar("Kind", bound=Message)
_WRONG = (json_format.ParseError, TypeError, AttributeError, ValueError, RecursionError)


def read_message(document: dict[str, Any], message: Kind) -> Kind:
    """Puts a JSON object into a message, and gives it. Raises `InvalidRequest` with the path of what is wrong."""
    try:
        return json_format.ParseDict(document, message)
    except _WRONG as error:
        path, what = _find_within(message, document, "", str(error))
        raise InvalidRequest.at(path, what) from None


def _find_within(message: Message, value: dict[str, Any], path: str, reason: str) -> tuple[str, str]:
    """The path of what can't be read in an object that is no `message`, and why."""
    for name, inner in value.items():
        if (why := _why(message, {name: inner})) is None:
            continue
        fields = message.DESCRIPTOR
        field = fields.fields_by_name.get(name) or fields.fields_by_camelcase_name.get(name)
        here = f"{path}.{name}" if path else name
        if field is None:
            return here[:256], "is no field of this message"
        of_map = field.message_type is not None and field.message_type.GetOptions().map_entry
        if field.message_type is None or of_map or field.message_type.full_name.startswith("google.protobuf."):
            return here, why
        if not field.is_repeated:
            return _find_below(getattr(type(message)(), field.name), inner, here, why)
        for index, each in enumerate(cast("list[Any]", inner) if isinstance(inner, list) else ()):
            below = getattr(type(message)(), field.name).add()
            if (why := _why(below, each)) is not None:
                return _find_below(below, each, f"{here}[{index}]", why)
        return here, "is no list"
    return path, reason


def _find_below(message: Message, value: Any, path: str, reason: str) -> tuple[str, str]:
    if isinstance(value, dict):
        return _find_within(type(message)(), cast("dict[str, Any]", value), path, reason)
    return path, f"is no JSON object: {json.dumps(value)[:64]}"


def _why(message: Message, value: Any) -> str | None:
    """Why a value is none of the kind of `message`; None when it is one."""
    try:
        json_format.ParseDict(value, type(message)())
    except _WRONG as error:
        return str(error)
    return None
