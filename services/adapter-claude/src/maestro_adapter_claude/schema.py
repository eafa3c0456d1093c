"""JSON Schemas as the provider enforces them: for `output_config.format`, and for tools that are `strict`.

It enforces a subset; what lies outside is rewritten. Where an answer to the rewritten schema may break the given one,
or an answer that the caller allowed is no longer possible, a loss is told at its JSON pointer. Keywords that can't be
enforced go into the description, where the model reads them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, cast

import orjson

from maestro_sdk.adapter.schema_check import Check
from maestro_sdk.adapter.tool_schema import parse_any_schema, pointer_to, resolve
from maestro_sdk.errors import UnsupportedParameter, Violation

Json = Mapping[str, Any]
Loss = tuple[str, str]
"""A JSON pointer and what is lost there."""

FORMATS = frozenset(
    ("date-time", "time", "date", "duration", "email", "hostname", "uri", "ipv4", "ipv6", "uuid"),
)
_PLAIN = re.compile(r"#/(\$defs|definitions)/[^/]+")
_STRANGE = re.compile(r"[^a-zA-Z0-9_]")
_SCALARS = (str, int, float, bool, type(None))
# These say nothing about the answer.
_REMARKS = frozenset({"$schema", "$id", "$comment", "$anchor", "deprecated", "readOnly", "writeOnly"})
_HINTS = frozenset({"default", "examples", "example"})
"""Told in the description; no answer breaks them."""
_MERGEABLE = frozenset({"type", "properties", "required", "additionalProperties", "title", "description"})
_DEFINITIONS = ("$defs", "definitions")
_ANYTHING = ("string", "number", "boolean", "null")


@lru_cache(maxsize=256)
def fit_schema(text: str, path: str) -> tuple[Json, Sequence[Loss]]:
    """The schema within the subset, and what is lost. Shared between callers: do not change it.

    Raises `InvalidRequest` for what is no schema, and `UnsupportedParameter` for what has no form inside the subset,
    references that lead in a circle or outside; both at `path` and a JSON pointer.
    """
    # An agent sends the same schemas with each of its turns.
    fitting = _Fitting(parse_any_schema(text, path), path)
    made = fitting.fit_root()
    _refuse_circles(made, path)
    return made, tuple(fitting.losses)


class _Fitting:
    """One schema on its way."""

    def __init__(self, root: Json, path: str) -> None:
        self._root = root
        self._path = path
        self._check = Check(dict(root))
        self._moved: dict[str, str] = {}
        self._merging: set[str] = set()
        self.losses: list[Loss] = []

    def fit_root(self) -> dict[str, Any]:
        """The whole schema, with what its references lead to under `$defs` or `definitions`."""
        made = self.fit(self._root, "")
        done: set[str] = set()
        while ahead := set(self._moved) - done:
            for reference in sorted(ahead):
                done.add(reference)
                definitions = made.setdefault("$defs", {})
                definitions[self._moved[reference]] = self.fit(self._check.target(reference), reference[1:])
        return made

    def fit(self, schema: Any, at: str) -> dict[str, Any]:
        """The schema at the pointer `at`."""
        if not isinstance(schema, dict):
            return self._anything(at, "allows everything" if schema else "allows nothing")
        given = cast("dict[str, Any]", schema)
        made: dict[str, Any] = {}
        for name in _DEFINITIONS:
            if name in given:
                made[name] = self._named(given[name], at + pointer_to(name))
        if "$ref" in given:
            made["$ref"] = self._reference(given["$ref"], at)
            self._lose(given, {"$ref", "title", "description", *_DEFINITIONS}, at, "beside $ref, it is not enforced")
            return made
        kind = self._kind(given)
        if isinstance(kind, list):
            return {**made, **self._each_kind(given, cast("list[str]", kind), at)}
        known = {"type", "description", "title", *_DEFINITIONS}
        for name in ("title", "description"):
            if name in given:
                made[name] = given[name]
        if kind is not None:
            made["type"] = kind
        known |= self._choices(given, made, at)
        known |= self._content(given, made, kind, at)
        if not {"type", "anyOf", "allOf", "enum", "const"} & set(made):
            anything = self._anything(at, "has no type")
            made["anyOf"] = anything["anyOf"]
        self._describe(given, made, known, at)
        return made

    @staticmethod
    def _kind(given: Json) -> Any:
        kind = given.get("type")
        if kind is None and not {"anyOf", "oneOf", "allOf", "enum", "const"} & set(given):
            if {"properties", "required", "additionalProperties"} & set(given):
                return "object"
            if "items" in given:
                return "array"
        if isinstance(kind, list) and len(cast("list[Any]", kind)) == 1:
            return cast("list[Any]", kind)[0]
        return cast("Any", kind)

    def _each_kind(self, given: Json, kinds: Sequence[str], at: str) -> dict[str, Any]:
        """Several types as alternatives: each with the keywords that mean something for it."""
        rest = {name: value for name, value in given.items() if name not in {"type", "title", "description"}}
        own = {"object": {"properties", "required", "additionalProperties"}, "array": {"items", "minItems"}}
        foreign = {kind: set[str]().union(*(names for other, names in own.items() if other != kind)) for kind in kinds}
        if "enum" in rest or "const" in rest:
            # The values say more than their types.
            return self.fit({name: value for name, value in given.items() if name != "type"}, at)
        alternatives = [
            self.fit(
                {"type": kind, **{name: value for name, value in rest.items() if name not in foreign[kind]}}
                if kind not in {"null", "boolean"}
                else {"type": kind},
                at,
            )
            for kind in kinds
        ]
        told = {name: given[name] for name in ("title", "description") if name in given}
        return {**told, "anyOf": alternatives}

    def _choices(self, given: Json, made: dict[str, Any], at: str) -> set[str]:
        known: set[str] = set()
        references = {found for member in given.get("allOf", ()) if (found := _reference_of(member))}
        if "allOf" in given and not references & self._merging:
            merged = merge_objects(given["allOf"], self._root)
            if merged is not None:
                # Each of them would forbid what the others demand, since all have to forbid what they do not name.
                before, self._merging = self._merging, self._merging | references
                made["allOf"] = [self.fit(merged, at + "/allOf")]
                self._merging = before
                known.add("allOf")
        enum = given.get("enum")
        if isinstance(enum, list) and all(isinstance(value, _SCALARS) for value in cast("list[Any]", enum)):
            made["enum"] = enum
            known.add("enum")
        if "const" in given and isinstance(given["const"], _SCALARS):
            made["const"] = given["const"]
            known.add("const")
        for name in ("anyOf", "oneOf", "allOf"):
            target = "allOf" if name == "allOf" else "anyOf"
            if name in given and name not in known and target not in made:
                here = at + pointer_to(name)
                made[target] = [self.fit(inner, here + pointer_to(n)) for n, inner in enumerate(given[name])]
                known.add(name)
                if name == "oneOf":
                    self.losses.append((here, "is sent as anyOf: more than one of them may hold"))
        return known

    def _content(self, given: Json, made: dict[str, Any], kind: object, at: str) -> set[str]:
        match kind:
            case "object":
                made["properties"] = self._named(given.get("properties", {}), at + "/properties")
                if "required" in given:
                    made["required"] = given["required"]
                if given.get("additionalProperties", False) is not False:
                    self.losses.append((at + "/additionalProperties", "only the properties that are named may stand"))
                made["additionalProperties"] = False
                return {"properties", "required", "additionalProperties"}
            case "array":
                if "items" in given:
                    made["items"] = self.fit(given["items"], at + "/items")
                if given.get("minItems") in {0, 1}:
                    made["minItems"] = given["minItems"]
                    return {"items", "minItems"}
                return {"items"}
            case "string" if given.get("format") in FORMATS:
                made["format"] = given["format"]
                return {"format"}
            case _:
                return set()

    def _named(self, schemas: Json, at: str) -> dict[str, Any]:
        return {name: self.fit(inner, at + pointer_to(name)) for name, inner in schemas.items()}

    def _anything(self, at: str, why: str) -> dict[str, Any]:
        self.losses.append((at, f"{why}: only text, numbers, booleans and null are possible"))
        return {"anyOf": [{"type": kind} for kind in _ANYTHING]}

    def _reference(self, reference: str, at: str) -> str:
        if reference == "#" or _PLAIN.fullmatch(reference):
            return reference
        if not isinstance(self._check.target(reference), dict):
            raise _unsupported(f"{self._path}#{at}/$ref", f"{reference!r} is no object within the schema")
        if reference not in self._moved:
            # The wire knows definitions only, no other place and no names.
            plain = _STRANGE.sub("_", reference.rpartition("/")[2].strip("#")) or "root"
            taken = {*self._moved.values(), *self._root.get("$defs", {})}
            name = next(found for n in range(len(taken) + 1) if (found := f"{plain}_{n}" if n else plain) not in taken)
            self._moved[reference] = name
        return f"#/$defs/{self._moved[reference]}"

    def _describe(self, given: Json, made: dict[str, Any], known: set[str], at: str) -> None:
        """Moves what can't be enforced into the description."""
        left = self._lose(given, known, at, "is not enforced, only told to the model")
        if left:
            told = "{" + ", ".join(f"{name}: {_show(value)}" for name, value in left.items()) + "}"
            made["description"] = f"{made['description']}\n\n{told}" if made.get("description") else told

    def _lose(self, given: Json, known: set[str], at: str, why: str) -> dict[str, Any]:
        left = {name: value for name, value in given.items() if name not in known and name not in _REMARKS}
        self.losses += [(at + pointer_to(name), why) for name in left if name not in _HINTS]
        return left


def _reference_of(schema: Any) -> str | None:
    """What a schema that is nothing but a reference refers to."""
    if isinstance(schema, dict) and set(cast("Json", schema)) == {"$ref"}:
        return str(cast("Json", schema)["$ref"])
    return None


def merge_objects(members: Sequence[Any], root: Json) -> dict[str, Any] | None:
    """One object with the properties of all `members`; None when they are something else, or know the same property."""
    merged: dict[str, Any] = {"type": "object", "properties": {}}
    for member in members:
        reference = _reference_of(member)
        schema: Any = member if reference is None else resolve(root, reference)
        if not isinstance(schema, dict):
            return None
        fields = cast("dict[str, Any]", schema)
        if set(fields) - _MERGEABLE or fields.get("type", "object") != "object":
            return None
        properties: Json = fields.get("properties", {})
        if set(properties) & set(merged["properties"]):
            return None
        merged["properties"] |= properties
        if "required" in fields:
            merged["required"] = list(dict.fromkeys([*merged.get("required", ()), *fields["required"]]))
        if fields.get("additionalProperties", True) is not True:
            merged["additionalProperties"] = fields["additionalProperties"]
    return merged


def _refuse_circles(schema: Json, path: str) -> None:
    """Raises for schemas that contain themselves: the provider's grammar has no recursion."""
    places: dict[str, Any] = {"#": schema}
    for name in _DEFINITIONS:
        for key, inner in cast("dict[str, Any]", schema.get(name, {})).items():
            places["#" + pointer_to(name, key)] = inner
    leads = {place: set(_references(inner, root=place == "#")) & set(places) for place, inner in places.items()}
    for place, nearest in leads.items():
        reached: set[str] = set()
        ahead = set(nearest)
        while ahead:
            step = ahead.pop()
            if step not in reached:
                reached.add(step)
                ahead |= leads[step]
        if place in reached:
            raise _unsupported(f"{path}{place}", "contains itself, and the provider enforces no recursive schema")


def _references(schema: Any, *, root: bool = False) -> list[str]:
    if isinstance(schema, list):
        return [found for inner in cast("list[Any]", schema) for found in _references(inner)]
    if not isinstance(schema, dict):
        return []
    found: list[str] = []
    for name, inner in cast("dict[str, Any]", schema).items():
        if name == "$ref" and isinstance(inner, str):
            found.append(inner)
        elif not (root and name in _DEFINITIONS):
            found += _references(inner)
    return found


def _show(value: Any) -> str:
    return value if isinstance(value, str) else orjson.dumps(value).decode()


def _unsupported(field: str, why: str) -> UnsupportedParameter:
    return UnsupportedParameter(f"{field}: {why}", violations=[Violation(field, why)])
