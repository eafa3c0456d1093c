"""Schemas of arguments for providers that want a plain object at the root: no alternatives, no reference there.

    plain = plain_schema(tool.input_schema, f"tools[{i}].input_schema", WITHOUT_CHOICES)
    plain.fragment                                   # for `orjson.dumps`; the text as it was, unless it was rewritten
    for loss in plain.losses: …                      # a warning at `loss.field`, which has path and JSON pointer

What is rewritten with the same meaning is no loss: a reference at the root, parts that all hold (`allOf`), one
alternative only. Alternatives of whole arguments become one object with the fields of all of them, which allows more
than before: that is a loss, and told.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, cast
from urllib.parse import unquote

import orjson

from maestro_sdk.adapter.schema_check import MAX_DEPTH, NAMED_SCHEMAS, SCHEMA, SCHEMAS, pointer_to, resolve
from maestro_sdk.adapter.tool_schema import MAX_CACHED_TEXT, parse_schema, schema_fragment
from maestro_sdk.errors import UnsupportedParameter, Violation

_REMARKS = frozenset({"$comment", "$id", "$schema", "default", "deprecated", "description", "examples", "title"})
_DEFINITIONS = frozenset({"$defs", "definitions"})
MAX_NODES = 5000
"""Schemas within one once its references are written out."""
MEANINGFUL = frozenset(
    {"additionalProperties", "allOf", "anyOf", "const", "dependentRequired", "dependentSchemas", "else", "enum", "if"}
    | {"maxProperties", "minProperties", "not", "oneOf", "patternProperties", "propertyNames", "then"}
    | {"unevaluatedProperties"}
)
"""Keywords at the root of arguments that allow or forbid something."""


@dataclass(frozen=True, slots=True)
class Limits:
    """What a provider refuses in the schema of a tool's arguments."""

    root: frozenset[str] = frozenset()
    """Keywords that may not stand at the root."""
    keys: frozenset[str] = frozenset()
    """Keywords that alone may stand at the root; empty means all."""
    references: bool = True
    """Whether `$ref` is read; where it isn't, what it refers to is written in its place."""
    items: bool = False
    """Whether each array needs `items`, and the root `properties`."""
    booleans: bool = True
    """Whether true and false may stand for a schema."""
    names: str = ""
    """Regular expression of the names that fields of the root may have; empty means any. Arguments come back under the
    same names, so a field with another name is left out, and one that is required is refused."""


WITHOUT_CHOICES = Limits(frozenset({"allOf", "anyOf", "oneOf"}))


@dataclass(frozen=True, slots=True)
class Loss:
    """What the rewritten schema no longer says."""

    field: str
    """Path of the field, "#", and the JSON pointer in the schema as it was given."""
    message: str


@dataclass(frozen=True, slots=True)
class PlainSchema:
    """The schema that can be sent. `document` is shared: copy it before changing it."""

    document: Mapping[str, Any]
    fragment: orjson.Fragment
    losses: Sequence[Loss] = ()


def plain_schema(text: str, path: str, limits: Limits) -> PlainSchema:
    """The arguments' schema at `path` within `limits`.

    Raises as `parse_schema` does, and `UnsupportedParameter` for a field whose name the provider does not take.
    """
    document = parse_schema(text, path)
    made = (_rewrite if len(text) <= MAX_CACHED_TEXT else _rewrite.__wrapped__)(text, limits)
    if made.refused:
        violations = [Violation(f"{path}#{pointer}", why) for pointer, why in made.refused]
        raise UnsupportedParameter("; ".join(f"{v.field}: {v.message}" for v in violations), violations=violations)
    if made.document is None:
        return PlainSchema(document, schema_fragment(text, path))
    losses = tuple(Loss(f"{path}#{pointer}", why) for pointer, why in made.losses)
    return PlainSchema(made.document, made.fragment, losses)


@dataclass(frozen=True, slots=True)
class _Rewritten:
    """`document` is None where nothing had to be rewritten."""

    document: Mapping[str, Any] | None
    fragment: orjson.Fragment
    losses: Sequence[tuple[str, str]] = ()
    refused: Sequence[tuple[str, str]] = ()


_NOTHING = _Rewritten(None, orjson.Fragment(b"null"))


@lru_cache(maxsize=512)
def _rewrite(text: str, limits: Limits) -> _Rewritten:
    # An agent sends the same schemas with each of its turns.
    given = parse_schema(text, "")
    rewriter = _Rewriter(given, limits)
    made = rewriter.root()
    if rewriter.refused:
        return _Rewritten(None, _NOTHING.fragment, refused=rewriter.refused)
    if limits.items or not limits.booleans:
        made = cast("dict[str, Any]", _filled(made, limits))
    if limits.items:
        made.setdefault("properties", {})
    if made == given:
        return _NOTHING
    return _Rewritten(made, orjson.Fragment(orjson.dumps(made)), tuple(rewriter.losses))


@dataclass(slots=True)
class _Rewriter:
    """Makes one plain object of a root."""

    document: Mapping[str, Any]
    limits: Limits
    losses: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    refused: list[tuple[str, str]] = field(default_factory=list[tuple[str, str]])
    nodes: int = 0
    depth: int = 0

    def root(self) -> dict[str, Any]:
        limits = self.limits
        made = self._flat(self.document, "", ("#",))
        if not limits.references:
            bare = {name: value for name, value in made.items() if name not in _DEFINITIONS}
            made = cast("dict[str, Any]", self._written_out(bare, "", ()))
        for keyword in sorted(limits.root & made.keys()):
            # `enum`, `const` and `not` of whole arguments; choices are gone by now.
            del made[keyword]
            self._lose(f"/{keyword}", f"{keyword} can't stand at the root here; it is not enforced")
        if limits.references:
            made = {name: value for name, value in made.items() if name not in _DEFINITIONS}
            made |= {name: self.document[name] for name in _DEFINITIONS if name in self.document}
        made["type"] = "object"
        for keyword in [name for name in made if limits.keys and name not in limits.keys]:
            if keyword in MEANINGFUL and not (keyword == "additionalProperties" and made[keyword] in (True, {})):
                self._lose(pointer_to(keyword), f"{keyword} can't stand at the root here; it is not enforced")
            del made[keyword]
        if limits.names:
            self._drop_names(made)
        return made

    def _drop_names(self, made: dict[str, Any]) -> None:
        fits = re.compile(self.limits.names).fullmatch
        for name in [name for name in made.get("properties", ()) if not fits(name)]:
            why = f"the provider takes only names like {self.limits.names}"
            if name in made.get("required", ()):
                self.refused.append((pointer_to("properties", name), f"has to be given, but {why}; rename it"))
            else:
                self._lose(pointer_to("properties", name), f"is left out: {why}")
                made["properties"] = {key: value for key, value in made["properties"].items() if key != name}

    def _written_out(self, schema: Any, at: str, trail: Sequence[str]) -> Any:
        """The schema with all references replaced by what they name; `trail` are those that led here."""
        self.depth += 1
        try:
            return self._write_out(schema, at, trail) if self._counted(at) else {}
        finally:
            self.depth -= 1

    def _write_out(self, schema: Any, at: str, trail: Sequence[str]) -> Any:
        if not isinstance(schema, dict):
            return schema
        node = cast("dict[str, Any]", schema)
        reference = node.get("$ref")
        if isinstance(reference, str):
            beside = {name: value for name, value in node.items() if name != "$ref"}
            if reference in trail:
                self._lose(f"{at}/$ref", f"refers back to {reference}: the recursion ends here, with any value")
                return self._written_out(beside, at, trail)
            target = resolve(self.document, reference)
            made: Any = self._written_out(target, unquote(reference[1:]), (*trail, reference))
            if not beside:
                return made
            rest: dict[str, Any] = self._written_out(beside, at, trail)
            if isinstance(made, dict) and set(rest) <= _REMARKS:
                return {**cast("dict[str, Any]", made), **rest}
            return {"allOf": [cast("Any", made), rest]}
        made_node: dict[str, Any] = {}
        value: Any
        for keyword, value in node.items():
            here = at + pointer_to(keyword)
            if keyword in _DEFINITIONS:
                continue
            if keyword in NAMED_SCHEMAS:
                made_node[keyword] = {
                    name: self._written_out(below, here + pointer_to(name), trail) for name, below in value.items()
                }
            elif keyword in SCHEMA or keyword == "items":
                made_node[keyword] = self._written_out(value, here, trail)
            elif keyword in SCHEMAS:
                made_node[keyword] = [self._written_out(below, f"{here}/{n}", trail) for n, below in enumerate(value)]
            else:
                made_node[keyword] = value
        return made_node

    def _counted(self, at: str) -> bool:
        """Counts a schema; false once there are too many: references can make a small text endless."""
        self.nodes += 1
        if (self.nodes > MAX_NODES or self.depth > MAX_DEPTH) and not self.refused:
            self.refused.append((at, "there are too many schemas once references are written out"))
        return not self.refused

    def _forbids(self, keyword: str) -> bool:
        return keyword in self.limits.root or bool(self.limits.keys and keyword not in self.limits.keys)

    def _lose(self, pointer: str, why: str) -> None:
        if (pointer, why) not in self.losses:
            self.losses.append((pointer, why))

    def _flat(self, schema: Mapping[str, Any], at: str, trail: Sequence[str]) -> dict[str, Any]:
        """The schema without a reference and forbidden choices at its top; `trail` are references that led here."""
        made = dict(schema)
        if not self._counted(at):
            return made
        while "$ref" in made:
            reference = made.pop("$ref")
            if len(trail) > MAX_DEPTH:
                self.refused.append((f"{at}/$ref", f"is the end of a chain of more than {MAX_DEPTH} references"))
                break
            if reference in trail:
                self._lose(f"{at}/$ref", f"refers back to {reference}, which adds nothing")
                break
            trail = (*trail, reference)
            target = resolve(self.document, reference)
            if isinstance(target, dict):
                below = {k: v for k, v in cast("dict[str, Any]", target).items() if k not in _DEFINITIONS}
                made = self._both(made, below, at)
            elif target is False:
                self._lose(f"{at}/$ref", "that no arguments are allowed can't be said here")
        if "allOf" in made and self._forbids("allOf"):
            parts: list[Any] = made.pop("allOf")
            for number, part in enumerate(parts):
                if isinstance(part, dict):
                    below = self._flat(cast("dict[str, Any]", part), f"{at}/allOf/{number}", trail)
                    made = self._both(made, below, f"{at}/allOf/{number}")
                elif not part:
                    self._lose(f"{at}/allOf/{number}", "that no arguments are allowed can't be said here")
        for keyword in ("anyOf", "oneOf"):
            if keyword in made and self._forbids(keyword):
                branches: list[Any] = made.pop(keyword)
                made = self._either(made, branches, f"{at}/{keyword}", trail)
        return made

    def _either(self, base: dict[str, Any], branches: Sequence[Any], at: str, trail: Sequence[str]) -> dict[str, Any]:
        objects: list[dict[str, Any]] = []
        for number, branch in enumerate(branches):
            if branch is True:
                objects.append({})
            elif isinstance(branch, dict):
                flat = self._flat(cast("dict[str, Any]", branch), f"{at}/{number}", trail)
                if _takes_objects(flat):  # Arguments are an object: other alternatives never held.
                    objects.append(flat)
        if len(objects) == 1:
            return self._both(base, objects[0], f"{at}/0")
        if not objects or all(branch == objects[0] for branch in objects):
            return self._both(base, objects[0], at) if objects else base
        if any(set(branch) - _REMARKS - {"type"} for branch in objects):
            self._lose(
                at, "alternatives of whole arguments can't stand at the root here: their fields are put together"
            )
        properties: dict[str, Any] = dict(base.get("properties", {}))
        own = frozenset(properties)
        for branch in objects:
            for name, schema in branch.get("properties", {}).items():
                properties[name] = schema if name not in properties else _any_of(properties[name], schema)
        for name in own:
            # The base holds as well, whatever an alternative says of the field.
            properties[name] = base["properties"][name]
        common = set[str].intersection(*(set(branch.get("required", ())) for branch in objects))
        required = [*base.get("required", ()), *sorted(common - set(base.get("required", ())))]
        made = {name: value for name, value in base.items() if name not in {"properties", "required"}}
        if "description" not in made:
            texts = [branch["description"] for branch in objects if branch.get("description")]
            if texts:
                made["description"] = " Or: ".join(texts)
        if properties:
            made["properties"] = properties
        if required:
            made["required"] = required
        if all(branch.get("additionalProperties") is False for branch in objects):
            made.setdefault("additionalProperties", False)
        if made.get("additionalProperties") is False and "properties" in base and own != properties.keys():
            del made["additionalProperties"]
        return made

    def _both(self, first: Mapping[str, Any], second: Mapping[str, Any], at: str) -> dict[str, Any]:
        """What holds where both hold; for remarks the first one's stand."""
        first, second = self._closed(first, second, at)
        made = dict(first)
        for name, value in second.items():
            if name not in made:
                made[name] = value
            elif made[name] == value or name in _REMARKS or name in _DEFINITIONS:
                continue
            elif name == "properties":
                made[name] = {**made[name], **value}
                for shared in first[name].keys() & value.keys():
                    if first[name][shared] != value[shared]:
                        made[name][shared] = {"allOf": [first[name][shared], value[shared]]}
            elif name == "required":
                made[name] = [*made[name], *(field for field in value if field not in made[name])]
            elif name in {"anyOf", "oneOf", "allOf"}:
                made["allOf"] = [*made.get("allOf", ()), {name: value}]
            else:
                self._lose(f"{at}/{name}", f"{name} can't be said twice at the root; the first one holds")
        return made

    def _closed(
        self, first: Mapping[str, Any], second: Mapping[str, Any], at: str
    ) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
        """Both, without `additionalProperties` where it would forbid what only the other one describes."""
        for part, other in ((first, second), (second, first)):
            strange = set(other.get("properties", {})) - set(part.get("properties", {}))
            if strange and part.get("additionalProperties", True) not in (True, {}):
                why = "that other fields are not allowed can't be said here beside what holds as well"
                self._lose(f"{at}/additionalProperties", why)
                return _without_extra(first), _without_extra(second)
        return first, second


def _without_extra(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    return {name: value for name, value in schema.items() if name != "additionalProperties"}


def _takes_objects(schema: Mapping[str, Any]) -> bool:
    kind = schema.get("type", "object")
    return kind == "object" or (isinstance(kind, list) and "object" in kind)


def _any_of(first: Any, second: Any) -> Any:
    """A schema that holds where one of both holds."""
    if first == second:
        return first
    known: list[Any] = [first]
    if isinstance(first, dict) and list(cast("dict[str, Any]", first)) == ["anyOf"]:
        known = cast("dict[str, Any]", first)["anyOf"]
    return {"anyOf": known if second in known else [*known, second]}


def _filled(schema: Any, limits: Limits) -> Any:
    """The same schema, with `items` where there are none, and objects for booleans, as far as `limits` want it."""
    if not isinstance(schema, dict):
        return schema if limits.booleans or not isinstance(schema, bool) else ({} if schema else {"not": {}})
    made: dict[str, Any] = {}
    for keyword, value in cast("dict[str, Any]", schema).items():
        if keyword in NAMED_SCHEMAS:
            made[keyword] = {name: _filled(below, limits) for name, below in value.items()}
        elif keyword == "additionalProperties" and isinstance(value, bool):
            made[keyword] = value  # Everybody takes these two words here.
        elif keyword in SCHEMA or keyword == "items":
            made[keyword] = _filled(value, limits)
        elif keyword in SCHEMAS:
            made[keyword] = [_filled(below, limits) for below in value]
        else:
            made[keyword] = value
    kind = made.get("type")
    if limits.items and "items" not in made and (kind == "array" or (isinstance(kind, list) and "array" in kind)):
        made["items"] = {}
    return made
