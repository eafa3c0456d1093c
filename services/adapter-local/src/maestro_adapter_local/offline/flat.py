"""What a value must meet by all schemas that hold for it: `flatten` follows references and offers the choices."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Any, cast

from maestro_adapter_local.offline.pattern import compile_pattern
from maestro_adapter_local.offline.schema import Node, TooHard, follow

_TYPES = ("string", "integer", "number", "object", "array", "boolean", "null")
_UNKNOWN_KEYWORDS = ("$dynamicRef", "$recursiveRef")


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
            pending.insert(0, follow(node, schema["$ref"]))
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
