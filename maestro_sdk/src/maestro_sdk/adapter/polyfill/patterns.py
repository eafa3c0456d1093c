"""How much work a regular expression of a schema may cause on a model's text.

Python's engine goes back: `^(a+)+$` takes years on thirty letters that do not match, and blocks the whole process
meanwhile; `a*a*a*a*b` does so on some hundred. A schema comes from a stranger, and so does the text.
"""

from __future__ import annotations

import re
from functools import lru_cache

_LONGEST = 1000
_REPEATS = "*+{"
_COUNT = re.compile(r"\{(\d*)(,?)(\d*)\}")


@lru_cache(maxsize=1024)
def is_quick(pattern: str) -> bool:
    """Whether Python knows `pattern`, and no group that is repeated holds a repeat or a choice itself."""
    if len(pattern) > _LONGEST:
        return False
    try:
        re.compile(pattern)
    except (re.error, RecursionError, OverflowError):
        return False
    return not _nests(pattern)


def ways(pattern: str, length: int) -> int:
    """At most so many ways lead through a quick `pattern` on a text of `length`: what the engine tries in the end.

    Each repeat multiplies them by the times it may repeat, each choice by its branches.
    """
    found = 1 if pattern.startswith("^") else length + 1
    place = 0
    while place < len(pattern):
        match pattern[place]:
            case "\\":
                place += 1
            case "[":
                place = _end_of_class(pattern, place)
            case "*" | "+":
                found *= length + 1
            case "{" if counted := _COUNT.match(pattern, place):
                found *= _span(counted, length)
                place = counted.end() - 1
            case "?" if place and pattern[place - 1] not in "(*+?}":
                found *= 2
            case "|":
                found *= 2
            case _:
                pass
        place += 1
    return found


def _span(counted: re.Match[str], length: int) -> int:
    """How many times `{least,most}` may repeat, on a text of `length`."""
    least, comma, most = counted[1], counted[2], counted[3]
    if not comma:
        return 1
    return max(1, (min(int(most), length) if most else length) - int(least or 0) + 1)


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
