"""The offline model stops where it is told to: at limits, at stop texts, at the end of its window."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro.llm.v1.chat_pb2 import FinishReason
from maestro_adapter_local.offline import tokens
from maestro_sdk.errors import ContextTooLong

from .offline_asking import TEXTS, WEATHER, answer, ask, calls_of, text_of


@settings(max_examples=80, deadline=None)
@given(TEXTS, st.integers(1, 120))
def test_max_tokens_cuts_at_a_token(prompt: str, limit: int) -> None:
    free, cut = answer(ask(prompt)), answer(ask(prompt, max_tokens=limit))
    assert cut.usage.output_tokens == min(limit, free.usage.output_tokens)
    if limit < free.usage.output_tokens:
        assert cut.finish_reason == FinishReason.FINISH_REASON_LENGTH
    else:
        assert cut.finish_reason == FinishReason.FINISH_REASON_STOP
    assert tokens.count(text_of(cut)) == cut.usage.output_tokens
    assert text_of(free).startswith(text_of(cut))


@settings(max_examples=80, deadline=None)
@given(TEXTS, st.lists(st.sampled_from(["model", ".", "a", "an", " 7", "zzz", "\n", "This"]), min_size=1, max_size=3))
def test_stop_texts_are_not_in_the_answer(prompt: str, stops: list[str]) -> None:
    response = answer(ask(prompt, stop=stops))
    said = text_of(response)
    assert not any(stop in said for stop in stops)
    assert text_of(answer(ask(prompt))).startswith(said + response.stop_sequence)
    if response.finish_reason == FinishReason.FINISH_REASON_STOP_SEQUENCE:
        assert response.stop_sequence in stops
    else:
        assert response.finish_reason == FinishReason.FINISH_REASON_STOP
        assert response.stop_sequence == ""


def test_stop_and_limit_meet() -> None:
    both = answer(ask("Count to 10", stop=["7"], max_tokens=4))
    assert (text_of(both), both.finish_reason) == ("1, 2,", FinishReason.FINISH_REASON_LENGTH)
    stopped = answer(ask("Count to 10", stop=["3", "7"], max_tokens=50))
    assert (text_of(stopped), stopped.stop_sequence) == ("1, 2, ", "3")
    shortest = answer(ask("Count to 10", stop=["3, 4", "3,"]))
    assert (text_of(shortest), shortest.stop_sequence) == ("1, 2, ", "3,")


def test_the_longest_answer_ends_with_length() -> None:
    response = answer(ask("Write 10000 words"))
    assert response.finish_reason == FinishReason.FINISH_REASON_LENGTH
    assert response.usage.output_tokens == 8192


def test_a_full_window_is_told() -> None:
    with pytest.raises(ContextTooLong, match="the window of local/offline 131072"):
        answer(ask("word " * 140_000))
    nearly = answer(ask("word " * 131_060))
    assert nearly.finish_reason == FinishReason.FINISH_REASON_CONTEXT_WINDOW
    assert nearly.usage.input_tokens + nearly.usage.output_tokens == 131_072


def test_a_call_that_does_not_fit_is_left_out_whole() -> None:
    response = answer(ask("use get_weather for Paris", tools=[WEATHER], max_tokens=3))
    assert calls_of(response) == []
    assert response.finish_reason == FinishReason.FINISH_REASON_LENGTH
