"""Values that meet a JSON Schema and values that just don't, to tell whether two schemas judge them alike."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import Any, cast

import jsonschema
from jsonschema.validators import validator_for

from maestro_sdk.adapter.schema_check import Check

MOST = 400
"""Values per schema."""
_PER_NODE = 10
_DEEP = 5
_STRANGERS: tuple[Any, ...] = ("x", 7, 0.5, True, None, [], {})
_TEXTS = ("", "a", "abc", "12345", "2026-01-31", "2026-01-31T10:00:00Z", "a@b.example", "https://example.com", "x-1")


class Judge:
    """Says of values whether they meet one schema; None where its expressions can't be tried here."""

    def __init__(self, schema: Any) -> None:
        self.schema = _with_null(schema)
        cls: Any = validator_for(self.schema, default=jsonschema.Draft202012Validator)
        self.validator: Any = cls(self.schema)

    def judge(self, value: Any, schema: Any = None) -> bool | None:
        """Whether `value` meets the schema, or one inside it."""
        judging = self.validator if schema is None else self.validator.evolve(schema=schema)
        try:
            return bool(judging.is_valid(value))
        except (re.error, RecursionError):
            return None


def _with_null(schema: Any) -> Any:
    """OpenAPI's `nullable` as JSON Schema says it: whoever writes it means it."""
    if isinstance(schema, list):
        return [_with_null(inner) for inner in cast("list[Any]", schema)]
    if not isinstance(schema, dict):
        return schema
    made = {name: _with_null(value) for name, value in cast("dict[str, Any]", schema).items()}
    if made.pop("nullable", None) is not True:
        return {**made, "nullable": schema["nullable"]} if isinstance(schema.get("nullable"), dict) else made
    return {"anyOf": [made, {"type": "null"}]}


def instances(schema: Any) -> list[Any]:
    """Values at and around what `schema` allows, different from each other."""
    maker = _Maker(schema)
    found: dict[str, Any] = {}
    for value in maker.values(maker.judge.schema, 0):
        found.setdefault(json.dumps(value, sort_keys=True), value)
        if len(found) >= MOST:
            break
    return list(found.values())


class _Maker:
    def __init__(self, schema: Any) -> None:
        self.judge = Judge(schema)
        self._finder = Check(self.judge.schema)

    def values(self, schema: Any, depth: int) -> Iterator[Any]:
        """Candidates for one schema, good ones first as far as it is known how."""
        if not isinstance(schema, dict) or depth > _DEEP:
            yield from _STRANGERS[:3]
            return
        node = cast("dict[str, Any]", schema)
        for keyword in ("default", "const"):
            if keyword in node:
                yield node[keyword]
        yield from node.get("examples", ()) if isinstance(node.get("examples"), list) else ()
        yield from node.get("enum", ())[:_PER_NODE]
        if isinstance(node.get("$ref"), str):
            yield from self.values(self._finder.target(node["$ref"]), depth + 1)
        branches = [branch for keyword in ("anyOf", "oneOf", "allOf") for branch in node.get(keyword, ())]
        branches += [node[keyword] for keyword in ("if", "then", "else", "not") if keyword in node]
        pieces = [list(islice(self.values(branch, depth + 1), 3 * _PER_NODE)) for branch in branches]
        for piece in pieces:
            yield from piece
        objects = [value for piece in pieces for value in piece[:3] if isinstance(value, dict)]
        if len(objects) > 1:
            merged: dict[str, Any] = {}
            for value in objects:
                merged.update(value)
            yield merged
        kinds = node.get("type")
        if isinstance(kinds, str) or kinds is None:
            kinds = [kinds] if kinds else self._guess(node)
        for kind in kinds:
            yield from self._of(kind, node, objects, depth)
        yield from _STRANGERS

    @staticmethod
    def _guess(node: Mapping[str, Any]) -> list[str]:
        kinds: list[str] = []
        if node.keys() & {"properties", "required", "additionalProperties", "patternProperties", "dependentRequired"}:
            kinds.append("object")
        if node.keys() & {"items", "prefixItems", "minItems"}:
            kinds.append("array")
        if node.keys() & {"minLength", "maxLength", "pattern", "format"}:
            kinds.append("string")
        if node.keys() & {"minimum", "maximum", "exclusiveMinimum", "multipleOf"}:
            kinds.append("number")
        return kinds

    def _of(self, kind: str, node: Mapping[str, Any], parts: list[Any], depth: int) -> Iterator[Any]:
        match kind:
            case "string":
                yield from _TEXTS
                for bound in (node.get("minLength", 0), node.get("maxLength", 0)):
                    if isinstance(bound, int) and 0 < bound < 2000:
                        yield from ("b" * bound, "b" * (bound - 1), "b" * (bound + 1))
            case "integer" | "number":
                yield from (0, 1, -1, 2, 10)
                for name in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"):
                    bound = node.get(name)
                    if isinstance(bound, int | float) and not isinstance(bound, bool) and abs(bound) < 2**53:
                        yield from (bound, bound - 1, bound + 1, bound + 0.5, bound * 3)
                yield 0.25
            case "boolean":
                yield from (True, False)
            case "null":
                yield None
            case "array":
                yield from self._arrays(node, depth)
            case "object":
                yield from self._objects(node, parts, depth)
            case _:
                pass

    def _good(self, schema: Any, depth: int) -> tuple[list[Any], list[Any]]:
        """A few values that meet the schema, and a few that don't."""
        good: list[Any] = []
        bad: list[Any] = []
        for value in islice(self.values(schema, depth + 1), 4 * _PER_NODE):
            fits = self.judge.judge(value, schema)
            if fits is not None and value not in (good if fits else bad):
                (good if fits else bad).append(value)
        return good, bad

    def _arrays(self, node: Mapping[str, Any], depth: int) -> Iterator[Any]:
        yield []
        head: list[Any] = []
        places = node.get("prefixItems", node.get("items") if isinstance(node.get("items"), list) else [])
        for inner in places:
            good, bad = self._good(inner, depth)
            if bad:
                yield [*head, bad[0]]
            head.append(good[0] if good else None)
            yield list(head)
        items = node.get("items", node.get("additionalItems", True))
        good, bad = self._good(True if isinstance(items, list) else items, depth)
        for value in good[:_PER_NODE]:
            yield [*head, value]
        for value in bad[:_PER_NODE]:
            yield [*head, value]
        if good:
            yield [*head, good[0], good[0]]
            for bound in (node.get("minItems", 0), node.get("maxItems", 0)):
                if 0 < bound < 20:
                    spread = [good[number % len(good)] for number in range(bound + 1)]
                    yield from (spread, spread[:-1], spread[:-2])

    def _objects(self, node: Mapping[str, Any], parts: list[Any], depth: int) -> Iterator[Any]:
        properties: dict[str, Any] = node.get("properties", {})
        tried = {name: self._good(inner, depth) for name, inner in properties.items()}
        required = [name for name in node.get("required", ()) if isinstance(name, str)]
        base = {name: tried[name][0][0] if name in tried and tried[name][0] else "x" for name in required}
        full = {**{name: good[0] for name, (good, _) in tried.items() if good}, **base}
        yield base
        yield full
        for part in parts[:6]:
            yield {**base, **part}
            yield {**part, "zz": 1}
        for name in (*required, *[name for name in full if name not in base][:_PER_NODE]):
            yield {key: value for key, value in full.items() if key != name}
        extras = node.get("additionalProperties", True)
        values = [1, "text", None]
        if isinstance(extras, dict):
            good, bad = self._good(extras, depth)
            values += [*good[:4], *bad[:4]]
        for value in values:
            yield {**base, "zz_extra": value}
        for pattern, inner in node.get("patternProperties", {}).items():
            for name in ("x-a", "s_a", "12", "A_B"):
                if re.search(pattern, name):
                    good, bad = self._good(inner, depth)
                    yield from ({**base, name: value} for value in (*good[:2], *bad[:2]))
        many = len(properties) > 30
        for name, (good, bad) in tried.items():
            for value in (*good[: 1 if many else _PER_NODE], *bad[: 1 if many else _PER_NODE]):
                yield {**base, name: value}
