"""Bodies with one thing wrong: every node of a full body in turn is replaced, taken out, or added to."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Iterator
from typing import Any, cast

from maestro_sdk.errors import InvalidRequest


def _nested(depth: int) -> Any:
    value: Any = 0
    for level in range(depth):
        value = [value] if level % 2 else {"a": value}
    return value


WRONG: tuple[Any, ...] = (
    *(None, True, 0, -1, 1.5, -1e308, 2**53 + 1, 2**70),
    *("", "x", "data:image/png;base64,%", "\x00", "A" * 5_000),
    *([], [None], [{}], ["x", 1], {}, {"": None}, {"type": "?"}, {"type": ["text"]}, {"type": "text"}),
    *(_nested(30), _nested(60)),
)
"""What no field takes, and what some do."""


def tally(decode: Callable[[bytes], object], body: Any) -> tuple[int, int, list[str]]:
    """How many bodies were tried, how many refused, and what went wrong: other exceptions, refusals without a place."""
    tried = refused = 0
    faults: list[str] = []
    for where, spoiled in spoil(body):
        tried += 1
        try:
            decode(json.dumps(spoiled).encode())
        except InvalidRequest as error:
            refused += 1
            if not error.violations or not all(each.field and each.message for each in error.violations):
                faults.append(f"{where}: no place in {error}")
        except Exception as error:  # noqa: BLE001 - what must not happen, whatever it is
            faults.append(f"{where}: {error!r}")
    return tried, refused, faults


def spoil(body: Any) -> Iterator[tuple[str, Any]]:
    """Where something is wrong, and the whole body with it."""
    for path in _paths(body):
        for number, value in enumerate(WRONG):
            yield (
                f"{_name(path)} = WRONG[{number}]",
                _changed(body, path, lambda place, key, value=value: _set(place, key, value)),
            )
        yield f"{_name(path)} out", _changed(body, path, _take_out)
        if isinstance(_at(body, path), dict):
            yield (
                f"{_name(path)} more",
                _changed(body, (*path, "no_such"), lambda place, key: _set(place, key, {"a": [1]})),
            )


def spoil_bytes(body: Any) -> Iterator[bytes]:
    """Bytes that are no such document at all."""
    raw = json.dumps(body).encode()
    yield from (
        b"",
        b" ",
        b"null",
        b"[]",
        b"1",
        b'"x"',
        b"{",
        b"\xff\xfe",
        raw[:-1],
        raw + b"}",
        raw.replace(b":", b""),
    )
    yield b'{"model":"m","model":"m","messages":[]}'
    yield b'{"model":NaN}'
    yield b'{"messages":' + b"[" * 5000 + b"]" * 5000 + b"}"
    yield b'{"model":"\\ud800","messages":[{"role":"user","content":"x"}],"max_tokens":1}'
    yield from (raw[:cut] for cut in range(0, len(raw), 37))


def _paths(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    if isinstance(value, dict):
        for key, item in cast("dict[str, Any]", value).items():
            yield from _paths(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(cast("list[Any]", value)):
            yield from _paths(item, (*path, index))


def _changed(body: Any, path: tuple[Any, ...], change: Any) -> Any:
    found = copy.deepcopy(body)
    change(_at(found, path[:-1]), path[-1])
    return found


def _at(body: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        body = body[key]
    return body


def _set(place: Any, key: Any, value: Any) -> None:
    place[key] = value


def _take_out(place: Any, key: Any) -> None:
    del place[key]


def _name(path: tuple[Any, ...]) -> str:
    return ".".join(map(str, path))
