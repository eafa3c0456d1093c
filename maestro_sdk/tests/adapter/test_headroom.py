"""Headers of providers as headroom: what is odd is left out, and nothing raises."""

from __future__ import annotations

import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from multidict import CIMultiDict

from maestro.llm.v1.usage_pb2 import Headroom, RateLimit
from maestro_sdk.adapter.headroom import headroom

NOW = 1_780_000_000.0
"""2026-05-28T20:26:40Z."""


def limit(remaining: int, limit: int | None = None, reset: float | None = None) -> RateLimit:
    found = RateLimit(remaining=remaining, limit=limit)
    if reset is not None:
        found.reset.FromNanoseconds(round(reset * 1e9))
    return found


def openai(kind: str = "requests", **facts: str) -> dict[str, str]:
    return {f"x-ratelimit-{name}-{kind}": value for name, value in facts.items()}


def anthropic(kind: str = "requests", **facts: str) -> dict[str, str]:
    return {f"anthropic-ratelimit-{kind}-{name}": value for name, value in facts.items()}


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"content-type": "application/json", "x-ratelimit-limit": "20, 20;w=60"}, None),
        (openai(limit="500", reset="1s"), None),  # without a remainder a limit says nothing
        (
            openai(limit="500", remaining="499", reset="120ms")
            | openai("tokens", limit="200000", remaining="199871", reset="6m0s"),
            Headroom(requests=limit(499, 500, 0.12), tokens=limit(199871, 200000, 360.0)),
        ),
        (openai("tokens", remaining="0"), Headroom(tokens=limit(0))),
        (
            anthropic(limit="4000", remaining="3999", reset="2026-05-28T20:26:41Z")
            | anthropic("tokens", limit="480000", remaining="479000", reset="2026-05-28T20:26:40.500Z")
            | anthropic("input-tokens", limit="400000", remaining="1000", reset="2026-05-28T22:27:40+02:00")
            | anthropic("output-tokens", limit="80000", remaining="79000", reset="2026-05-28T20:26:40Z"),
            Headroom(requests=limit(3999, 4000, 1.0), tokens=limit(1000, 400000, 60.0)),
        ),
        # The tightest is that of which the least share is left, not the smallest number.
        (
            anthropic("input-tokens", limit="2000000", remaining="10000")
            | anthropic("output-tokens", limit="80000", remaining="9000"),
            Headroom(tokens=limit(10000, 2000000)),
        ),
        (
            anthropic("input-tokens", limit="2000", remaining="1") | anthropic("output-tokens", remaining="0"),
            Headroom(tokens=limit(0)),
        ),
        (
            anthropic("input-tokens", remaining="7") | anthropic("output-tokens", remaining="5"),
            Headroom(tokens=limit(5)),
        ),
        # A limit that is spent since a moment ago is whole again: never a time below zero.
        (anthropic(remaining="1", reset="2026-05-28T20:26:39Z"), Headroom(requests=limit(1, None, 0.0))),
        # One part is odd: it is left out, the others stand.
        (openai(remaining="7", limit="-1", reset="soon"), Headroom(requests=limit(7))),
        (openai(remaining="7", limit="99999999999", reset="NaN"), Headroom(requests=limit(7))),
        (
            openai(remaining="x") | openai("tokens", remaining="7", limit="1e6"),
            Headroom(tokens=limit(7)),
        ),
        (anthropic(remaining="7", reset="2026-05-28T20:26:41"), Headroom(requests=limit(7))),
        (anthropic(remaining="7", reset="2026-99-99T99:99:99Z"), Headroom(requests=limit(7))),
        (anthropic(remaining="7", reset="9999-12-31T23:59:59Z"), Headroom(requests=limit(7))),
        (openai(remaining=" 7 "), Headroom(requests=limit(7))),
    ],
)
def test_headers(headers: dict[str, str], expected: Headroom | None) -> None:
    assert headroom(headers, NOW) == expected


@pytest.mark.parametrize(
    "odd", ["", "-1", "NaN", "inf", "1.5", "1e3", "0x10", "7 left", "²", "99999999999", "9" * 5000]
)
def test_a_remainder_that_is_no_count_says_nothing(odd: str) -> None:
    assert headroom(openai(remaining=odd, limit="5"), NOW) is None
    assert headroom(anthropic(remaining=odd, limit="5"), NOW) is None


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0.0),
        ("59", 59.0),
        ("0.25", 0.25),
        ("1s", 1.0),
        ("7.66s", 7.66),
        ("12ms", 0.012),
        ("1.5ms", 0.0015),
        ("1m", None),  # Go always says the seconds; so this is nobody's word
        ("6m0s", 360.0),
        ("2m59.56s", 179.56),
        ("1h2m3s", 3723.0),
        ("1d2h0s", 93600.0),
        ("1s500ms", 1.5),
        ("s", None),
        ("-1s", None),
        ("-5", None),
        ("nan", None),
        ("inf", None),
        ("1e400", None),
        ("1780000060", None),  # a moment in Unix time
        ("99999999999999999999h0s", None),
        ("1s1m", None),
        ("٣s", None),
        ("1" * 60, None),
    ],
)
def test_resets(text: str, seconds: float | None) -> None:
    found = headroom(openai(remaining="1", reset=text), NOW)
    assert found is not None
    told = found.requests.reset.ToNanoseconds() / 1e9 if found.requests.HasField("reset") else None
    assert told == seconds


@given(
    st.dictionaries(
        st.sampled_from([*openai(remaining="", limit="", reset=""), *anthropic(remaining="", limit="", reset="")]),
        st.text(max_size=60),
    )
)
def test_nothing_raises_and_all_of_it_is_in_bounds(headers: dict[str, str]) -> None:
    found = headroom(headers, NOW)
    if found is not None:
        assert 0 <= found.requests.remaining <= 2**31 - 1
        assert 0 <= found.requests.reset.ToNanoseconds() <= 31 * 86400 * 10**9


def test_what_it_costs() -> None:
    """3 µs where headers say nothing, 15 µs where they do; the bounds leave room for a busy machine."""
    quiet: Any = CIMultiDict({f"x-header-{number}": "value" for number in range(12)})
    told: Any = CIMultiDict(
        openai(limit="500", remaining="499", reset="120ms")
        | openai("tokens", limit="200000", remaining="199871", reset="6m0s")
    )

    def cost(headers: Any) -> float:
        return min(_timed(headers) for _ in range(20))

    assert cost(quiet) < 10e-6
    assert cost(told) < 50e-6


def _timed(headers: Any) -> float:
    begun = time.perf_counter()
    for _ in range(100):
        headroom(headers, NOW)
    return (time.perf_counter() - begun) / 100
