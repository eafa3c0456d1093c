"""Vertex AI's own schemas: how two of them become one, and what each has to have."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, cast

KINDS: Mapping[str, str] = {
    "array": "ARRAY",
    "boolean": "BOOLEAN",
    "integer": "INTEGER",
    "null": "NULL",
    "number": "NUMBER",
    "object": "OBJECT",
    "string": "STRING",
}

ORDER = (
    *("type", "format", "title", "description", "nullable", "default", "enum", "pattern", "minLength", "maxLength"),
    *("minimum", "maximum", "items", "minItems", "maxItems", "properties", "propertyOrdering", "required"),
    *("additionalProperties", "minProperties", "maxProperties", "anyOf"),
)
"""All keywords, in the order in which they are sent."""

_LOWER = frozenset({"minItems", "minLength", "minProperties", "minimum"})
_UPPER = frozenset({"maxItems", "maxLength", "maxProperties", "maximum"})
_NOTES = frozenset({"default", "description", "propertyOrdering", "title"})
# Which keywords mean something for which type; all others mean something for each.
_MEANT_FOR: Mapping[str, frozenset[str]] = {
    "ARRAY": frozenset({"items", "maxItems", "minItems"}),
    "NUMBER": frozenset({"maximum", "minimum"}),
    "OBJECT": frozenset(
        {"additionalProperties", "maxProperties", "minProperties", "properties", "propertyOrdering", "required"}
    ),
    "STRING": frozenset({"enum", "maxLength", "minLength", "pattern"}),
}
_ANY = ("STRING", "NUMBER", "BOOLEAN", "OBJECT")

Schema = dict[str, Any]


class Loss(NamedTuple):
    """What could not be said; `pointer` is the JSON pointer of its place in the schema that was given."""

    pointer: str
    message: str


class Fault(Exception):
    """What is no schema."""

    def __init__(self, pointer: str, message: str) -> None:
        super().__init__(message)
        self.pointer = pointer
        self.message = message


def pointer(*tokens: object) -> str:
    """A JSON pointer: "/properties/a~1b"."""
    return "".join("/" + str(token).replace("~", "~0").replace("/", "~1") for token in tokens)


def merge(first: Mapping[str, Any], second: Mapping[str, Any], at: str, losses: list[Loss]) -> Schema:
    """A schema that holds where both hold; for notes such as descriptions the first one's stand."""
    if "anyOf" in first and "anyOf" in second:
        pairs = [merge(a, b, at, losses) for a in first["anyOf"] for b in second["anyOf"] if _meet(a, b)]
        rest = merge(_without(first), _without(second), at, losses)
        return {**rest, "anyOf": pairs or first["anyOf"]}
    for one, other in ((first, second), (second, first)):
        if "anyOf" in one and "type" in other:
            kept = [branch for branch in one["anyOf"] if _meet(branch, other)]
            if kept:
                branches = [merge(branch, _without_notes(other), at, losses) for branch in kept]
                rest = {**_notes(second), **_notes(first), **_nullable(first, second)}
                return {**rest, **(branches[0] if len(branches) == 1 else {"anyOf": branches})}
    if _closed_to(first, second) or _closed_to(second, first):
        why = "that other properties are forbidden is not enforced: another part that holds as well describes some"
        losses.append(Loss(f"{at}/additionalProperties", why))
    made: Schema = dict(second)
    for name, value in first.items():
        made[name] = _both(name, value, second[name], at, losses) if name in second else value
    made.pop("nullable", None)
    return {**made, **_nullable(first, second)}


def _both(name: str, one: Any, other: Any, at: str, losses: list[Loss]) -> Any:
    if one == other or name in _NOTES:
        return one
    if name in _LOWER:
        return max(one, other)
    if name in _UPPER:
        return min(one, other)
    match name:
        case "type":
            if {one, other} == {"INTEGER", "NUMBER"}:
                return "INTEGER"
            losses.append(Loss(at, f"is of type {one.lower()} and {other.lower()} at once; the first is taken"))
            return one
        case "properties":
            shared = {key: merge(one[key], other[key], f"{at}/properties/{key}", losses) for key in one if key in other}
            return {**one, **other, **shared}
        case "required":
            return [*one, *(key for key in other if key not in one)]
        case "enum":
            return [value for value in one if value in other] or one
        case "items":
            return merge(one, other, f"{at}/items", losses)
        case "nullable":
            return one and other
        case "additionalProperties":
            # The properties of both parts are known by now: what one of them forbids may stand in the other.
            if isinstance(one, dict):
                return cast("Schema", one)
            return True if one and other is True else other
        case _:
            losses.append(Loss(at, f"has two values for {name}; the first is taken"))
            return one


def _closed_to(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    """Whether `one` forbids properties that `other` describes."""
    strange = set(other.get("properties", ())) - set(one.get("properties", ()))
    return bool(strange) and one.get("additionalProperties", True) is not True


def _meet(one: Mapping[str, Any], other: Mapping[str, Any]) -> bool:
    kinds = {one.get("type"), other.get("type")}
    return None in kinds or len(kinds) == 1 or kinds == {"INTEGER", "NUMBER"}


def _nullable(first: Mapping[str, Any], second: Mapping[str, Any]) -> Schema:
    """Null is allowed where each part that speaks of types allows it."""
    speaking = [part for part in (first, second) if "type" in part or "anyOf" in part or "nullable" in part]
    return {"nullable": True} if speaking and all(part.get("nullable") for part in speaking) else {}


def _without(schema: Mapping[str, Any]) -> Schema:
    return {name: value for name, value in schema.items() if name != "anyOf"}


def _without_notes(schema: Mapping[str, Any]) -> Schema:
    return {name: value for name, value in schema.items() if name not in _NOTES and name != "nullable"}


def _notes(schema: Mapping[str, Any]) -> Schema:
    return {name: value for name, value in schema.items() if name in _NOTES}


def finish(found: Mapping[str, Any], at: str, losses: list[Loss]) -> Schema:
    """The schema with all that the provider demands: a type, items, required fields that exist, `anyOf` alone."""
    if "anyOf" in found:
        return _finish_either(found, at, losses)
    made = dict(found)
    if "type" not in made:
        kind = _infer(made)
        if not kind:
            losses.append(Loss(at, "any value is allowed; asked for is text, a number, true or false, or an object"))
            return _finish_either({**made, "anyOf": [{"type": kind} for kind in _ANY]}, at, losses)
        made["type"] = kind
    # What is said of other types means nothing here, and the provider refuses it.
    made = {name: value for name, value in made.items() if _is_meant(name, made["type"])}
    if made["type"] == "NULL":
        made.pop("nullable", None)
    if made["type"] == "ARRAY" and "items" not in made:
        losses.append(Loss(at, "items of any kind are allowed; asked for are texts"))
        made["items"] = {"type": "STRING"}
    if "required" in made:
        properties: Mapping[str, Any] = made.get("properties", {})
        missing = [name for name in made["required"] if name not in properties]
        if missing:
            listed = ", ".join(missing)
            losses.append(Loss(f"{at}/required", f"{listed}: required, but not described, so it is not asked for"))
        made["required"] = [name for name in made["required"] if name in properties]
        if not made["required"]:
            del made["required"]
    return {name: made[name] for name in ORDER if name in made and made[name] is not None}


def _finish_either(found: Mapping[str, Any], at: str, losses: list[Loss]) -> Schema:
    """Beside `anyOf` nothing else may stand: all of it goes into each alternative, as far as it is meant for it."""
    beside = _without(found)
    branches: list[Schema] = []
    for number, branch in enumerate(found["anyOf"]):
        kind: str = branch.get("type", "")
        fitting = {name: value for name, value in beside.items() if _is_meant(name, kind) and name != "nullable"}
        whole = merge(branch, fitting, at, losses)
        if found.get("nullable") or branch.get("nullable"):
            whole["nullable"] = True
        branches.append(finish(whole, f"{at}/anyOf/{number}", losses))
    flat = [inner for branch in branches for inner in branch.get("anyOf", (branch,))]
    distinct = [branch for number, branch in enumerate(flat) if branch not in flat[:number]]
    return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}


def _is_meant(name: str, kind: str) -> bool:
    owners: Sequence[str] = [owner for owner, names in _MEANT_FOR.items() if name in names]
    return not owners or not kind or ("NUMBER" if kind == "INTEGER" else kind) in owners


def _infer(schema: Mapping[str, Any]) -> str:
    for kind, names in _MEANT_FOR.items():
        if names & set(schema):
            return kind
    return ""
