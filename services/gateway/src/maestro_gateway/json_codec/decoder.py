"""JSON objects into protobuf messages: one small closure per field, compiled once from the descriptors.

Every error names the field by its path (`messages[2].content[0].url`) and never quotes a value, which may be part of a
prompt. `null` means unset. Enums are read by their short name in lower case ("high") or their full name.
"""

from __future__ import annotations

import binascii
from collections.abc import Callable, Iterable, Mapping
from collections.abc import Set as AbstractSet
from typing import Any, TypeVar, cast

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor
from google.protobuf.struct_pb2 import Struct

from maestro_sdk.errors import InvalidRequest

Choice = TypeVar("Choice")
Path = tuple[Any, "str | int"] | None
"""A place in a document as a linked list, (parent, key): nothing is rendered until there is something to tell."""
MOST_UNKNOWN = 32
"""Fields that nobody knows, of which one answer tells: a body may hold hundreds of thousands."""


class Reading:
    """What is noticed while one document is read."""

    __slots__ = ("hoisted", "stream", "unknown")

    def __init__(self) -> None:
        self.unknown: list[Path] = []
        self.hoisted: list[str] = []
        self.stream = False


Fill = Callable[[Any, Any, Path, Reading], None]
"""(message, value, path of the value, reading): puts a JSON object into a message."""
Put = Callable[[Any, Any, Path, Reading], None]
"""(message, value, path of the message, reading): puts one JSON value into a field that it knows."""

_INT32 = (-(2**31), 2**31 - 1)
_INT64 = (-(2**63), 2**63 - 1)
_RANGES = {
    FieldDescriptor.TYPE_INT32: _INT32,
    FieldDescriptor.TYPE_INT64: _INT64,
    FieldDescriptor.TYPE_UINT32: (0, 2**32 - 1),
    FieldDescriptor.TYPE_UINT64: (0, 2**64 - 1),
}
_DIGITS = 2**53
# A message of Struct nests three levels of wire per level of JSON, and protobuf readers stop at a hundred.
_STRUCT_DEPTH = 24

_KINDS: dict[type[object], str] = {
    dict: "an object",
    list: "a list",
    str: "a string",
    bool: "true or false",
    int: "a number",
    float: "a number",
}


def render(path: Path) -> str:
    """The path as text: `messages[2].content[0].url`; keys are cut to 64 characters."""
    parts: list[str | int] = []
    while path is not None:
        path, key = path
        parts.append(key)
    text = ""
    for part in reversed(parts):
        if isinstance(part, int):
            text += f"[{part}]"
        else:
            text += f".{part[:64]}" if text else part[:64]
    return text


def note_others(fields: Mapping[str, Any], known: AbstractSet[str], path: Path, reading: Reading) -> None:
    """Notes what of an object nobody reads; what is null says nothing."""
    if not fields.keys() <= known:
        others = fields.keys() - known
        reading.unknown += [(path, name) for name in fields if name in others and fields[name] is not None]


def name_unknown(reading: Reading) -> tuple[str, ...]:
    """The places of what nobody reads: so many as somebody may want to read about."""
    return tuple(map(render, reading.unknown[:MOST_UNKNOWN]))


def wrong(path: Path, message: str) -> InvalidRequest:
    """The error for the value at `path`."""
    return InvalidRequest.at(render(path) or "body", message)


def mistyped(path: Path, expected: str, value: Any) -> InvalidRequest:
    """The error for a value of another type than `expected` ("a string")."""
    return wrong(path, f"must be {expected}, not {_KINDS.get(cast('type[object]', type(value)), 'null')}")


class Compiler:
    """Compiles message types; `special` replaces the reading of whole messages, by full name."""

    def __init__(self, special: Mapping[str, Fill]) -> None:
        self._fills: dict[str, Fill] = dict(special)
        self._fills[Struct.DESCRIPTOR.full_name] = fill_struct

    def fill(self, descriptor: Descriptor, special: Mapping[str, Put] | None = None) -> Fill:
        """What reads messages of a type, from now on everywhere; `special` replaces or adds fields."""
        known = self._fills.get(descriptor.full_name)
        if known is not None and special is None:
            return known
        fields: dict[str, Put] = {}

        def fill(message: Any, value: Any, path: Path, reading: Reading) -> None:
            if type(value) is not dict:
                raise mistyped(path, "an object", value)
            for key, item in cast("dict[str, Any]", value).items():
                put = fields.get(key)
                if put is None:
                    reading.unknown.append((path, key))
                elif item is not None:
                    put(message, item, path, reading)

        # Known before its fields are compiled: a message may contain itself.
        self._fills[descriptor.full_name] = fill
        fields.update(self.puts(descriptor, special or {}))
        return fill

    def puts(self, descriptor: Descriptor, special: Mapping[str, Put]) -> dict[str, Put]:
        """What reads each field of a type, by JSON name."""
        plain = [field for field in descriptor.fields if field.name not in special]
        return {field.name: self._exclusive(field, self._put(field)) for field in plain} | dict(special)

    def _exclusive(self, field: FieldDescriptor, put: Put) -> Put:
        """Refuses a second field of a oneof, which would silently replace the first."""
        oneof = field.containing_oneof
        if oneof is None or len(oneof.fields) == 1:
            return put
        group, names = oneof.name, ", ".join(other.name for other in oneof.fields)

        def check(message: Any, value: Any, path: Path, reading: Reading) -> None:
            if message.WhichOneof(group) is not None:
                raise wrong(path, f"only one of {names} may be given")
            put(message, value, path, reading)

        return check

    def _put(self, field: FieldDescriptor) -> Put:
        name = field.name
        if field.message_type is not None:
            if field.message_type.GetOptions().map_entry:
                return self._put_map(field)
            fill = self.fill(field.message_type)
            if field.is_repeated:
                return _put_messages(name, fill)

            def put_message(message: Any, value: Any, path: Path, reading: Reading) -> None:
                inner = getattr(message, name)
                inner.SetInParent()
                fill(inner, value, (path, name), reading)

            return put_message
        read = _reader(field)
        if field.is_repeated:

            def put_list(message: Any, value: Any, path: Path, reading: Reading) -> None:
                here = (path, name)
                if type(value) is not list:
                    raise mistyped(here, "a list", value)
                target = getattr(message, name)
                for index, item in enumerate(cast("list[Any]", value)):
                    target.append(read(item, (here, index)))

            return put_list

        def put_scalar(message: Any, value: Any, path: Path, reading: Reading) -> None:
            setattr(message, name, read(value, (path, name)))

        return put_scalar

    def _put_map(self, field: FieldDescriptor) -> Put:
        name = field.name
        entry = cast("Descriptor", field.message_type).fields_by_name["value"]
        fill = self.fill(entry.message_type) if entry.message_type is not None else None
        read = None if fill else _reader(entry)

        def put(message: Any, value: Any, path: Path, reading: Reading) -> None:
            here = (path, name)
            if type(value) is not dict:
                raise mistyped(here, "an object", value)
            target = getattr(message, name)
            for key, item in cast("dict[str, Any]", value).items():
                if fill is not None:
                    fill(target[key], item, (here, key), reading)
                elif read is not None:
                    target[key] = read(item, (here, key))

        return put


def _put_messages(name: str, fill: Fill) -> Put:
    def put(message: Any, value: Any, path: Path, reading: Reading) -> None:
        here = (path, name)
        if type(value) is not list:
            raise mistyped(here, "a list", value)
        target = getattr(message, name)
        for index, item in enumerate(cast("list[Any]", value)):
            fill(target.add(), item, (here, index), reading)

    return put


def _reader(field: FieldDescriptor) -> Callable[[Any, Path], Any]:
    """What checks and converts one JSON value for a scalar field."""
    match field.type:
        case FieldDescriptor.TYPE_STRING:
            return read_text
        case FieldDescriptor.TYPE_BOOL:
            return read_bool
        case FieldDescriptor.TYPE_BYTES:
            return read_bytes
        case FieldDescriptor.TYPE_DOUBLE | FieldDescriptor.TYPE_FLOAT:
            return read_number
        case FieldDescriptor.TYPE_ENUM:
            return enum_reader(cast("EnumDescriptor", field.enum_type))
        case kind if kind in _RANGES:
            least, most = _RANGES[kind]
            return lambda value, path: read_int(value, path, least, most)
        case _:
            raise TypeError(f"{field.full_name} has a type that the decoder does not know")


def read_object(value: Any, path: Path) -> dict[str, Any]:
    """A JSON object."""
    if type(value) is not dict:
        raise mistyped(path, "an object", value)
    return cast("dict[str, Any]", value)


def read_text(value: Any, path: Path) -> str:
    """A string."""
    if type(value) is not str:
        raise mistyped(path, "a string", value)
    return value


def read_bool(value: Any, path: Path) -> bool:
    """True or false; 0 and 1 are neither."""
    if type(value) is not bool:
        raise mistyped(path, "true or false", value)
    return value


def read_choice(value: Any, path: Path, choices: Mapping[str, Choice]) -> Choice:
    """What one of a few words stands for."""
    # Not every JSON value may be asked for in a mapping.
    if type(value) is not str or value not in choices:
        raise wrong(path, f"must be one of {', '.join(choices)}")
    return choices[value]


def read_number(value: Any, path: Path) -> float:
    """A number."""
    if type(value) is not float and type(value) is not int:
        raise mistyped(path, "a number", value)
    return float(cast("float", value))


def read_int(value: Any, path: Path, least: int, most: int) -> int:
    """A whole number between two bounds; 8.0 is one too."""
    if type(value) is float and value.is_integer() and abs(value) < _DIGITS:
        value = int(value)
    if type(value) is not int:
        expected = "a whole number" if type(value) is not float else "a whole number without a fraction"
        raise mistyped(path, expected, value)
    if not least <= value <= most:
        raise wrong(path, f"must be between {least} and {most}")
    return value


def read_bytes(value: Any, path: Path) -> bytes:
    """Bytes in base64, standard or URL-safe, padded or not."""
    if type(value) is not str:
        raise mistyped(path, "a string in base64", value)
    text = value if "-" not in value and "_" not in value else value.replace("-", "+").replace("_", "/")
    try:
        return binascii.a2b_base64(text + "=" * (-len(text) % 4), strict_mode=True)
    except (binascii.Error, ValueError):
        raise wrong(path, "is not base64") from None


def enum_reader(enum: EnumDescriptor) -> Callable[[Any, Path], int]:
    """What reads values of an enum by short or full name; the unset value has no name."""
    prefix = _enum_prefix(enum)
    short = {value.name.removeprefix(prefix).lower(): value.number for value in enum.values if value.number}
    names = short | {value.name: value.number for value in enum.values}
    allowed = ", ".join(short)

    def read(value: Any, path: Path) -> int:
        if type(value) is not str:
            raise mistyped(path, f"one of {allowed}", value)
        number = names.get(value)
        if number is None:
            raise wrong(path, f"must be one of {allowed}")
        return number

    return read


def short_names(enum: EnumDescriptor) -> dict[int, str]:
    """The short name of each value of an enum: the contract's name in lower case without its prefix."""
    prefix = _enum_prefix(enum)
    return {value.number: value.name.removeprefix(prefix).lower() for value in enum.values}


def fill_struct(message: Any, value: Any, path: Path, reading: Reading) -> None:
    """Puts a JSON object into a `Struct`."""
    if type(value) is not dict:
        raise mistyped(path, "an object", value)
    _check_struct(cast("dict[str, Any]", value), path, 1)
    message.update(value)


def _check_struct(value: Any, path: Path, depth: int) -> None:
    """`Struct` holds numbers as doubles, and readers bound its depth: told here instead of losing digits or failing."""
    kind = cast("type[object]", type(value))
    if kind is dict or kind is list:
        if depth > _STRUCT_DEPTH:
            raise wrong(path, f"is nested more than {_STRUCT_DEPTH} levels deep")
        items = cast("Iterable[tuple[Any, Any]]", value.items() if kind is dict else enumerate(value))
        for key, item in items:
            _check_struct(item, (path, key), depth + 1)
    elif (kind is int or kind is float) and abs(value) > _DIGITS:
        raise wrong(path, "is a whole number above 2^53, which loses digits here; send it as a string")


def _enum_prefix(enum: EnumDescriptor) -> str:
    """`REASONING_EFFORT_` of `ReasoningEffort`: what all its names begin with, as the contract's style has it."""
    return enum.values_by_number[0].name.removesuffix("UNSPECIFIED")
