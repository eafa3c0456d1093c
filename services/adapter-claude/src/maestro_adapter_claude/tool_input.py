"""The schema of a tool's input: any JSON Schema of draft 2020-12, except at its root.

There the wire wants an object with properties: no alternatives, and names of a narrow alphabet. What is lost by that is
told at its JSON pointer. Everything else goes out as it was written, digits and order of keys included.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import orjson

from maestro_adapter_claude.schema import Loss, merge_objects
from maestro_sdk.adapter.tool_schema import parse_schema, pointer_to, resolve, schema_fragment
from maestro_sdk.errors import UnsupportedParameter, Violation

PROPERTY = re.compile(r"[a-zA-Z0-9_.-]{1,64}")
_COMBINED = ("allOf", "anyOf", "oneOf")
_MOVED = ("$ref", *_COMBINED)


@lru_cache(maxsize=512)
def fit_input(text: str, path: str) -> tuple[orjson.Fragment, Sequence[Loss]]:
    """The schema for `orjson.dumps`, and what is lost.

    Raises `InvalidRequest` for what is no schema of an object, and `UnsupportedParameter` for a property that has to be
    given under a name that the wire refuses; both at `path` and a JSON pointer.
    """
    # An agent sends the same schemas with each of its turns.
    given = parse_schema(text, path)
    properties: Mapping[str, Any] = given.get("properties", {})
    if not any(name in given for name in _MOVED) and all(PROPERTY.fullmatch(name) for name in properties):
        return schema_fragment(text, path), ()
    losses: list[Loss] = []
    made = _dereference(given)
    for name in _COMBINED:
        if name in made:
            _flatten(made, name, given, losses)
    _drop_names(made, path, losses)
    return orjson.Fragment(orjson.dumps(made)), tuple(losses)


def _dereference(given: Mapping[str, Any]) -> dict[str, Any]:
    """The root with what it refers to in it: the wire looks at the root's own properties."""
    made, target = dict(given), _object(given, given)
    met: set[str] = set()
    while isinstance(reference := made.get("$ref"), str) and reference not in met and target is not None:
        met.add(reference)
        del made["$ref"]
        made = {**target, **made}
        target = _object(made, given)
    return made


def _flatten(made: dict[str, Any], name: str, root: Mapping[str, Any], losses: list[Loss]) -> None:
    """Takes the alternatives of the root apart: all their properties may stand, what all demand has to."""
    members: list[Any] = made.pop(name)
    own = {key: made[key] for key in ("properties", "required") if key in made}
    if name == "allOf" and (merged := merge_objects([own, *members], root)) is not None:
        made.update({key: merged[key] for key in ("properties", "required", "additionalProperties") if key in merged})
        closed = any(
            isinstance(found := _object(member, root), dict)
            and found.get("additionalProperties", True) not in (True, {})
            for member in members
        )
        if closed:
            losses.append((pointer_to(name), "that one of them allows no other properties is not enforced"))
        return
    objects = [found for member in members if (found := _object(member, root)) is not None]
    properties: dict[str, Any] = dict(made.get("properties", {}))
    for member in objects:
        for key, inner in cast("Mapping[str, Any]", member.get("properties", {})).items():
            known = properties.get(key)
            properties[key] = inner if known is None or known == inner else {"anyOf": [known, inner]}
    demands: list[set[str]] = [set(member.get("required", ())) for member in objects]
    join = set[str].union if name == "allOf" else set[str].intersection
    shared = join(*demands) if demands and len(objects) == len(members) else set[str]()
    made["properties"] = properties
    if required := [*made.get("required", ()), *sorted(shared - set(made.get("required", ())))]:
        made["required"] = required
    told = f"{{{name}: {orjson.dumps(members).decode()}}}"
    made["description"] = f"{made['description']}\n\n{told}" if made.get("description") else told
    why = "can't stand at the root: the properties of all are offered, the rule itself is only told to the model"
    losses.append((pointer_to(name), why))


def _object(member: Any, root: Mapping[str, Any]) -> Mapping[str, Any] | None:
    found: Any = member
    if isinstance(found, dict) and isinstance(reference := cast("dict[str, Any]", found).get("$ref"), str):
        found = resolve(root, reference)
    return cast("Mapping[str, Any]", found) if isinstance(found, dict) else None


def _drop_names(made: dict[str, Any], path: str, losses: list[Loss]) -> None:
    kept: dict[str, Any] = {}
    for name, inner in cast("Mapping[str, Any]", made.get("properties", {})).items():
        if PROPERTY.fullmatch(name):
            kept[name] = inner
            continue
        at = pointer_to("properties", name)
        if name in made.get("required", ()):
            why = f"has to be given, but the provider takes only names like {PROPERTY.pattern}"
            field = f"{path}#{at}"
            raise UnsupportedParameter(f"{field}: {why}", violations=[Violation(field, why)])
        losses.append((at, f"is left out: the provider takes only names like {PROPERTY.pattern}"))
    made["properties"] = kept
