"""What a provider sends on a bad day: a JSON document of its wire with one value wrong.

for broken in spoil(document):
    with suppress(MaestroError):        # an error of the contract is right, and nothing else is
        read(json.dumps(broken).encode())
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, cast

Path = tuple[str | int, ...]


def spoil(document: Any) -> Iterator[Any]:
    """The document with each of its values in turn left out, or replaced by values that don't belong there."""
    for path in _paths(document, ()):
        for value in WRONG:
            yield _put(document, path, value)
        if path:
            yield _put(document, path, _GONE)


def nest(depth: int) -> Any:
    """Objects within each other."""
    value: Any = {}
    for _ in range(depth):
        value = {"a": value}
    return value


WRONG: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 2**31, 2**63, -(2**40), 1.5, 1e300),
    *("", "x", "12", "NaN", "\x00", "2026-13-45T99:99:99Z"),
    *([], [None], [[]], ["x"], [1], [{}], {}, {"a": 1}, {"": None}),
    *(nest(40), nest(300)),
)
"""Among them numbers beyond 32 bits and what is nested deeper than protobuf, or orjson, would carry."""
_GONE = object()


def _paths(value: Any, path: Path) -> Iterator[Path]:
    yield path
    if isinstance(value, dict):
        for name, inner in cast("dict[str, Any]", value).items():
            yield from _paths(inner, (*path, name))
    elif isinstance(value, list):
        for number, inner in enumerate(cast("list[Any]", value)):
            yield from _paths(inner, (*path, number))


def _put(document: Any, path: Path, value: Any) -> Any:
    if not path:
        return value
    made: Any = copy.deepcopy(document)
    inner = made
    for step in path[:-1]:
        inner = inner[step]
    if value is _GONE:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return made
