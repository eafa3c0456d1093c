"""JSON Schemas as the offline model reads them: parsed, checked, and flattened into what a value must meet."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import lru_cache
from typing import Any, NoReturn, cast

import referencing.exceptions
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for
from jsonschema_specifications import REGISTRY as SPECIFICATIONS
from referencing.jsonschema import DRAFT202012, specification_with

from maestro_adapter_local.offline.pattern import Unknown, compile_pattern, is_quick, parse

_TYPES = ("string", "integer", "number", "object", "array", "boolean", "null")
_SINGLE = (
    "items",
    "additionalItems",
    "additionalProperties",
    "propertyNames",
    "contains",
    "unevaluatedItems",
    "unevaluatedProperties",
)
# The validator recurses, and an overflow of the stack within its compiled parts ends the process: bounds keep it off.
_STACK = 600
_LONGEST_CHAIN = 30
_DEEPEST = 48
_UNKNOWN_KEYWORDS = ("$dynamicRef", "$recursiveRef")


class BadSchema(ValueError):
    """The schema is none, or nothing can satisfy it; `pointer` says where."""

    def __init__(self, pointer: str, message: str) -> None:
        super().__init__(f"{pointer}: {message}")
        self.pointer = pointer
        self.message = message


class TooHard(ValueError):
    """Something may satisfy the schema, but the offline model can't make it; `pointer` says where."""

    def __init__(self, pointer: str, message: str) -> None:
        super().__init__(f"{pointer}: {message}")


@dataclass(frozen=True, slots=True, eq=False)
class Node:
    """A schema within the document: its value, what its references resolve against, and where it stands."""

    schema: Any
    resolver: Any
    pointer: str

    def at(self, *steps: str | int) -> Node:
        """The schema below this one."""
        value = self.schema
        for step in steps:
            value = value[step]
        text = "".join("/" + str(step).replace("~", "~0").replace("/", "~1") for step in steps)
        return Node(value, self.resolver, self.pointer + text)


@dataclass(frozen=True, slots=True, eq=False)
class Compiled:
    """A schema that is well-formed. `quick` tells that its expressions may be tried on texts of strangers.

    `depth` is how deep a value may be so that checking it stays within Python's stack.
    """

    root: Node
    validator: Any
    quick: bool
    depth: int

    def valid(self, goal: tuple[Node, ...], value: Any) -> bool:
        """Whether `value` meets every schema of `goal`."""
        return all(
            self.validator.evolve(schema=node.schema, _resolver=node.resolver).is_valid(value)
            for node in goal
            if node.schema is not True
        )


@lru_cache(maxsize=256)
def compile_schema(text: str) -> Compiled:
    """The schema that `text` holds. Raises `BadSchema`, and `TooHard` for expressions that Python can't compile."""
    try:
        schema: Any = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise BadSchema("#", f"not JSON: {error}") from error
    if not isinstance(schema, dict | bool):
        raise BadSchema("#", "a schema is an object or a boolean")
    schema = cast("Any", schema)
    quick = _check_patterns(schema, "#", 0)
    cls: Any = validator_for(schema, default=Draft202012Validator)
    try:
        cls.check_schema(schema)
    except SchemaError as error:
        pointer = "".join(f"/{step}" for step in error.absolute_path)
        raise BadSchema(f"#{pointer}", error.message) from error
    dialect: Any = None if isinstance(schema, bool) else schema.get("$schema")
    specification = specification_with(dialect, default=DRAFT202012) if isinstance(dialect, str) else DRAFT202012
    # Formats are annotations, as the drafts have it by default: they choose values, but never refuse one.
    # An own registry: the library's default one would load foreign addresses that a schema names.
    validator = cls(schema, registry=SPECIFICATIONS)
    root = Node(schema, SPECIFICATIONS.resolver_with_root(specification.create_resource(schema)), "#")
    return Compiled(root, validator, quick, max(4, _STACK // (4 * (_longest_chain(root) + 1))))


@dataclass(slots=True)
class Flat:
    """What a value must meet, without references and choices. Sub-schemas are lists: all of them hold."""

    types: tuple[str, ...] | None = None
    enum: list[Any] | None = None
    offers: list[Any] = field(default_factory=list[Any])
    """`default` and `examples`."""
    # numbers
    low: Fraction | None = None
    low_open: bool = False
    high: Fraction | None = None
    high_open: bool = False
    multiple: Fraction | None = None
    # strings
    min_length: int = 0
    max_length: int | None = None
    patterns: list[str] = field(default_factory=list[str])
    formats: list[str] = field(default_factory=list[str])
    # objects
    properties: dict[str, tuple[Node, ...]] = field(default_factory=dict[str, tuple[Node, ...]])
    pattern_properties: list[tuple[str, Node]] = field(default_factory=list[tuple[str, Node]])
    additional: list[tuple[frozenset[str], tuple[str, ...], Node]] = field(
        default_factory=list[tuple[frozenset[str], tuple[str, ...], Node]]
    )
    property_names: tuple[Node, ...] = ()
    required: dict[str, None] = field(default_factory=dict[str, None])
    dependent: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    min_properties: int = 0
    max_properties: int | None = None
    # arrays
    prefixes: list[tuple[list[Node], Node | None]] = field(default_factory=list[tuple[list[Node], Node | None]])
    contains: list[tuple[Node, int]] = field(default_factory=list[tuple[Node, int]])
    min_items: int = 0
    max_items: int | None = None
    unique: bool = False

    def copy(self) -> Flat:
        """An independent copy."""
        return replace(
            self,
            offers=[*self.offers],
            patterns=[*self.patterns],
            formats=[*self.formats],
            properties=dict(self.properties),
            pattern_properties=[*self.pattern_properties],
            additional=[*self.additional],
            required=dict(self.required),
            dependent={name: [*names] for name, names in self.dependent.items()},
            prefixes=[*self.prefixes],
            contains=[*self.contains],
        )

    def kinds(self) -> tuple[str, ...]:
        """The types to try, the likely one first."""
        if self.types is not None:
            return self.types
        likely: list[str] = []
        if self.properties or self.required or self.pattern_properties or self.min_properties:
            likely.append("object")
        if self.prefixes or self.contains or self.min_items:
            likely.append("array")
        if self.low is not None or self.high is not None or self.multiple is not None:
            likely.append("number")
        return (*likely, *(kind for kind in _TYPES if kind not in likely))

    def property_goal(self, name: str) -> tuple[Node, ...]:
        """Everything that the value of the property `name` must meet."""
        goal = list(self.properties.get(name, ()))
        goal += [node for pattern, node in self.pattern_properties if compile_pattern(pattern).search(name)]
        for known, patterns, node in self.additional:
            if name not in known and not any(compile_pattern(pattern).search(name) for pattern in patterns):
                goal.append(node)
        return tuple(goal)

    def item_goal(self, index: int) -> tuple[Node, ...]:
        """Everything that the item at `index` must meet."""
        goal: list[Node] = []
        for prefix, rest in self.prefixes:
            if index < len(prefix):
                goal.append(prefix[index])
            elif rest is not None:
                goal.append(rest)
        return tuple(goal)


def flatten(goal: tuple[Node, ...], flat: Flat | None = None, turns: int = 0) -> Iterator[Flat]:
    """The ways to meet all of `goal`, one per combination of choices. Raises `BadSchema` and `TooHard`."""
    flat = flat.copy() if flat else Flat()
    pending = list(goal)
    choices: list[list[tuple[Node, ...]]] = []
    while pending:
        node = pending.pop(0)
        turns += 1
        if turns > 100:
            raise TooHard(node.pointer, "the schema combines more than 100 others")
        if node.schema is True:
            continue
        if node.schema is False:
            return
        schema = cast("dict[str, Any]", node.schema)
        for keyword in _UNKNOWN_KEYWORDS:
            if keyword in schema:
                raise TooHard(f"{node.pointer}/{keyword}", "the offline model doesn't follow dynamic references")
        if "$ref" in schema:
            pending.insert(0, _follow(node, schema["$ref"]))
        pending += [node.at("allOf", index) for index in range(len(schema.get("allOf", ())))]
        choices += [
            [(node.at(keyword, index),) for index in range(len(schema[keyword]))]
            for keyword in ("anyOf", "oneOf")
            if keyword in schema
        ]
        if "if" in schema:
            then = (node.at("if"), *((node.at("then"),) if "then" in schema else ()))
            choices.append([then, (node.at("else"),) if "else" in schema else ()])
        for name, below in {**schema.get("dependentSchemas", {}), **schema.get("dependencies", {})}.items():
            if isinstance(below, list):
                flat.dependent.setdefault(name, []).extend(cast("list[str]", below))
            else:
                keyword = "dependentSchemas" if name in schema.get("dependentSchemas", {}) else "dependencies"
                choices.append([(node.at(keyword, name),), ()])
        if not _absorb(flat, node, schema):
            return
    yield from _choose(flat, choices, turns)


def _choose(flat: Flat, choices: list[list[tuple[Node, ...]]], turns: int) -> Iterator[Flat]:
    if not choices:
        yield flat
        return
    for goal in choices[0]:
        # A choice may bring further choices; flatten settles them before the rest of ours.
        for settled in flatten(goal, flat, turns):
            yield from _choose(settled, choices[1:], turns + 1)


def _absorb(flat: Flat, node: Node, schema: Mapping[str, Any]) -> bool:  # noqa: PLR0915 - one arm per keyword
    """Adds the keywords of one schema; False when they contradict those already there."""
    for keyword, value in schema.items():
        match keyword:
            case "type":
                types = (value,) if isinstance(value, str) else tuple(value)
                flat.types = types if flat.types is None else _common_types(flat.types, types)
                if not flat.types:
                    return False
            case "enum" | "const":
                values = value if keyword == "enum" else [value]
                flat.enum = values if flat.enum is None else [entry for entry in flat.enum if _among(entry, values)]
                if not flat.enum:
                    return False
            case "default":
                flat.offers.insert(0, value)
            case "examples":
                flat.offers += value
            case "minimum" | "exclusiveMinimum":
                # Draft 4 had a boolean beside the bound.
                bound = schema.get("minimum") if value is True else value
                if not isinstance(bound, bool) and bound is not None:
                    _raise_low(flat, Fraction(str(bound)), keyword == "exclusiveMinimum")
            case "maximum" | "exclusiveMaximum":
                bound = schema.get("maximum") if value is True else value
                if not isinstance(bound, bool) and bound is not None:
                    _lower_high(flat, Fraction(str(bound)), keyword == "exclusiveMaximum")
            case "multipleOf":
                step = Fraction(str(value))
                flat.multiple = step if flat.multiple is None else _common_multiple(flat.multiple, step)
            case "minLength":
                flat.min_length = max(flat.min_length, int(value))
            case "maxLength":
                flat.max_length = _least(flat.max_length, int(value))
            case "pattern":
                flat.patterns.append(value)
            case "format":
                flat.formats.append(value)
            case "properties":
                for name in value:
                    flat.properties[name] = (*flat.properties.get(name, ()), node.at("properties", name))
            case "patternProperties":
                flat.pattern_properties += [(name, node.at("patternProperties", name)) for name in value]
            case "additionalProperties":
                known = frozenset(schema.get("properties", {}))
                flat.additional.append((known, tuple(schema.get("patternProperties", {})), node.at(keyword)))
            case "propertyNames":
                flat.property_names = (*flat.property_names, node.at(keyword))
            case "required":
                if isinstance(value, list):
                    flat.required.update(dict.fromkeys(cast("list[str]", value)))
            case "dependentRequired":
                for name, names in value.items():
                    flat.dependent.setdefault(name, []).extend(names)
            case "minProperties":
                flat.min_properties = max(flat.min_properties, int(value))
            case "maxProperties":
                flat.max_properties = _least(flat.max_properties, int(value))
            case "items" | "prefixItems":
                if keyword == "prefixItems" or "prefixItems" not in schema:
                    flat.prefixes.append(_positions(node, schema))
            case "contains":
                flat.contains.append((node.at(keyword), int(schema.get("minContains", 1))))
            case "minItems":
                flat.min_items = max(flat.min_items, int(value))
            case "maxItems":
                flat.max_items = _least(flat.max_items, int(value))
            case "uniqueItems":
                flat.unique = flat.unique or bool(value)
            case _:
                # Applied by `flatten`, left to the validator (`not`, `unevaluated…`), or without effect on values.
                pass
    return True


def _positions(node: Node, schema: Mapping[str, Any]) -> tuple[list[Node], Node | None]:
    """The schemas of the first items and of all further ones, in the words of any draft."""
    first = "prefixItems" if "prefixItems" in schema else "items"
    if isinstance(schema[first], list):
        rest = "items" if first == "prefixItems" else "additionalItems"
        prefix = [node.at(first, index) for index in range(len(schema[first]))]
        return prefix, node.at(rest) if rest in schema else None
    return [], node.at("items")


def _follow(node: Node, reference: str) -> Node:
    try:
        found = node.resolver.lookup(reference)
    except referencing.exceptions.Unresolvable as error:
        raise BadSchema(f"{node.pointer}/$ref", f"{reference!r} can't be resolved within the schema") from error
    inside = reference == "#" or reference.startswith("#/")
    return Node(found.contents, found.resolver, reference if inside else f"{node.pointer}/$ref")


def _longest_chain(root: Node) -> int:
    """The most schemas that lead to each other for one and the same value. Raises `BadSchema` for a circle of them."""
    reachable: dict[int, Node] = {}
    pending = [root]
    while pending:
        node = pending.pop()
        if node.schema not in (True, False) and id(node.schema) not in reachable:
            reachable[id(node.schema)] = node
            pending += [*_beside(node), *_below(node)]
    lengths: dict[int, int] = {}
    for node in reachable.values():
        _measure(node, lengths, {})
    return max(lengths.values(), default=0)


def _measure(node: Node, lengths: dict[int, int], open_nodes: dict[int, None]) -> int:
    key = id(node.schema)
    if key in open_nodes:
        raise BadSchema(node.pointer, "a reference leads back to itself without any content")
    if len(open_nodes) > _LONGEST_CHAIN:
        raise TooHard(node.pointer, f"more than {_LONGEST_CHAIN} schemas lead to each other")
    if key not in lengths:
        lower = [_measure(other, lengths, {**open_nodes, key: None}) for other in _beside(node)]
        lengths[key] = 1 + max(lower, default=0)
    return lengths[key]


def _beside(node: Node) -> Iterator[Node]:
    """The schemas that a schema applies to the same value."""
    if node.schema in (True, False):
        return
    schema: dict[str, Any] = node.schema
    if "$ref" in schema:
        yield _follow(node, schema["$ref"])
    for keyword in ("allOf", "anyOf", "oneOf"):
        yield from (node.at(keyword, index) for index in range(len(schema.get(keyword, ()))))
    yield from (node.at(keyword) for keyword in ("not", "if", "then", "else") if keyword in schema)
    for keyword in ("dependentSchemas", "dependencies"):
        below: dict[str, Any] = schema.get(keyword, {})
        yield from (node.at(keyword, name) for name in below if not isinstance(below[name], list))


def _below(node: Node) -> Iterator[Node]:
    """The schemas that a schema applies to parts of the value."""
    schema: dict[str, Any] = node.schema
    for keyword in ("properties", "patternProperties"):
        yield from (node.at(keyword, name) for name in schema.get(keyword, {}))
    for keyword in ("prefixItems", "items"):
        if isinstance(schema.get(keyword), list):
            yield from (node.at(keyword, index) for index in range(len(schema[keyword])))
    for keyword in _SINGLE:
        if keyword in schema and not isinstance(schema[keyword], list):
            yield node.at(keyword)


def _check_patterns(value: Any, pointer: str, depth: int) -> bool:
    """Whether all expressions below are quick to match. Raises `TooHard` for one that can't be compiled."""
    quick = True
    if depth > _DEEPEST:
        raise TooHard(pointer, f"the schema is nested deeper than {_DEEPEST} levels")
    if isinstance(value, dict):
        for key, below in cast("dict[str, Any]", value).items():
            if key in ("const", "enum", "default", "examples"):
                continue
            place = f"{pointer}/{key}"
            expressions: list[Any] = [below] if key == "pattern" else list(below) if key == "patternProperties" else []
            for expression in expressions:
                if isinstance(expression, str):
                    quick = _is_quick(expression, place) and quick
            quick = _check_patterns(below, place, depth + 1) and quick
    elif isinstance(value, list):
        for index, below in enumerate(cast("list[Any]", value)):
            quick = _check_patterns(below, f"{pointer}/{index}", depth + 1) and quick
    return quick


def _is_quick(expression: str, pointer: str) -> bool:
    try:
        compile_pattern(expression)
    except Unknown as error:
        raise TooHard(pointer, f"the pattern {expression!r} {error}") from error
    try:
        return is_quick(parse(expression))
    except Unknown:
        return False


def _common_types(ours: tuple[str, ...], theirs: tuple[str, ...]) -> tuple[str, ...]:
    found: list[str] = []
    for kind in ours:
        if kind in theirs or (kind == "integer" and "number" in theirs):
            found.append(kind)
        elif kind == "number" and "integer" in theirs:
            found.append("integer")
    return tuple(dict.fromkeys(found))


def _among(entry: Any, values: list[Any]) -> bool:
    return any(type(entry) is type(value) and entry == value for value in values) or any(
        isinstance(entry, int | float)
        and isinstance(value, int | float)
        and not isinstance(entry, bool)
        and not isinstance(value, bool)
        and entry == value
        for value in values
    )


def _raise_low(flat: Flat, bound: Fraction, is_open: bool) -> None:
    if flat.low is None or bound > flat.low or (bound == flat.low and is_open):
        flat.low, flat.low_open = bound, is_open


def _lower_high(flat: Flat, bound: Fraction, is_open: bool) -> None:
    if flat.high is None or bound < flat.high or (bound == flat.high and is_open):
        flat.high, flat.high_open = bound, is_open


def _common_multiple(one: Fraction, other: Fraction) -> Fraction:
    return Fraction(math.lcm(one.numerator, other.numerator), math.gcd(one.denominator, other.denominator))


def _least(one: int | None, other: int) -> int:
    return other if one is None else min(one, other)


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is beyond the range of numbers")
    return value
