"""The offline model's tokens cover every text and don't change when a text is cut between two of them."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st

from maestro_adapter_local.offline import tokens

TEXTS = st.text(max_size=80) | st.text(alphabet="ab _.,\n\té9“", max_size=80)


@settings(deadline=None)
@given(TEXTS)
def test_tokens_make_the_text_again(text: str) -> None:
    assert "".join(tokens.split(text)) == text
    assert tokens.count(text) == len(tokens.split(text))


@settings(deadline=None)
@given(TEXTS, st.integers(0, 40))
def test_first_tokens_stay_when_the_rest_is_cut(text: str, kept: int) -> None:
    first = tokens.split(text)[:kept]
    assert tokens.split("".join(first)) == first


def test_words_keep_the_space_before_them() -> None:
    assert tokens.split("One, two  three-four abcdefghijklmnop") == [
        "One", ",", " two", "  ", "three", "-", "four", " abcdefghijkl", "mnop",
    ]  # fmt: skip
