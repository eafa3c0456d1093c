"""Texts for regular expressions: always a match, or a clear no."""

from __future__ import annotations

import re
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro_adapter_local.offline.pattern import Unknown, is_quick, parse, texts

ATOMS = st.sampled_from(["a", "Z", r"\d", r"\w", r"\s", "[a-f]", "[^a]", "[0-9_-]", r"\.", ".", r"[\w.]", "é", r"\x41"])


def _patterns() -> st.SearchStrategy[str]:
    quantified = st.tuples(ATOMS, st.sampled_from(["", "", "?", "*", "+", "{2}", "{1,3}", "{2,}"])).map("".join)
    branches = st.lists(quantified, min_size=1, max_size=4).map("".join)
    grouped = st.lists(branches, min_size=1, max_size=3).map(lambda options: f"(?:{'|'.join(options)})")
    parts = st.lists(branches | grouped, min_size=1, max_size=3).map("".join)
    return st.tuples(st.sampled_from(["", "^"]), parts, st.sampled_from(["", "$"])).map("".join)


@settings(deadline=None)
@given(_patterns())
def test_every_text_matches(pattern: str) -> None:
    found = list(islice(texts(pattern), 5))
    assert found, pattern
    assert all(re.search(pattern, text) for text in found)


@settings(deadline=None)
@given(st.integers(0, 30), st.integers(0, 10))
def test_lengths_are_kept(low: int, more: int) -> None:
    found = list(islice(texts("^[a-z][a-z0-9-]*$", low, low + more + 1), 5))
    assert found
    assert all(low <= len(text) <= low + more + 1 for text in found)


@pytest.mark.parametrize(
    ("pattern", "first"),
    [
        (r"^[A-Z]{3}-\d{4}$", "AAA-0000"),
        (r"^(red|green)$", "red"),
        (r"^\+?\d{3}$", "000"),
        (r"^(?P<user>a)@(b|c)\.de$", "a@b.de"),
        ("x", "x"),
        ("", ""),
    ],
)
def test_first_text_is_the_plainest(pattern: str, first: str) -> None:
    assert next(texts(pattern)) == first


NOT_SIMPLE = ["(?=a)b", "(?<!a)b", r"(a)\1", r"\bword\b", "(?i)a", "a(", "[b-a]", "*a", r"\p{L}"]


@pytest.mark.parametrize("pattern", NOT_SIMPLE)
def test_what_is_not_simple_is_refused(pattern: str) -> None:
    with pytest.raises(Unknown):
        next(texts(pattern))


def test_nested_repetitions_are_told_from_quick_ones() -> None:
    assert is_quick(parse("^[a-z]+(-[a-z])?$"))
    assert not is_quick(parse("^(a+)+$"))
    assert next(texts("^(a+)+$", 4, 8)) == "aaaa"


def test_enormous_repetitions_make_nothing() -> None:
    assert list(texts("^(a{4000}){4000}$")) == []
