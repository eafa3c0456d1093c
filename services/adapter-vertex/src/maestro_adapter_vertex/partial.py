"""Arguments of a call that come in pieces: values at JSON paths, texts in several parts."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, cast

import orjson

from maestro_sdk.errors import StreamBroken

# One step of a path (RFC 9535): .name, [0], ['name'] or ["name"].
_STEP = re.compile(r"""\.([^.\[\]]+)|\[(\d+)\]|\['((?:[^'\\]|\\.)*)'\]|\["((?:[^"\\]|\\.)*)"\]""")
_ESCAPED = re.compile(r"\\(.)")
_VALUES = ("stringValue", "numberValue", "boolValue", "nullValue")
MAX_INDEX = 100_000

Step = str | int


class PartialCall:
    """One call under way: where its part stands, and the arguments so far."""

    __slots__ = ("_arguments", "_open", "call_id", "index")

    def __init__(self, index: int, call_id: str, arguments: Mapping[str, Any]) -> None:
        self.index = index
        self.call_id = call_id
        self._arguments: dict[str, Any] = dict(arguments)
        self._open: set[str] = set()

    def add(self, piece: Mapping[str, Any]) -> None:
        """Takes a `partialArgs` entry. Raises `StreamBroken` for one that can't be placed."""
        path = str(piece.get("jsonPath", ""))
        steps = _steps(path)
        kind = next((name for name in _VALUES if name in piece), None)
        if kind is None:
            # Only says that the value goes on, or begins.
            value: Any = ""
            if path in self._open or not piece.get("willContinue"):
                self._mark(path, piece)
                return
        else:
            value = None if kind == "nullValue" else piece[kind]
        if isinstance(value, float) and value.is_integer() and abs(value) <= 2**53:
            value = int(value)
        _put(self._arguments, steps, value, path, append=path in self._open and isinstance(value, str))
        self._mark(path, piece)

    def text(self) -> str:
        """The arguments as JSON text."""
        return orjson.dumps(self._arguments).decode()

    def _mark(self, path: str, piece: Mapping[str, Any]) -> None:
        if piece.get("willContinue"):
            self._open.add(path)
        else:
            self._open.discard(path)


def _steps(path: str) -> list[Step]:
    if not path.startswith("$") or path == "$":
        raise StreamBroken(f"the provider sent an argument at {path!r}, which is no path to one")
    steps: list[Step] = []
    position = 1
    while position < len(path):
        found = _STEP.match(path, position)
        if found is None:
            raise StreamBroken(f"the provider sent an argument at {path!r}, which can't be read")
        name, index, single, double = found.groups()
        if index is not None:
            steps.append(int(index))
        else:
            quoted = single if single is not None else double
            steps.append(name if quoted is None else _ESCAPED.sub(r"\1", quoted))
        position = found.end()
    return steps


def _put(target: Any, steps: list[Step], value: Any, path: str, *, append: bool) -> None:
    for number, step in enumerate(steps):
        last = number == len(steps) - 1
        fresh: Any = value if last else ([] if isinstance(steps[number + 1], int) else {})
        if isinstance(step, int):
            if not isinstance(target, list) or step > MAX_INDEX:
                raise StreamBroken(f"the provider sent an argument at {path!r}, where there is no list")
            items = cast("list[Any]", target)
            while len(items) <= step:
                items.append(None)
            known = items[step]
            items[step] = _next(known, fresh, last=last, append=append)
            target = items[step]
        else:
            if not isinstance(target, dict):
                raise StreamBroken(f"the provider sent an argument at {path!r}, where there is no object")
            fields = cast("dict[str, Any]", target)
            known = fields.get(step)
            fields[step] = _next(known, fresh, last=last, append=append)
            target = fields[step]


def _next(known: Any, fresh: Any, *, last: bool, append: bool) -> Any:
    if not last:
        return cast("Any", known) if isinstance(known, dict | list) else fresh
    return known + fresh if append and isinstance(known, str) else fresh
