"""Which regular expressions of a schema may be tried on a model's text.

Python's engine goes back: `^(a+)+$` takes years on thirty letters that do not match, and blocks the whole process
meanwhile. A schema comes from a stranger, and so does the text.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

_LONGEST = 1000
_REPEATS = "*+{"


def is_quick(pattern: str) -> bool:
    """Whether Python knows `pattern`, and no group that is repeated holds a repeat or a choice itself."""
    if len(pattern) > _LONGEST:
        return False
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return not _nests(pattern)


def without_slow_patterns(schema: Any) -> Any:
    """`schema` without `pattern` and `patternProperties` that are not quick: they are not checked."""
    match schema:
        case Mapping():
            kept: dict[str, Any] = {}
            for key, value in cast("Mapping[str, Any]", schema).items():
                match key, value:
                    case "pattern", str() if not is_quick(value):
                        pass
                    case "patternProperties", dict() if not all(map(is_quick, cast("dict[str, Any]", value))):
                        pass
                    case (("const" | "enum" | "default" | "examples"), _):
                        kept[key] = value
                    case _:
                        kept[key] = without_slow_patterns(value)
            if "patternProperties" in schema and "patternProperties" not in kept:
                # Without them it is not known which properties are additional.
                kept.pop("additionalProperties", None)
            return kept
        case list():
            return [without_slow_patterns(value) for value in cast("list[Any]", schema)]
        case _:
            return schema


def _nests(pattern: str) -> bool:
    """Whether a repeat follows a group that holds a repeat or a choice."""
    groups = [False]
    place = 0
    while place < len(pattern):
        match pattern[place]:
            case "\\":
                place += 1
            case "[":
                place = _end_of_class(pattern, place)
            case "(":
                groups.append(False)
            case ")" if len(groups) > 1:
                inner = groups.pop()
                if inner and place + 1 < len(pattern) and pattern[place + 1] in _REPEATS:
                    return True
                groups[-1] = groups[-1] or inner
            case "|" | "*" | "+" | "{":
                groups[-1] = True
            case "?" if place and pattern[place - 1] != "(":
                groups[-1] = True
            case _:
                pass
        place += 1
    return False


def _end_of_class(pattern: str, place: int) -> int:
    """The place of the bracket that closes the class which begins at `place`."""
    place += 2 if pattern[place + 1 : place + 2] == "^" else 1
    first = place
    while place < len(pattern) and (pattern[place] != "]" or place == first):
        place += 2 if pattern[place] == "\\" else 1
    return place
