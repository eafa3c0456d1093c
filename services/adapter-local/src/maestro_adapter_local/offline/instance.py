"""Instances of a JSON Schema: small, deterministic, valid, with the literal values of a prompt where they fit.

Every value is checked with the `jsonschema` library before it is returned. Two errors tell what can't be made, where:
`BadSchema` when nothing finite satisfies the schema, `TooHard` where the offline model's means end.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Iterator
from fractions import Fraction
from typing import Any, Literal

from jsonschema import FormatChecker

from maestro_adapter_local.offline.flat import Flat, flatten
from maestro_adapter_local.offline.literals import Literals
from maestro_adapter_local.offline.pattern import Unknown, texts
from maestro_adapter_local.offline.scalars import (
    FORMATS,
    PLAIN,
    between,
    identity,
    kind_of,
    plain_number,
    plain_texts,
    steps_within,
)
from maestro_adapter_local.offline.schema import BadSchema, Compiled, Node, TooHard, compile_schema

_STEPS = 5_000
_DEPTHS = (6, 14, 40)
# Optional content is filled in down to this depth, so that recursive schemas end soon.
_RICH_DEPTH = 3
_MISSES = 200
_LONGEST_TEXT = 100_000
_LONGEST_LIST = 1_000

_FORMAT_CHECKER = FormatChecker()

Filling = Literal["all", "named"]
"""Which optional properties are filled in: all of them, or those that the prompt names."""


def make_instance(schema: str, literals: Literals | None = None, filling: Filling = "all") -> Any:
    """A value that meets the JSON Schema in the text `schema`. Raises `BadSchema` and `TooHard`."""
    compiled = compile_schema(schema)
    if literals is not None and compiled.quick:
        try:
            return _make(compiled, literals, filling)
        except (BadSchema, TooHard):
            # Values from the prompt can lead into a dead end, for example where one property rules another.
            pass
    return _make(compiled, Literals(""), filling)


def dump(value: Any) -> str:
    """The value as JSON text that UTF-8 can carry."""
    text = json.dumps(value, ensure_ascii=False)
    try:
        text.encode()
    except UnicodeEncodeError:
        return json.dumps(value)
    return text


def _make(compiled: Compiled, literals: Literals, filling: Filling) -> Any:
    builder = _Builder(compiled, literals, filling, 0)
    depths = [min(depth, compiled.depth) for depth in _DEPTHS]
    for depth in dict.fromkeys(depths):
        builder = _Builder(compiled, literals, filling, depth)
        for value in builder.solve((compiled.root,), 0, ""):
            return value
        if not builder.cut:
            break
    if builder.gap is not None:
        raise builder.gap
    if builder.cut:
        raise BadSchema(compiled.root.pointer, f"no value of less than {depths[-1]} levels can meet it")
    raise BadSchema(*(builder.conflict or ("#", "no value can meet it")))


class _Builder:
    """One search. `solve` yields values that meet a goal; what stood in the way is kept for the error."""

    def __init__(self, compiled: Compiled, literals: Literals, filling: Filling, max_depth: int) -> None:
        self._compiled = compiled
        self._literals = literals
        self._filling: Filling = filling
        self._max_depth = max_depth
        self._steps = 0
        self.gap: TooHard | None = None
        """The first thing that the builder could not do."""
        self.cut = False
        """Whether the depth was reached."""
        self.conflict: tuple[str, str] | None = None
        """The first place that nothing can meet."""

    def solve(self, goal: tuple[Node, ...], depth: int, name: str) -> Iterator[Any]:
        """Values that meet every schema of `goal`; `name` is the property that they are for."""
        pointer = goal[0].pointer if goal else "#"
        if depth > self._max_depth:
            self.cut = True
            return
        found = refused = False
        try:
            for flat in flatten(goal):
                for source in self._sources(flat, depth, name, pointer):
                    misses = 0
                    for value in source:
                        self._steps += 1
                        if self._steps > _STEPS:
                            raise TooHard(pointer, "the schema has more combinations than the offline model tries")
                        if self._compiled.valid(goal, value):
                            found = True
                            yield value
                            continue
                        # An enumeration that is refused as a whole proves that nothing fits; made values prove nothing.
                        refused = refused or flat.enum is None
                        misses += 1
                        if misses > _MISSES:
                            break
        except BadSchema as error:
            self._note(error.pointer, error.message)
        except TooHard as error:
            self.gap = self.gap or error
        if not found:
            if refused:
                self.gap = self.gap or TooHard(
                    pointer, "the offline model found no value that meets all of its keywords"
                )
            self._note(pointer, "no value can meet it")

    def _sources(self, flat: Flat, depth: int, name: str, pointer: str) -> Iterator[Iterable[Any]]:
        """Where values may come from, the likely source first."""
        if flat.enum is not None:
            named = [value for value in flat.enum if self._literals.has(value)]
            yield named + [value for value in flat.enum if not any(value is other for other in named)]
            return
        kinds = flat.kinds()
        given: list[Any] = [value for value in self._literals.given(name) if isinstance(value, list | dict)]
        yield [value for value in (*given, *flat.offers) if kind_of(value, kinds)]
        for kind in kinds:
            match kind:
                case "string":
                    yield self._strings(flat, name, pointer)
                case "integer" | "number":
                    yield self._numbers(flat, name, kind == "integer", pointer)
                case "boolean":
                    yield (*self._literals.booleans(name), True, False)
                case "null":
                    yield (None,)
                case "array":
                    yield self._arrays(flat, depth, name, pointer)
                case _:
                    yield self._objects(flat, depth, pointer)

    # Scalars

    def _strings(self, flat: Flat, name: str, pointer: str) -> Iterator[str]:
        low, high = flat.min_length, flat.max_length
        if high is not None and low > high:
            self._note(pointer, f"minLength {low} is above maxLength {high}")
            return
        if low > _LONGEST_TEXT:
            raise TooHard(pointer, f"the offline model makes no texts of more than {_LONGEST_TEXT} characters")
        top = _LONGEST_TEXT if high is None else high
        for text in self._literals.strings(name, flat.formats):
            fits = low <= len(text) <= top and (not flat.patterns or len(text) <= 64)
            if fits and all(_FORMAT_CHECKER.conforms(text, kind) for kind in flat.formats):
                yield text
        known = [text for kind in flat.formats for text in FORMATS.get(kind, ())]
        yield from (text for text in known if low <= len(text) <= top)
        if flat.patterns:
            yield from self._matching(flat.patterns, low, top, pointer)
            # A pattern that can't be read may still take something plain; the validator decides.
            yield from (text for text in ("", "a", "A", "0", "1", PLAIN) if low <= len(text) <= top)
        else:
            yield from plain_texts(low, top)

    def _matching(self, patterns: list[str], low: int, top: int, pointer: str) -> Iterator[str]:
        for pattern in patterns:
            found = False
            try:
                for text in texts(pattern, low, min(top, _LONGEST_TEXT)):
                    found = True
                    yield text
            except Unknown as error:
                self.gap = self.gap or TooHard(f"{pointer}/pattern", f"{pattern!r} {error}")
            if not found:
                self.gap = self.gap or TooHard(f"{pointer}/pattern", f"the offline model found no text for {pattern!r}")

    def _numbers(self, flat: Flat, name: str, whole: bool, pointer: str) -> Iterator[int | float]:
        if flat.low is not None and flat.high is not None and flat.low > flat.high:
            self._note(pointer, f"the least number {float(flat.low):g} is above the greatest {float(flat.high):g}")
            return
        for number in self._literals.numbers(name):
            yield int(number) if whole and float(number).is_integer() else number
        step = flat.multiple
        if whole:
            # The whole multiples of a reduced fraction are the multiples of its numerator.
            step = Fraction(1 if step is None else step.numerator)
        if step is not None:
            yield from (plain_number(number) for number in steps_within(flat, step))
            return
        yield from (plain_number(number) for number in steps_within(flat, Fraction(1)))
        if flat.low is not None and flat.high is not None:
            yield from (plain_number(number) for number in between(flat, flat.low, flat.high))

    # Composites

    def _arrays(self, flat: Flat, depth: int, name: str, pointer: str) -> Iterator[list[Any]]:
        needed = sum(least for _, least in flat.contains)
        low = flat.min_items
        if flat.max_items is not None and low > flat.max_items:
            self._note(pointer, f"minItems {low} is above maxItems {flat.max_items}")
            return
        high = _LONGEST_LIST if flat.max_items is None else flat.max_items
        if low > _LONGEST_LIST:
            raise TooHard(pointer, f"the offline model makes no lists of more than {_LONGEST_LIST} items")
        wished = max([low, needed, *(len(prefix) for prefix, _ in flat.prefixes)])
        if depth < _RICH_DEPTH:
            wished = max(wished, 1)
        first: list[Any] | None = None
        for length in dict.fromkeys((min(wished, high), low, *range(low, min(high, low + 8) + 1))):
            items = self._items(flat, length, low, depth, name)
            if items is None or (first is not None and items == first):
                continue
            yield items
            if first is None:
                first = items
        for index in range(len(first or ())):
            goal = self._item_goal(flat, index)
            for other in itertools.islice(self.solve(goal, depth + 1, name), 1, 12):
                yield [*(first or ())[:index], other, *(first or ())[index + 1 :]]

    def _items(self, flat: Flat, length: int, low: int, depth: int, name: str) -> list[Any] | None:
        items: list[Any] = []
        seen: set[str] = set()
        sources: dict[tuple[int, ...], Iterator[Any]] = {}
        for index in range(length):
            goal = self._item_goal(flat, index)
            # Items with the same goal share one source when they must differ: the next value is another one.
            which = tuple(id(node.schema) for node in goal)
            source = sources.get(which) if flat.unique else None
            if source is None:
                before = self.conflict
                source = sources[which] = self.solve(goal, depth + 1, name)
            else:
                before = self.conflict
            for value in source:
                key = identity(value)
                if flat.unique and key in seen:
                    continue
                seen.add(key)
                items.append(value)
                self._took(value)
                break
            else:
                if len(items) >= low:
                    self.conflict = before
                    return items
                return None
        return items

    def _item_goal(self, flat: Flat, index: int) -> tuple[Node, ...]:
        goal = flat.item_goal(index)
        place = index - max((len(prefix) for prefix, _ in flat.prefixes), default=0)
        for node, least in flat.contains:
            if 0 <= place < least:
                return (*goal, node)
            place -= least
        return goal

    def _objects(self, flat: Flat, depth: int, pointer: str) -> Iterator[dict[str, Any]]:
        self._literals.reserve(flat.properties)
        required = self._closure(flat, flat.required)
        optional = [name for name in flat.properties if name not in required and self._wants(flat, name, depth)]
        high = _LONGEST_LIST if flat.max_properties is None else flat.max_properties
        least = max(len(required), flat.min_properties)
        if flat.max_properties is not None and least > flat.max_properties:
            self._note(pointer, f"asks for {least} properties and allows {flat.max_properties}")
            return
        base: dict[str, Any] = {}
        for name in [name for name in flat.properties if name in required or name in optional] + [
            name for name in required if name not in flat.properties
        ]:
            if name in required:
                if not self._fill(base, flat, name, depth):
                    return
            elif len(base) < high - sum(1 for other in required if other not in base):
                self._fill_if_possible(base, flat, name, depth)
        for name in self._further_names(flat, pointer):
            if len(base) >= flat.min_properties:
                break
            if name not in base:
                self._fill_if_possible(base, flat, name, depth)
        if len(base) < flat.min_properties:
            self._note(pointer, f"asks for {flat.min_properties} properties and has no names for them")
            return
        yield base
        bare = {name: value for name, value in base.items() if name in required}
        if len(bare) < len(base):
            yield bare
            for name in base:
                if name not in required:
                    yield {other: value for other, value in base.items() if other != name}
        for name in base:
            for other in itertools.islice(self.solve(self._goal(flat, name), depth + 1, name), 1, 40):
                yield {**base, name: other}

    def _fill(self, base: dict[str, Any], flat: Flat, name: str, depth: int) -> bool:
        goal = self._goal(flat, name)
        if any(node.schema is False for node in goal):
            place = next(node.pointer for node in goal if node.schema is False)
            self._note(place, f"the required property {name!r} is not allowed")
            return False
        for value in self.solve(goal, depth + 1, name):
            base[name] = value
            self._took(value)
            return True
        return False

    def _fill_if_possible(self, base: dict[str, Any], flat: Flat, name: str, depth: int) -> None:
        before = self.conflict, self.gap, self.cut
        if not self._fill(base, flat, name, depth):
            self.conflict, self.gap, self.cut = before

    def _goal(self, flat: Flat, name: str) -> tuple[Node, ...]:
        return flat.property_goal(name)

    def _closure(self, flat: Flat, names: Iterable[str]) -> dict[str, None]:
        """The names and those that they bring along."""
        closed = dict.fromkeys(names)
        pending = [*closed]
        while pending:
            for name in flat.dependent.get(pending.pop(), ()):
                if name not in closed:
                    closed[name] = None
                    pending.append(name)
        return closed

    def _wants(self, flat: Flat, name: str, depth: int) -> bool:
        if self._filling == "all":
            return depth < _RICH_DEPTH
        if self._literals.given(name) or self._names_choice(flat, name):
            return True
        # A schema that requires nothing would always get an empty call; its first property is what it is about.
        return not flat.required and depth == 0 and name == next(iter(flat.properties))

    def _names_choice(self, flat: Flat, name: str) -> bool:
        schemas: list[Any] = [node.schema for node in flat.properties[name] if node.schema not in (True, False)]
        choices: list[Any] = [schema.get("enum", ()) for schema in schemas]
        return any(self._literals.has(value) for values in choices for value in values)

    def _further_names(self, flat: Flat, pointer: str) -> Iterator[str]:
        """Names for properties that are only asked for by number."""
        yield from (name for name in flat.properties if name not in flat.required)
        for pattern, _ in flat.pattern_properties:
            try:
                yield from itertools.islice(texts(pattern), 20)
            except Unknown as error:
                self.gap = self.gap or TooHard(f"{pointer}/patternProperties", f"{pattern!r} {error}")
        count = flat.min_properties + 1
        if flat.property_names:
            yield from (
                name
                for name in itertools.islice(self.solve(flat.property_names, 1, ""), count)
                if isinstance(name, str)
            )
        else:
            yield from (f"property{number}" for number in range(1, min(count, _LONGEST_LIST) + 1))

    def _note(self, pointer: str, message: str) -> None:
        self.conflict = self.conflict or (pointer, message)

    def _took(self, value: Any) -> None:
        if isinstance(value, str | int | float) and not isinstance(value, bool):
            self._literals.take(value)
