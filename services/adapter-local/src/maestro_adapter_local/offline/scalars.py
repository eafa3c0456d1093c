"""Plain values for schemas: texts of a length, numbers within bounds, samples of formats."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from fractions import Fraction
from typing import Any

from maestro_adapter_local.offline.flat import Flat

PLAIN = "offline model"
FORMATS: dict[str, tuple[str, ...]] = {
    "date-time": ("2026-01-01T00:00:00Z", "2026-01-02T00:00:00Z"),
    "date": ("2026-01-01", "2026-01-02"),
    "time": ("00:00:00Z", "12:00:00Z"),
    "duration": ("P1D", "PT1H"),
    "email": ("offline@example.com", "a@b.co"),
    "idn-email": ("offline@example.com", "a@b.co"),
    "hostname": ("example.com", "a.co"),
    "idn-hostname": ("example.com", "a.co"),
    "ipv4": ("192.0.2.1", "192.0.2.2"),
    "ipv6": ("2001:db8::1", "::1"),
    "uri": ("https://example.com/", "urn:a:b"),
    "uri-reference": ("https://example.com/", "/"),
    "iri": ("https://example.com/", "urn:a:b"),
    "iri-reference": ("https://example.com/", "/"),
    "uri-template": ("https://example.com/{id}", "/"),
    "uuid": ("00000000-0000-4000-8000-000000000000", "00000000-0000-4000-8000-000000000001"),
    "json-pointer": ("/offline", ""),
    "relative-json-pointer": ("0/offline", "0"),
    "regex": ("offline", "."),
}


def plain_texts(low: int, top: int) -> Iterator[str]:
    """Distinct texts within the lengths."""
    text = PLAIN if len(PLAIN) >= low else (f"{PLAIN} " * (low // len(PLAIN) + 1))[:low]
    yield text[:top]
    if top == 0:
        return
    for number in itertools.count(2):
        ending = f" {number}"
        if len(ending) > top:
            break
        if number > 2_000:
            return
        yield text[: top - len(ending)] + ending
    # No room for numbers: single letters and pairs of them.
    letters = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
    for width in range(max(1, low), min(top, 2) + 1):
        yield from ("".join(signs) for signs in itertools.product(letters, repeat=width))


def steps_within(flat: Flat, step: Fraction) -> Iterator[Fraction]:
    """Multiples of `step` within the bounds, those near zero first."""
    low = -math.inf if flat.low is None else math.ceil(flat.low / step)
    high = math.inf if flat.high is None else math.floor(flat.high / step)
    if flat.low is not None and flat.low_open and low * step == flat.low:
        low += 1
    if flat.high is not None and flat.high_open and high * step == flat.high:
        high -= 1
    if low > high:
        return
    start = int(min(max(1, low), high))
    for distance in range(2_000):
        if start + distance <= high:
            yield (start + distance) * step
        if distance and start - distance >= low:
            yield (start - distance) * step


def between(flat: Flat, low: Fraction, high: Fraction) -> Iterator[Fraction]:
    """Fractions between the bounds, and the bounds where they belong to it."""
    if low > high:
        return
    if not flat.low_open:
        yield low
    if not flat.high_open:
        yield high
    if low < high:
        for parts in (2, 4, 10, 64, 1024):
            yield from (low + (high - low) * part / parts for part in range(1, parts))


def plain_number(number: Fraction) -> int | float:
    return int(number) if number.denominator == 1 else float(number)


def kind_of(value: Any, kinds: tuple[str, ...]) -> bool:
    match value:
        case bool():
            return "boolean" in kinds
        case int():
            return "integer" in kinds or "number" in kinds
        case float():
            return "number" in kinds or (value.is_integer() and "integer" in kinds)
        case str():
            return "string" in kinds
        case list():
            return "array" in kinds
        case dict():
            return "object" in kinds
        case _:
            return "null" in kinds


def identity(value: Any) -> str:
    """A key that is equal for values that JSON Schema holds equal."""
    match value:
        case bool() | None:
            return repr(value)
        case int() | float():
            return f"n{Fraction(value)}"
        case list():
            return f"[{','.join(identity(item) for item in value)}]"  # pyright: ignore[reportUnknownVariableType]
        case dict():
            pairs = sorted(f"{key!r}:{identity(below)}" for key, below in value.items())  # pyright: ignore[reportUnknownVariableType]
            return f"{{{','.join(pairs)}}}"
        case _:
            return repr(value)
