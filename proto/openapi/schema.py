"""Messages as JSON Schemas: as Envoy's transcoder reads and prints them, or as the gateway's own JSON has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from buf.validate import validate_pb2
from contract import Contract, Enum, Field, Message
from google.protobuf.descriptor_pb2 import FieldDescriptorProto as Proto

Schema = dict[str, Any]

_NUMBER = r"(0|[1-9][0-9]{0,18})"
_WELL_KNOWN: Mapping[str, Schema] = {
    "google.protobuf.Timestamp": {"type": "string", "format": "date-time"},
    "google.protobuf.Duration": {"type": "string", "pattern": r"^-?[0-9]{1,12}(\.[0-9]{1,9})?s$"},
    "google.protobuf.Struct": {"type": "object"},
    "google.protobuf.Value": {},
    "google.protobuf.ListValue": {"type": "array", "items": {}},
    "google.protobuf.Empty": {"type": "object"},
    "google.protobuf.Any": {"type": "object", "properties": {"@type": {"type": "string"}}},
}
_INTEGERS = {
    Proto.TYPE_INT32: (-(2**31), 2**31 - 1),
    Proto.TYPE_SINT32: (-(2**31), 2**31 - 1),
    Proto.TYPE_SFIXED32: (-(2**31), 2**31 - 1),
    Proto.TYPE_UINT32: (0, 2**32 - 1),
    Proto.TYPE_FIXED32: (0, 2**32 - 1),
}
_UNSIGNED = (Proto.TYPE_UINT64, Proto.TYPE_FIXED64)
_LONG = (Proto.TYPE_INT64, Proto.TYPE_SINT64, Proto.TYPE_SFIXED64, Proto.TYPE_UINT64, Proto.TYPE_FIXED64)


class Schemas:
    """The schemas that a document needs, by name; each is made when it is asked for first."""

    def __init__(self, contract: Contract, own: Mapping[str, Schema], renamed: Mapping[str, Mapping[str, Any]]) -> None:
        """`own` are written by hand; `renamed` are those of our own JSON: name, message, fields written by hand."""
        self._contract = contract
        self._own = own
        self._renamed = renamed
        self.made: dict[str, Schema] = {}

    def message(self, name: str, *, plain: bool = False) -> Schema:
        """The schema of a message. `plain` is that of our own JSON: short enum names, numbers as numbers."""
        name = name.removeprefix(".")
        if name in _WELL_KNOWN:
            return dict(_WELL_KNOWN[name])
        short = self._name(name, plain=plain)
        if short not in self.made:
            self.made[short] = {}
            self.made[short] = self._object(self._contract.messages[name], plain=plain)
        return {"$ref": f"#/components/schemas/{short}"}

    def own(self, name: str) -> Schema:
        """A reference to a schema that is written by hand, or made of a message after our own JSON."""
        if name not in self.made:
            self.made[name] = {}
            if name in self._own:
                self.made[name] = self.filled(self._own[name])
            else:
                recipe = self._renamed[name]
                self.made[name] = self._object(
                    self._contract.messages[recipe["message"]],
                    plain=True,
                    given={key: self.filled(value) for key, value in recipe.get("fields", {}).items()},
                )
        return {"$ref": f"#/components/schemas/{name}"}

    def filled(self, schema: Any) -> Any:
        """A schema written by hand, in which `{own: Name}` and `{message: full.Name}` stand for others."""
        match schema:
            case {"own": str(name), **rest}:
                return {**self.own(name), **rest}
            case {"message": str(name), **rest}:
                return {**self.message(name), **rest}
            case dict():
                return {key: self.filled(value) for key, value in schema.items()}
            case list():
                return [self.filled(value) for value in schema]
            case _:
                return schema

    def field(self, field: Field, *, plain: bool = False) -> Schema:
        """The schema of a field, with its comment and its rules."""
        schema = self._bare(field, plain=plain)
        text = field.comment
        if text.startswith("Output only."):
            schema["readOnly"] = True
        if text:
            schema["description"] = text
        if field.descriptor.options.deprecated:
            schema["deprecated"] = True
        return schema

    def _object(self, message: Message, *, plain: bool, given: Mapping[str, Schema] | None = None) -> Schema:
        properties: Schema = {}
        required: list[str] = []
        own = dict(given or {})
        for field in message.fields:
            name = field.descriptor.name
            if name in own:
                properties[name] = {"description": field.comment, **own.pop(name)}
            else:
                properties[name] = self.field(field, plain=plain)
            if _is_required(field):
                required.append(name)
        properties |= own
        schema: Schema = {"type": "object", "properties": properties}
        if message.comment:
            schema["description"] = message.comment
        if required:
            schema["required"] = required
        chosen = [{"oneOf": [{"required": [name]} for name in members]} for _, must, members in message.choices if must]
        if chosen:
            schema["allOf"] = chosen
        return schema

    def _bare(self, field: Field, *, plain: bool) -> Schema:
        proto, rules = field.descriptor, field.rules
        entry = self._contract.messages.get(proto.type_name.removeprefix("."))
        if entry is not None and entry.is_entry:
            value = next(each for each in entry.fields if each.descriptor.name == "value")
            limits = rules.map
            schema: Schema = {
                "type": "object",
                "additionalProperties": self._single(value, limits.values, plain=plain),
            }
            if limits.HasField("keys"):
                schema["propertyNames"] = {"type": "string", **_text_rules(limits.keys.string)}
            return schema | _sized(limits, "min_pairs", "max_pairs", "Properties")
        if not field.repeated:
            return self._single(field, rules, plain=plain)
        limits = rules.repeated
        items = self._single(field, limits.items, plain=plain)
        unique: Schema = {"uniqueItems": True} if limits.unique else {}
        return {"type": "array", "items": items} | _sized(limits, "min_items", "max_items", "Items") | unique

    def _single(self, field: Field, rules: validate_pb2.FieldRules, *, plain: bool) -> Schema:
        proto = field.descriptor
        match proto.type:
            case Proto.TYPE_MESSAGE:
                return self.message(proto.type_name, plain=plain)
            case Proto.TYPE_ENUM:
                return self._enum(self._contract.enums[proto.type_name.removeprefix(".")], rules.enum, plain=plain)
            case Proto.TYPE_BOOL:
                return {"type": "boolean"}
            case Proto.TYPE_STRING:
                return {"type": "string", **_text_rules(rules.string)}
            case Proto.TYPE_BYTES:
                # Lengths count bytes, not letters of base64.
                return {"type": "string", "contentEncoding": "base64", "pattern": "^[A-Za-z0-9+/_-]*={0,2}$"}
            case Proto.TYPE_DOUBLE | Proto.TYPE_FLOAT:
                limits = rules.double if proto.type == Proto.TYPE_DOUBLE else rules.float
                return {"type": "number", **_bounds(limits)}
            case kind if kind in _LONG:
                if plain:
                    return {"type": "integer", "minimum": -(2**63), "maximum": 2**63 - 1, **_bounds(rules.int64)}
                sign = "" if kind in _UNSIGNED or (rules.int64.HasField("gte") and rules.int64.gte >= 0) else "-?"
                return {"type": "string", "format": "int64", "pattern": f"^{sign}{_NUMBER}$"}
            case kind:
                least, most = _INTEGERS[kind]
                limits = rules.uint32 if kind == Proto.TYPE_UINT32 else rules.int32
                return {"type": "integer", "minimum": least, "maximum": most} | _bounds(limits)

    def _enum(self, enum: Enum, rules: validate_pb2.EnumRules, *, plain: bool) -> Schema:
        allowed = set(getattr(rules, "in")) or {number for _, number, _ in enum.values}
        allowed -= set(rules.not_in)
        names = [name for name, number, _ in enum.values if number in allowed]
        if plain:
            prefix = enum.values[0][0].removesuffix("UNSPECIFIED")
            names = [name.removeprefix(prefix).lower() for name in names if name != f"{prefix}UNSPECIFIED"]
        return {"type": "string", "enum": names}

    def _name(self, name: str, *, plain: bool) -> str:
        """A short name where no other message has it: that of its package before it else."""
        *above, last = name.split(".")
        alike = [other for other in self._contract.messages if other.endswith(f".{last}")]
        package = [part for part in above if part not in ("maestro", "v1")]
        short = last if len(alike) == 1 else "".join(part.title() for part in package) + last
        return f"{short}Body" if plain else short


def _is_required(field: Field) -> bool:
    rules = field.rules
    if rules.ignore != validate_pb2.IGNORE_UNSPECIFIED or field.descriptor.proto3_optional:
        return rules.required
    return (
        rules.required
        or (not field.repeated and rules.string.min_len > 0 and not field.descriptor.HasField("oneof_index"))
        or rules.repeated.min_items > 0
    )


def _text_rules(rules: validate_pb2.StringRules) -> Schema:
    found: Schema = {}
    if rules.HasField("min_len"):
        found["minLength"] = rules.min_len
    if rules.HasField("max_len"):
        found["maxLength"] = rules.max_len
    if rules.HasField("pattern"):
        found["pattern"] = rules.pattern
    if rules.HasField("const"):
        found["const"] = rules.const
    if allowed := list(getattr(rules, "in")):
        found["enum"] = allowed
    return found


def _bounds(rules: Any) -> Schema:
    names = {"gte": "minimum", "lte": "maximum", "gt": "exclusiveMinimum", "lt": "exclusiveMaximum"}
    return {names[name]: getattr(rules, name) for name in names if rules.HasField(name)}


def _sized(rules: Any, least: str, most: str, what: str) -> Schema:
    found: Schema = {}
    if rules.HasField(least):
        found[f"min{what}"] = getattr(rules, least)
    if rules.HasField(most):
        found[f"max{what}"] = getattr(rules, most)
    return found
