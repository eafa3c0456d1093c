"""A validator of JSON schemas that gives up instead of blocking the process: schema and text come from strangers.

Thirty definitions that each refer to the next one twice are a schema of a kilobyte and 2**30 steps.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from contextvars import ContextVar
from typing import Any, cast

from jsonschema import validators
from jsonschema.exceptions import ValidationError
from jsonschema_specifications import REGISTRY as SPECIFICATIONS

from maestro_sdk.adapter.polyfill.patterns import is_quick, ways

_extend: Any = cast("Any", validators).extend
_MOST_STEPS = 200_000
"""About half a second. Real answers with real schemas need some thousand."""
_COSTS = {"$ref": 8, "$dynamicRef": 8}
"""Steps of keywords that cost more than one: these are looked up in the whole document."""
_MOST_WAYS = 20_000_000
"""Ways through all patterns on all texts: about half a second too."""
_DATA = frozenset({"const", "enum", "default", "examples"})
_UNEVALUATED = frozenset({"unevaluatedItems", "unevaluatedProperties"})

Keyword = Callable[[Any, Any, Any, Any], "Iterator[ValidationError] | None"]


class TooMuch(Exception):
    """The check takes more steps than it may."""


class _Budget:
    __slots__ = ("steps", "ways")

    def __init__(self) -> None:
        self.steps = _MOST_STEPS
        self.ways = _MOST_WAYS


_budget: ContextVar[_Budget] = ContextVar("budget")


def bounded(cls: Any, schema: Any) -> Any:
    """A validator of `schema` by the rules of the validator class `cls`.

    Patterns that would take long are not checked. `iter_errors` raises `TooMuch` when all else would.
    """
    own = {name: _counted(check, _COSTS.get(name, 1)) for name, check in cls.VALIDATORS.items()}
    own |= {"pattern": _check_pattern, "uniqueItems": _check_unique}
    # An own registry: the library's default one would load foreign addresses that a schema names.
    return _extend(cls, own)(_prepared(schema, drop=_refers(schema)), registry=SPECIFICATIONS)


def errors_of(validator: Any, value: Any) -> Iterator[ValidationError]:
    """What `validator` has against `value`. Raises `TooMuch`."""
    _budget.set(_Budget())
    yield from validator.iter_errors(value)


def _counted(check: Keyword, cost: int) -> Keyword:
    def checked(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[ValidationError] | None:
        budget = _budget.get()
        budget.steps -= cost + (len(cast("list[Any]", wanted)) // 8 if isinstance(wanted, list) else 0)
        if budget.steps < 0:
            raise TooMuch
        return check(validator, wanted, instance, schema)

    return checked


def _check_pattern(validator: Any, wanted: str, instance: Any, schema: Any) -> Iterator[ValidationError]:
    del schema
    if not validator.is_type(instance, "string"):
        return
    budget = _budget.get()
    budget.ways -= ways(wanted, len(instance))
    if budget.ways >= 0 and not re.search(wanted, instance):
        yield ValidationError(f"{instance!r} does not match {wanted!r}")


def _check_unique(validator: Any, wanted: Any, instance: Any, schema: Any) -> Iterator[ValidationError]:
    """The library's own compares each object with each other one."""
    del schema
    if not wanted or not validator.is_type(instance, "array"):
        return
    seen: set[Any] = set()
    for value in cast("list[Any]", instance):
        if (key := _key(value)) in seen:
            yield ValidationError(f"{value!r} is more than once in a list of unique items")
            return
        seen.add(key)


def _key(value: Any) -> Any:
    """Equal for what JSON Schema calls equal: 1 and 1.0 are, 1 and true are not."""
    match value:
        case bool():
            return ("bool", value)
        case dict():
            return frozenset((key, _key(below)) for key, below in cast("dict[str, Any]", value).items())
        case list():
            return tuple(map(_key, cast("list[Any]", value)))
        case _:
            return value


def _refers(schema: Any) -> bool:
    match schema:
        case Mapping():
            inside = cast("Mapping[str, Any]", schema)
            return any(name in inside for name in ("$ref", "$dynamicRef")) or any(map(_refers, inside.values()))
        case list():
            return any(map(_refers, cast("list[Any]", schema)))
        case _:
            return False


def _prepared(schema: Any, *, drop: bool) -> Any:
    """`schema` without what can't be counted.

    That are patterns that are not quick, `$schema` within it (which would bring the library's own validator back), and
    with `drop` what asks for all that references evaluate. None of it is checked.
    """
    match schema:
        case Mapping():
            kept: dict[str, Any] = {}
            for key, value in cast("Mapping[str, Any]", schema).items():
                match key, value:
                    case ("pattern" | "$schema", str()) if key == "$schema" or not is_quick(value):
                        pass
                    case "patternProperties", dict() if not all(map(_is_light, cast("dict[str, Any]", value))):
                        pass
                    case key, _ if drop and key in _UNEVALUATED and not isinstance(value, str):
                        pass
                    case key, _ if key in _DATA:
                        kept[key] = value
                    case _:
                        kept[key] = _prepared(value, drop=drop)
            if "patternProperties" in schema and "patternProperties" not in kept:
                # Without them it is not known which properties are additional.
                kept.pop("additionalProperties", None)
            return kept
        case list():
            return [_prepared(value, drop=drop) for value in cast("list[Any]", schema)]
        case _:
            return schema


def _is_light(pattern: str) -> bool:
    """Whether a pattern for names may be tried on names of any usual length."""
    return is_quick(pattern) and ways(pattern, 64) <= _MOST_WAYS // 100
