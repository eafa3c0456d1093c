"""JSON Schemas as the offline model reads them: parsed and checked; `flat` makes of them what a value must meet."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, NoReturn, cast

import referencing.exceptions
from jsonschema import Draft202012Validator
from jsonschema.exceptions import SchemaError
from jsonschema.validators import validator_for
from jsonschema_specifications import REGISTRY as SPECIFICATIONS
from referencing.jsonschema import DRAFT202012, specification_with

from maestro_adapter_local.offline.pattern import Unknown, compile_pattern, is_quick, parse

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


def follow(node: Node, reference: str) -> Node:
    """What a reference within `node` leads to. Raises `BadSchema` for one that leads nowhere."""
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
        yield follow(node, schema["$ref"])
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


def _refuse_constant(text: str) -> NoReturn:
    raise ValueError(f"{text} is not JSON")


def _finite(text: str) -> float:
    value = float(text)
    if math.isinf(value):
        raise ValueError(f"{text} is beyond the range of numbers")
    return value
