"""JSON Schemas in the dialect of Vertex AI: its `Schema`, a part of OpenAPI 3.0, takes no other keyword.

What can be said exactly in another way is (`$ref`, `const`, `allOf`, lists of types, exclusive bounds of integers);
what can't is left out, and told as a loss with its JSON pointer. Annotations (`$schema`, `examples`) go without a word.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast
from urllib.parse import unquote

import orjson

from maestro_adapter_vertex.dialect import KINDS, Fault, Loss, finish, merge, pointer
from maestro_sdk.adapter.tool_schema import parse_any_schema, parse_schema, resolve
from maestro_sdk.errors import InvalidRequest

MAX_NODES = 5000
"""Schemas in one tool once its references are written out."""
MAX_DEPTH = 100

_COUNTS = frozenset({"maxItems", "maxLength", "maxProperties", "minItems", "minLength", "minProperties"})
_COPIED = frozenset({"default", "maximum", "minimum", "nullable", "pattern", "propertyOrdering", "title"})
_LOST = frozenset(
    (
        *("contains", "contentEncoding", "contentMediaType", "contentSchema", "dependencies", "dependentRequired"),
        *("dependentSchemas", "else", "if", "maxContains", "minContains", "multipleOf", "not", "patternProperties"),
        *("propertyNames", "then", "unevaluatedItems", "unevaluatedProperties", "uniqueItems"),
    )
)
_FORMATS = frozenset({"byte", "date", "date-time", "double", "email", "enum", "float", "int32", "int64", "password"})
# Keywords that the provider reads in the form of an answer (`responseJsonSchema`); it passes over all others.
_READ = frozenset(
    (
        *("$anchor", "$defs", "$id", "$ref", "additionalProperties", "anyOf", "description", "enum", "format", "items"),
        *("maxItems", "maximum", "minItems", "minimum", "oneOf", "prefixItems", "properties", "propertyOrdering"),
        *("required", "title", "type"),
    )
)
_MEANINGLESS = frozenset(("$schema", "$comment", "default", "deprecated", "examples", "readOnly", "writeOnly"))


@dataclass(frozen=True, slots=True)
class Parameters:
    """A tool's arguments in the dialect, None when it has none; and what was lost on the way."""

    schema: Mapping[str, Any] | None
    losses: Sequence[Loss] = ()


def to_parameters(text: str, path: str) -> Parameters:
    """The arguments of a tool, whose schema stands at `path`. The result is shared: do not change it.

    Raises `InvalidRequest` at `path` and a JSON pointer for what is no schema, or not one of an object.
    """
    if not text:
        return Parameters(None)
    parse_schema(text, path)
    parameters, fault = _parameters(text)
    if fault is not None:
        raise InvalidRequest.at(f"{path}#{fault.pointer}" if fault.pointer else path, fault.message)
    return parameters


def check_form(text: str, path: str) -> Sequence[Loss]:
    """What of an answer's schema the provider passes over. Raises as `to_parameters`."""
    parse_any_schema(text, path)
    losses, fault = _form(text)
    if fault is not None:
        raise InvalidRequest.at(f"{path}#{fault.pointer}" if fault.pointer else path, fault.message)
    return losses


@lru_cache(maxsize=512)
def _parameters(text: str) -> tuple[Parameters, Fault | None]:
    # An agent sends the same schemas with each of its turns.
    try:
        root = _read(text)
        rewriter = _Rewriter(root)
        found = rewriter.convert(root, "", ("#",), 0)
        kind = found.setdefault("type", "OBJECT") if "anyOf" not in found else "OBJECT"
        if kind != "OBJECT":
            raise Fault("/type", f"is {kind.lower()!r}; arguments are of type 'object'")
        if "anyOf" in found:
            found = rewriter.join(found)
        found.pop("nullable", None)
        found = finish(found, "", rewriter.losses)
    except Fault as fault:
        return Parameters(None), fault
    empty = not found.get("properties") and not found.get("additionalProperties")
    return Parameters(None if empty else found, tuple(dict.fromkeys(rewriter.losses))), None


@lru_cache(maxsize=256)
def _form(text: str) -> tuple[Sequence[Loss], Fault | None]:
    try:
        root = _read(text)
        _Rewriter(root).convert(root, "", ("#",), 0)
    except Fault as fault:
        return (), fault
    losses: list[Loss] = []
    _passed_over(root, "", losses)
    return tuple(losses), None


def _read(text: str) -> dict[str, Any]:
    # Whoever calls has had it checked; the forms of older drafts are written anew.
    return dict(parse_any_schema(text, ""))


def _passed_over(node: Any, at: str, losses: list[Loss]) -> None:
    if not isinstance(node, dict):
        return
    for name, value in cast("dict[str, Any]", node).items():
        here = at + pointer(name)
        match name, value:
            case (("properties" | "$defs"), dict()):
                for key, inner in cast("dict[str, Any]", value).items():
                    _passed_over(inner, here + pointer(key), losses)
            case (("anyOf" | "oneOf" | "prefixItems"), list()):
                for number, inner in enumerate(cast("list[Any]", value)):
                    _passed_over(inner, f"{here}/{number}", losses)
            case (("items" | "additionalProperties"), dict()):
                _passed_over(value, here, losses)
            case _ if name in _READ or name in _MEANINGLESS or name.startswith("x-"):
                pass
            case _:
                losses.append(Loss(here, f"{name} is not enforced: the provider does not know it here"))


class _Rewriter:
    """Rewrites one schema, which is sound and of the newest draft; `losses` are what could not be said."""

    def __init__(self, root: Mapping[str, Any]) -> None:
        self.losses: list[Loss] = []
        self._root = root
        self._nodes = 0

    def whole(self, node: Any, at: str, refs: Sequence[str], depth: int) -> dict[str, Any]:
        """The schema at `at`, complete; `refs` are the references that led there."""
        return finish(self.convert(node, at, refs, depth), at, self.losses)

    def convert(self, node: Any, at: str, refs: Sequence[str], depth: int) -> dict[str, Any]:
        """The schema, to be merged with what stands beside it: its type may be missing still."""
        self._nodes += 1
        if depth > MAX_DEPTH or self._nodes > MAX_NODES:
            raise Fault(at, "is too large: there are too many schemas within schemas once references are written out")
        if isinstance(node, bool):
            if not node:
                self._lose(at, "that no value is allowed can't be said; any is taken")
            return {}
        schema = cast("dict[str, Any]", node)
        if "$ref" in schema:
            return self._reference(schema, at, refs, depth)
        made: dict[str, Any] = {}
        for name, value in schema.items():
            self._keyword(name, value, schema, made, at, refs, depth)
        self._type(schema.get("type"), made)
        self._values(schema, made, at)
        for number, inner in enumerate(schema.get("allOf", ())):
            made = merge(made, self.convert(inner, f"{at}/allOf/{number}", refs, depth + 1), at, self.losses)
        for name in ("anyOf", "oneOf"):
            if name in schema:
                made = self._either(schema, name, made, at, refs, depth)
        return made

    def join(self, found: Mapping[str, Any]) -> dict[str, Any]:
        """One object out of alternatives of all arguments, since these have to be one object."""
        joined: dict[str, Any] = {name: value for name, value in found.items() if name != "anyOf"}
        properties: dict[str, Any] = dict(joined.get("properties", {}))
        branches: list[Mapping[str, Any]] = found["anyOf"]
        common: set[str] | None = None
        for number, branch in enumerate(branches):
            if branch.get("type", "OBJECT") != "OBJECT":
                raise Fault(f"/anyOf/{number}", "is not of type 'object', as arguments are")
            for name, inner in branch.get("properties", {}).items():
                known = properties.setdefault(name, inner)
                if known != inner:
                    parts = [*known.get("anyOf", [known]), *inner.get("anyOf", [inner])]
                    properties[name] = {"anyOf": [part for n, part in enumerate(parts) if part not in parts[:n]]}
            needed = set(branch.get("required", ()))
            common = needed if common is None else common & needed
        self._lose("/anyOf", "alternatives of all arguments are joined: which ones belong together is not enforced")
        required = [*joined.get("required", ()), *sorted((common or set()) - set(joined.get("required", ())))]
        return {**joined, "type": "OBJECT", "properties": properties, **({"required": required} if required else {})}

    def _reference(self, schema: dict[str, Any], at: str, refs: Sequence[str], depth: int) -> dict[str, Any]:
        reference: str = schema["$ref"]
        target = resolve(self._root, reference)
        if reference in refs:
            self._lose(at + "/$ref", f"refers back to {reference}: the recursion ends here")
            found: dict[str, Any] = {"type": "OBJECT"} if _is_object(target) else {}
        else:
            found = self.convert(target, unquote(reference[1:]), (*refs, reference), depth + 1)
        beside = {name: value for name, value in schema.items() if name not in {"$ref", "$defs", "definitions"}}
        if not beside:
            return found
        return merge(self.convert(beside, at, refs, depth + 1), found, at, self.losses)

    def _keyword(
        self,
        name: str,
        value: Any,
        schema: Mapping[str, Any],
        made: dict[str, Any],
        at: str,
        refs: Sequence[str],
        depth: int,
    ) -> None:
        here = at + pointer(name)
        match name:
            case "properties":
                made["properties"] = {
                    key: self.whole(inner, here + pointer(key), refs, depth + 1)
                    for key, inner in cast("dict[str, Any]", value).items()
                }
            case "required":
                made["required"] = list(value)
            case "additionalProperties":
                allowed = value if isinstance(value, bool) else self.whole(value, here, refs, depth + 1)
                made["additionalProperties"] = allowed
            case "items":
                if value is not True and "prefixItems" not in schema:
                    made["items"] = self.whole(value, here, refs, depth + 1)
            case "prefixItems":
                self._tuple(value, made, here, refs, depth)
            case "exclusiveMinimum" | "exclusiveMaximum":
                self._bound(name, value, schema, made, here)
            case "format":
                if value in _FORMATS:
                    made["format"] = value
                else:
                    self._lose(here, f"the format {value!r} is told in the description, not enforced")
                    made["description"] = " ".join((schema.get("description", ""), f"(format: {value})")).strip()
            case "description":
                made.setdefault("description", value)
            case _ if name in _COUNTS:
                made[name] = int(value)
            case _ if name in _COPIED:
                made[name] = value
            case _ if name in _LOST:
                self._lose(here, f"{name} is not enforced: the provider's schemas do not have it")
            case _:
                pass  # Handled by the caller, an annotation, or without a meaning in JSON Schema.

    def _tuple(self, value: list[Any], made: dict[str, Any], here: str, refs: Sequence[str], depth: int) -> None:
        found = [self.whole(inner, f"{here}/{n}", refs, depth + 1) for n, inner in enumerate(value)]
        kinds = [inner for number, inner in enumerate(found) if inner not in found[:number]]
        if kinds:
            made["items"] = kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        self._lose(here, "which place takes which item is not enforced")

    def _bound(self, name: str, value: Any, schema: Mapping[str, Any], made: dict[str, Any], here: str) -> None:
        lower = name == "exclusiveMinimum"
        plain = "minimum" if lower else "maximum"
        kinds: Any = schema.get("type")
        if (set(cast("list[str]", kinds)) if isinstance(kinds, list) else {kinds}) - {"null"} == {"integer"}:
            bound: float = math.floor(value) + 1 if lower else math.ceil(value) - 1
        else:
            bound = value
            self._lose(here, f"the bound {value} itself is allowed as well")
        known: Any = schema.get(plain)
        if known is not None:
            bound = max(bound, known) if lower else min(bound, known)
        made[plain] = bound

    def _type(self, kinds: str | list[str] | None, made: dict[str, Any]) -> None:
        if kinds is None:
            return
        names = [kinds] if isinstance(kinds, str) else kinds
        values = [KINDS[name] for name in names if name != "null"]
        if "INTEGER" in values and "NUMBER" in values:
            values.remove("INTEGER")
        if not values:
            made["type"] = "NULL"
            return
        if "null" in names:
            made["nullable"] = True
        if len(values) == 1:
            made["type"] = values[0]
        else:
            made["anyOf"] = [{"type": value} for value in values]

    def _values(self, schema: Mapping[str, Any], made: dict[str, Any], at: str) -> None:
        """`enum` and `const`. The dialect lists texts only; a single number is a range."""
        values: list[Any]
        if "const" in schema:
            here, values = at + "/const", [schema["const"]]
        elif "enum" in schema:
            here, values = at + "/enum", schema["enum"]
        else:
            return
        if None in values:
            values = [value for value in values if value is not None]
            made["nullable"] = True
        if not values:
            made["type"] = "NULL"
        elif all(isinstance(value, str) for value in values):
            kept = [value for value in dict.fromkeys(cast("list[str]", values)) if value]
            if len(kept) < len(set(values)):
                self._lose(here, "the empty text can't be listed")
            if kept and len(kept) == len(set(values)):
                made.update(type="STRING", enum=kept)
                made.pop("anyOf", None)
            else:
                made["type"] = "STRING"
        elif all(_is_number(value) for value in values):
            whole = all(isinstance(value, int) for value in values)
            made.update(type="INTEGER" if whole else "NUMBER", minimum=min(values), maximum=max(values))
            made.pop("anyOf", None)
            if len(set(values)) > 1:
                self._tell(values, made, here)
        elif all(isinstance(value, bool) for value in values):
            made["type"] = "BOOLEAN"
            made.pop("anyOf", None)
            if len(set(values)) == 1:
                self._tell(values, made, here)
        else:
            self._tell(values, made, here)

    def _tell(self, values: Sequence[Any], made: dict[str, Any], here: str) -> None:
        self._lose(here, "only texts can be listed; the values are told in the description, not enforced")
        listed = ", ".join(orjson.dumps(value).decode() for value in values)
        made["description"] = " ".join((made.get("description", ""), f"(one of: {listed})")).strip()

    def _either(
        self, schema: Mapping[str, Any], name: str, made: dict[str, Any], at: str, refs: Sequence[str], depth: int
    ) -> dict[str, Any]:
        here = at + pointer(name)
        branches: list[dict[str, Any]] = []
        nullable = False
        for number, inner in enumerate(schema[name]):
            branch = self.convert(inner, f"{here}/{number}", refs, depth + 1)
            if branch.get("type") == "NULL":
                nullable = True
                continue
            branches += branch.pop("anyOf") if set(branch) == {"anyOf"} else [branch]
        if name == "oneOf" and len(branches) > 1 and not _exclusive(branches):
            self._lose(here, "that exactly one alternative holds is not enforced, only that one does")
        if not branches:
            return merge(made, {"type": "NULL"}, at, self.losses)
        found = branches[0] if len(branches) == 1 else {"anyOf": branches}
        if nullable:
            found = {**found, "nullable": True}
        return merge(made, found, at, self.losses)

    def _lose(self, at: str, message: str) -> None:
        self.losses.append(Loss(at, message))


def _exclusive(branches: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no value can meet two of the alternatives: each is of another type, or lists other texts."""
    kinds = [branch.get("type") for branch in branches]
    if None not in kinds and len(set(kinds)) == len(kinds) and not {"INTEGER", "NUMBER"} <= set(kinds):
        return True
    texts = [text for branch in branches for text in branch.get("enum", ())]
    return all("enum" in branch for branch in branches) and len(set(texts)) == len(texts)


def _is_object(target: Any) -> bool:
    if not isinstance(target, dict):
        return False
    schema = cast("dict[str, Any]", target)
    return schema.get("type") == "object" or "properties" in schema


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
