"""What the parameter types of an official client allow: for each optional field a small value with it, and without."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Literal, Required, Union, cast

_LISTS = (list, Iterable, Sequence)


def pairs(kind: Any, place: str = "") -> Iterator[tuple[str, Any, Any]]:
    """The name of each optional field at any depth, a value of `kind` with it, and the same without."""
    kind = _bare(kind)
    if _is_record(kind):
        fields = typing.get_type_hints(kind, include_extras=True)
        base = _base(fields)
        for name, inner in sorted(fields.items()):
            here = f"{place}.{name}" if place else name
            if name not in base:
                for value in samples(inner):
                    yield here, {**base, name: value}, base
            for found, value, less in pairs(inner, here):
                yield found, {**base, name: value}, {**base, name: less}
    elif _is_union(kind):
        for one in typing.get_args(kind):
            yield from pairs(one, place)
    elif _is_list(kind):
        for found, value, less in pairs(typing.get_args(kind)[0], place):
            yield found, [value], [less]


def samples(kind: Any) -> Iterator[Any]:
    """Small values of a type, one of each kind that it allows; none of what JSON can't hold."""
    kind = _bare(kind)
    if _is_union(kind):
        for one in typing.get_args(kind):
            yield from samples(one)
    elif typing.get_origin(kind) is Literal:
        yield from typing.get_args(kind)[:8]
    elif _is_record(kind):
        yield _base(typing.get_type_hints(kind, include_extras=True))
    elif _is_list(kind):
        for one in samples(typing.get_args(kind)[0]):
            yield [one]
    elif typing.get_origin(kind) in (dict, Mapping):
        yield {"k": next(samples(typing.get_args(kind)[1]))}
    elif kind in _PLAIN:
        yield _PLAIN[kind]


_PLAIN: Mapping[Any, Any] = {str: "eA==", int: 1, float: 0.5, bool: True, object: "o"}


def _base(fields: Mapping[str, Any]) -> dict[str, Any]:
    """A record of what is required."""
    needed = {name: kind for name, kind in fields.items() if typing.get_origin(kind) is Required}
    return {name: next(samples(kind)) for name, kind in sorted(needed.items())}


def _bare(kind: Any) -> Any:
    while typing.get_origin(kind) in (Required, typing.NotRequired, typing.Annotated):
        kind = typing.get_args(kind)[0]
    return kind


def _is_union(kind: Any) -> bool:
    return typing.get_origin(kind) in (Union, types.UnionType)


def _is_record(kind: Any) -> bool:
    return isinstance(kind, type) and hasattr(cast("Any", kind), "__total__")


def _is_list(kind: Any) -> bool:
    origin = typing.get_origin(kind)
    # The clients have a protocol of their own for sequences that are no strings.
    return origin in _LISTS or getattr(origin, "__name__", "") in ("Iterable", "Sequence", "SequenceNotStr")
