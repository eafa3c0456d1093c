"""Schemas that a provider enforces to the letter, and only within a subset of JSON Schema.

    strict = fit_strict(tool.input_schema, plain.document, subset)
    if strict.document is None: …                    # `strict.reasons`: JSON pointer and why, one each

A schema is written anew only where the same values meet it afterwards: a keyword that says nothing, alternatives of
which one at most can hold, a type that the values tell. Defaults and examples, which the subset has no place for, go
into the description. Whatever else is outside the subset is a reason, and the schema can't be enforced.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast

import orjson

from maestro_sdk.adapter.schema_check import pointer_to, resolve
from maestro_sdk.adapter.tool_schema import MAX_CACHED_TEXT

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class StrictSubset:
    """What a provider enforces. All objects are closed and demand all their fields; the root is an object."""

    keywords: frozenset[str]
    """Those it knows, beside those for structure: `$ref`, definitions, `anyOf`, `properties`, `items`, …"""
    formats: frozenset[str]
    properties: int
    """How many fields a schema may have in all."""
    levels: int
    """How deep objects and arrays may stand in each other."""
    values: int
    """How many values enums may have in all."""
    text: int
    """How many characters names and values may have in all."""


OPENAI_STRICT = StrictSubset(
    keywords=frozenset({"const", "description", "enum", "format", "pattern", "title"})
    | {"exclusiveMaximum", "exclusiveMinimum", "maxItems", "maximum", "minItems", "minimum", "multipleOf"},
    formats=frozenset({"date", "date-time", "duration", "email", "hostname", "ipv4", "ipv6", "time", "uuid"}),
    properties=5000,
    levels=10,
    values=1000,
    text=120_000,
)
"""OpenAI's "Structured Outputs", supported schemas; Azure enforces the same."""

_STRUCTURE = frozenset({"$ref", "$schema", "additionalProperties", "anyOf", "items", "properties", "required", "type"})
_DEFINITIONS = ("$defs", "definitions")
_TOLD = ("default", "examples", "example")
_SILENT = frozenset({"$anchor", "$comment", "$id", "deprecated", "readOnly", "writeOnly"})
"""Remarks for people and for tools."""
_REMARKS = frozenset({"description", "title", *_TOLD, *_SILENT})
_EMPTY: Mapping[str, Callable[[Any, Json], bool]] = {
    "contains": lambda value, node: value in (True, {}) and node.get("minContains") == 0,
    "dependentRequired": lambda value, _: not value,
    "dependentSchemas": lambda value, _: not value,
    "else": lambda _, node: "if" not in node,
    "if": lambda _, node: "then" not in node and "else" not in node,
    "maxContains": lambda _, node: "contains" not in node,
    "minContains": lambda _, node: "contains" not in node,
    "minLength": lambda value, _: value == 0,
    "minProperties": lambda value, node: value <= len(node.get("required", ())),
    "not": lambda value, _: value is False,
    "patternProperties": lambda value, _: not value,
    "propertyNames": lambda value, _: value in (True, {}),
    "then": lambda _, node: "if" not in node,
    "unevaluatedItems": lambda value, _: value in (True, {}),
    "unevaluatedProperties": lambda value, _: value in (True, {}),
    "uniqueItems": lambda value, _: value is False,
}
"""When a keyword says nothing: what is left out then was never obeyed by anybody."""


@dataclass(frozen=True, slots=True)
class Strict:
    """The schema to send, or None and the reasons why there is none: JSON pointers, and what stands against it."""

    document: Json | None
    reasons: Sequence[tuple[str, str]] = ()


def fit_strict(text: str, document: Json, subset: StrictSubset) -> Strict:
    """`document`, a sound schema made of `text` in one way only, within `subset`. Shared by all who ask: copy first."""
    key = _Key(text, document, subset)
    return _fit(key) if len(text) <= MAX_CACHED_TEXT else _fit.__wrapped__(key)


class _Key:
    """The same text and subset are the same key; the document is what was made of the text."""

    __slots__ = ("_hash", "document", "subset", "text")

    def __init__(self, text: str, document: Json, subset: StrictSubset) -> None:
        self.text, self.document, self.subset = text, document, subset
        self._hash = hash(text)

    def __hash__(self) -> int:
        return self._hash

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, _Key)
            and self.text == other.text
            and self.subset is other.subset
            and (self.document is other.document or self.document == other.document)
        )


@lru_cache(maxsize=512)
def _fit(key: _Key) -> Strict:
    # An agent sends the same schemas with each of its turns.
    root: Json = key.document
    if not key.text or key.text.isspace():
        # A tool without arguments has none: so the contract says, though the schema for it would take any.
        root = {"type": "object", "properties": {}, "additionalProperties": False}
    fitting = _Fitting(root, key.subset)
    root = fitting.plain_root()
    made = fitting.fit(root, "")
    if root.get("type") != "object":
        fitting.refuse("", "is not an object, with its type, at the root")
    elif "anyOf" in made:
        fitting.refuse("", "alternatives can't stand at the root")
    if not fitting.reasons:
        fitting.measure(made)
        if made != root:
            fitting.follow(made)
    if fitting.reasons:
        return Strict(None, tuple(fitting.reasons))
    return Strict(key.document if made == key.document else made)


@dataclass(slots=True)
class _Fitting:
    """One schema on its way."""

    root: Json
    subset: StrictSubset
    reasons: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])

    def refuse(self, pointer: str, why: str) -> None:
        """Notes what stands against the schema."""
        self.reasons.append((pointer, why))

    def plain_root(self) -> Json:
        """The root, with what it refers to in the place of a reference: it has to tell its type itself."""
        root, seen = self.root, set[str]()
        while "$ref" in root:
            reference = root["$ref"]
            rest = {name: value for name, value in root.items() if name != "$ref"}
            target = resolve(self.root, reference)
            if not isinstance(target, dict) or reference in seen or set(rest) - {*_DEFINITIONS, *_SILENT, "$schema"}:
                break
            seen.add(reference)
            root = {**cast("dict[str, Any]", target), **rest}
        return root

    def fit(self, schema: Any, at: str) -> dict[str, Any]:
        """The schema at the pointer `at`; what is made of one that does not fit is of no use."""
        if not isinstance(schema, dict):
            self.refuse(at, "allows everything" if schema else "allows nothing")
            return {}
        node = self._single(cast("dict[str, Any]", schema))
        made: dict[str, Any] = {}
        for keyword, value in node.items():
            here = at + pointer_to(keyword)
            if keyword in _SILENT or keyword in _TOLD:
                continue
            if keyword in _DEFINITIONS or keyword == "properties":
                made[keyword] = {name: self.fit(below, here + pointer_to(name)) for name, below in value.items()}
            elif keyword == "anyOf" or (keyword == "oneOf" and "anyOf" not in node):
                if keyword == "oneOf" and not self._excluding(value):
                    self.refuse(here, "oneOf can't be enforced, and more than one of these may hold")
                made["anyOf"] = [self.fit(below, f"{here}/{number}") for number, below in enumerate(value)]
            elif keyword == "items":
                made[keyword] = self.fit(value, here)
            elif keyword in _EMPTY and _EMPTY[keyword](value, node):
                continue
            elif keyword in _STRUCTURE or keyword in self.subset.keywords:
                made[keyword] = value
            else:
                self.refuse(here, f"{keyword} can't be enforced")
        _tell(node, made)
        self._finish(made, at)
        return made

    @staticmethod
    def _single(node: dict[str, Any]) -> dict[str, Any]:
        """The schema without a choice of one, as far as that stands alone; `$ref` beside remarks becomes such one."""
        for keyword in ("allOf", "anyOf", "oneOf"):
            inner: Any = node.get(keyword)
            if isinstance(inner, list) and len(cast("list[Any]", inner)) == 1 and isinstance(inner[0], dict):
                rest = {name: value for name, value in node.items() if name != keyword}
                below = cast("dict[str, Any]", inner[0])
                if set(rest) <= _REMARKS and "$ref" not in below and not rest.keys() & below.keys():
                    return _Fitting._single({**below, **rest})
                if set(rest) <= _REMARKS:
                    return {**rest, "anyOf": [below]}
        if "$ref" in node and len(node) > 1:
            rest = {name: value for name, value in node.items() if name not in {"$ref", *_SILENT}}
            if rest and set(rest) <= _REMARKS:
                return {**rest, "anyOf": [{"$ref": node["$ref"]}]}
        return node

    def _finish(self, made: dict[str, Any], at: str) -> None:
        """Completes what the subset demands of each schema, or says what is not there."""
        if "$ref" in made:
            if len(set(made) - set(_DEFINITIONS)) > 1:
                self.refuse(f"{at}/$ref", "nothing can stand beside $ref")
            return
        if "type" not in made and "anyOf" not in made:
            kinds = _kinds_of(made)
            if not kinds:
                self.refuse(at, "has no type")
                return
            made["type"] = kinds[0] if len(kinds) == 1 else kinds
        kind: Any = made.get("type", ())
        kinds = [kind] if isinstance(kind, str) else kind
        if "format" in made and made["format"] not in self.subset.formats:
            self.refuse(f"{at}/format", f"the format {made['format']!r} can't be enforced")
        if "array" in kinds and "items" not in made:
            self.refuse(at, "items says nothing of what is in the array")
        if "object" in kinds:
            self._close(made, at)

    def _close(self, made: dict[str, Any], at: str) -> None:
        if made.get("additionalProperties") == {"not": {}}:
            made["additionalProperties"] = False
        if made.get("additionalProperties") is not False:
            self.refuse(f"{at}/additionalProperties", "is not false, so that other fields are allowed")
        properties: Json = made.setdefault("properties", {})
        required: list[str] = made.setdefault("required", [])
        for name in properties:
            if name not in required:
                self.refuse(at + pointer_to("properties", name), "may be left out, as it is not in required")
        for number, name in enumerate(required):
            if name not in properties:
                self.refuse(f"{at}/required/{number}", f"{name!r} is not among the properties")

    def _excluding(self, branches: Sequence[Any]) -> bool:
        """Whether one at most of these can hold, as far as it is plain to see."""
        seen = [self._resolved(branch) for branch in branches]
        return all(_exclude(one, other) for number, one in enumerate(seen) for other in seen[:number])

    def _resolved(self, schema: Any) -> Any:
        for _ in range(8):
            if not isinstance(schema, dict) or "$ref" not in schema:
                break
            schema = resolve(self.root, cast("dict[str, Any]", schema)["$ref"])
        return cast("Any", schema)

    def measure(self, made: Json) -> None:
        """Holds the whole schema against the limits of its size."""
        subset = self.subset
        nodes = list(_walk(made))
        names = [name for node in nodes for name in node.get("properties", ())]
        values = [value for node in nodes for value in node.get("enum", ())]
        text = sum(map(len, names)) + sum(len(name) for key in _DEFINITIONS for name in made.get(key, ()))
        constants = [node["const"] for node in nodes if "const" in node]
        text += sum(len(value) for value in (*values, *constants) if isinstance(value, str))
        levels = max(_levels(start) for start in (made, *(s for k in _DEFINITIONS for s in made.get(k, {}).values())))
        for found, most, what in (
            (len(names), subset.properties, "fields"),
            (len(values), subset.values, "values of enums"),
            (text, subset.text, "characters in names and values"),
            (levels, subset.levels, "levels"),
        ):
            if found > most:
                self.refuse("", f"has {found} {what}, of which {most} can be enforced")

    def follow(self, made: Json) -> None:
        """Refuses references into alternatives, which may stand elsewhere by now, and such that lead nowhere."""
        for reference in [node["$ref"] for node in _walk(made) if "$ref" in node]:
            if {"allOf", "anyOf", "oneOf"} & {*reference.split("/")} or not isinstance(resolve(made, reference), dict):
                self.refuse("", f"{reference} refers to a place that had to be rewritten")


def _tell(node: Json, made: dict[str, Any]) -> None:
    """Puts defaults and examples into the description: values are the same with and without them."""
    told = [f"{name}: {orjson.dumps(node[name]).decode()}" for name in _TOLD if node.get(name) is not None]
    if told:
        text = "{" + ", ".join(told) + "}"
        made["description"] = f"{made['description']} {text}" if made.get("description") else text


def _kinds_of(node: Json) -> list[str]:
    """The types of the values that `enum` or `const` allow."""
    values: Sequence[Any] = [node["const"]] if "const" in node else node.get("enum", ())
    return sorted({kind for value in values for kind in (_kind_of(value),)})


def _kind_of(value: Any) -> str:
    match value:
        case None:
            return "null"
        case bool():
            return "boolean"
        case int() | float():
            return "number"
        case str():
            return "string"
        case list():
            return "array"
        case _:
            return "object"


def _exclude(one: Any, other: Any) -> bool:
    """Whether no value meets both."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return one is False or other is False
    first, second = cast("dict[str, Any]", one), cast("dict[str, Any]", other)
    kinds, others = _possible(first), _possible(second)
    if kinds is None or others is None:
        return False
    if not kinds & others:
        return True
    values, more = _values(first), _values(second)
    if values is not None and more is not None and not values & more:
        return True
    if kinds & others != {"object"}:
        return False
    for name in {*first.get("required", ()), *second.get("required", ())}:
        mine, theirs = first.get("properties", {}).get(name), second.get("properties", {}).get(name)
        if mine is None or theirs is None:
            # Who demands a field that the other one forbids excludes it.
            closed = first if mine is None else second
            if (mine is None) != (theirs is None) and _is_closed(closed):
                return True
        elif name in first.get("required", ()) and name in second.get("required", ()) and _exclude_flat(mine, theirs):
            return True
    return False


def _is_closed(node: Json) -> bool:
    return node.get("additionalProperties") is False and not node.get("patternProperties")


def _exclude_flat(one: Any, other: Any) -> bool:
    """As `_exclude`, for a field that tells alternatives apart: by its values, or by its type."""
    if not isinstance(one, dict) or not isinstance(other, dict):
        return False
    first, second = cast("dict[str, Any]", one), cast("dict[str, Any]", other)
    values, more = _values(first), _values(second)
    if values is not None and more is not None:
        return not values & more
    kinds, others = _possible(first), _possible(second)
    return kinds is not None and others is not None and not kinds & others


def _possible(node: Json) -> set[str] | None:
    """The types that values may have, None for any; an integer is a number."""
    kind: Any = node.get("type")
    if kind is None:
        return set(_kinds_of(node)) or None
    kinds = {kind} if isinstance(kind, str) else set(cast("list[str]", kind))
    return {"number" if each == "integer" else each for each in kinds}


def _values(node: Json) -> set[bytes] | None:
    """The values that `enum` or `const` allow, as text; None where neither tells. 1 and 1.0 are one value."""
    if "const" not in node and "enum" not in node:
        return None
    values: Sequence[Any] = [node["const"]] if "const" in node else node["enum"]
    plain = [int(value) if isinstance(value, float) and value.is_integer() else value for value in values]
    return {orjson.dumps(value, option=orjson.OPT_SORT_KEYS) for value in plain}


def _walk(schema: Any) -> Iterator[Json]:
    """All schemas of one that fits."""
    if isinstance(schema, dict):
        node = cast("dict[str, Any]", schema)
        yield node
        for keyword in ("properties", *_DEFINITIONS):
            for below in node.get(keyword, {}).values():
                yield from _walk(below)
        for below in (*node.get("anyOf", ()), node.get("items")):
            yield from _walk(below)


def _levels(schema: Any) -> int:
    """How deep objects and arrays stand in each other; references are not followed."""
    if not isinstance(schema, dict):
        return 0
    node = cast("dict[str, Any]", schema)
    kind: Any = node.get("type", ())
    own = 1 if {"object", "array"} & {*((kind,) if isinstance(kind, str) else kind)} else 0
    below = (*node.get("properties", {}).values(), node.get("items"), *node.get("anyOf", ()))
    return own + max((_levels(inner) for inner in below), default=0)
