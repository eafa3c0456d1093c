"""Marks that several routers set at once become the same on all of them."""

from __future__ import annotations

import itertools
from dataclasses import replace
from functools import reduce

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro.router.v1 import router_pb2 as pb
from maestro_router.marks import Kind, Mark, decode, encode, merge

SCOPE = "claude:anthropic/claude-sonnet-5-5"
QUOTA = Mark(Kind.BREAKER, SCOPE, since=100.0, until=400.0, reason="PROVIDER_QUOTA", by="a")
SHORT = Mark(Kind.BREAKER, SCOPE, since=101.0, until=111.0, reason="5 failures in a row", by="b")
WELL = Mark(Kind.BREAKER, SCOPE, cleared=105.0, by="b")
DRAIN = Mark(Kind.WISH, SCOPE, since=100.0, state=pb.BACKEND_STATE_DRAINING, reason="upgrade", by="a")
DISABLE = Mark(Kind.WISH, SCOPE, since=101.0, state=pb.BACKEND_STATE_DISABLED, reason="dear", by="b")


@pytest.mark.parametrize(
    ("marks", "now", "reason"),
    [
        ((QUOTA,), 399.0, "PROVIDER_QUOTA"),
        ((QUOTA,), 400.0, None),
        # Both found it: who stays away for longer is right.
        ((QUOTA, SHORT), 120.0, "PROVIDER_QUOTA"),
        ((QUOTA, WELL), 120.0, None),
        # An opening of before the operator's word is over, also when it arrives late.
        ((QUOTA, SHORT, WELL), 110.0, None),
        ((WELL, replace(SHORT, since=106.0)), 110.0, "5 failures in a row"),
        ((QUOTA, replace(SHORT, since=106.0, cleared=105.0)), 110.0, "5 failures in a row"),
        # Of wishes the last one counts.
        ((DRAIN, DISABLE), 1e9, "dear"),
        ((DRAIN, DISABLE, Mark(Kind.WISH, SCOPE, cleared=102.0)), 103.0, None),
    ],
)
def test_what_marks_say_together(marks: tuple[Mark, ...], now: float, reason: str | None) -> None:
    found = {reduce(merge, order) for order in itertools.permutations(marks)}
    assert {(mark.reason if mark.holds(now) else None) for mark in found} == {reason}


MOMENTS = st.floats(0, 10).map(lambda moment: round(moment, 1))
MARKS = st.builds(
    Mark,
    st.just(Kind.BREAKER),
    st.just(SCOPE),
    since=MOMENTS,
    until=MOMENTS,
    cleared=MOMENTS,
    by=st.sampled_from("ab"),
)


@given(MARKS, MARKS)
def test_two_routers_that_tell_each_other_agree(one: Mark, other: Mark) -> None:
    merged = merge(one, other)
    assert merge(other, one) == merged
    assert merge(merged, one) == merge(merged, other) == merge(merged, merged) == merged


@pytest.mark.parametrize("mark", [QUOTA, WELL, DISABLE, replace(QUOTA, scope="a b:ü/x*>.y")])
def test_a_mark_is_kept_as_it_is(mark: Mark) -> None:
    assert decode(encode(mark)) == mark
    assert all(letter.isalnum() or letter in "-_." for letter in mark.key)
    assert mark.key.isascii()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no json",
        b"[]",
        b"{}",
        b'{"kind": "breaker"}',
        b'{"kind": "mood", "scope": "a:b/c"}',
        b'{"kind": "breaker", "scope": "a:b/c", "until": "tomorrow"}',
        b'{"kind": "wish", "scope": "a:b/c", "since": 1, "state": 99}',
    ],
)
def test_what_is_no_mark_is_refused(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        decode(data)


def test_what_a_newer_router_adds_is_left_out() -> None:
    assert decode(encode(QUOTA)[:-1] + b', "mood": "fine"}') == QUOTA
