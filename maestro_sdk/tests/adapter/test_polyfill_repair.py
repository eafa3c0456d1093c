"""Calls that models write as text, well and badly: what the caller gets, and what it costs."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, cast

import pytest

from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    ChatRequest,
    FinishReason,
    Logprobs,
    PartState,
    ReasoningDelta,
    TextDelta,
    ToolChoice,
    ToolChoiceMode,
)
from maestro.llm.v1.chat_pb2 import Warning as ChatWarning
from maestro.llm.v1.message_pb2 import Citation, Origin, Part, RefusalPart, Role, TextPart, ToolCallPart
from maestro.llm.v1.model_pb2 import Feature
from maestro.llm.v1.usage_pb2 import Cost, Usage
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.polyfill import Polyfilled
from maestro_sdk.errors import Overloaded, StreamBroken, UnsupportedParameter
from maestro_sdk.testing.plain_models import TextProvider, plain_model, say
from maestro_sdk.types import text_of, tool_calls_of

from .polyfill_asking import CALLS, GOOD, LENGTH, MALFORMED, STOP, ask, with_tools

REQUIRED = ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED)
TIME = '<tool_call>{"name":"clock","arguments":{}}</tool_call>'
WRONG_TOOL = '<tool_call>{"name":"wether","arguments":{"city":"Oslo"}}</tool_call>'
WRONG_ARGUMENTS = '<tool_call>{"name":"weather","arguments":{"town":"Oslo"}}</tool_call>'
NO_JSON = '<tool_call>{"name":"weather","arguments":{city}}</tool_call>'


async def test_text_and_calls_become_parts() -> None:
    seen = await ask(with_tools(), f"Let me look.\n{GOOD}\n{TIME}\nDone.")
    assert [part.WhichOneof("kind") for part in seen.answer.parts] == ["text", "tool_call", "tool_call", "text"]
    assert [part.polyfilled for part in seen.answer.parts] == [False, True, True, False]
    assert [part.index for part in seen.answer.parts] == [0, 1, 2, 3]
    assert text_of(seen.answer) == "Let me look.Done."
    assert seen.calls == [("weather", '{"city":"Oslo"}'), ("clock", "{}")]
    assert [call.call_id for call in tool_calls_of(seen.answer)] == ["call_plain-1_1", "call_plain-1_2"]
    assert (seen.answer.finish_reason, seen.answer.raw_reason) == (CALLS, "end")
    assert seen.facts == {"tools": "prompt", "repairs": 0.0}
    assert seen.answer.usage == Usage(input_tokens=10, output_tokens=5)


async def test_text_streams_while_it_is_written() -> None:
    seen = await ask(with_tools(), "It rains in Oslo, as ever.")
    pieces = [event.text.text for event in seen.events if event.HasField("text")]
    assert len(pieces) >= 5
    assert (text_of(seen.answer), seen.answer.finish_reason) == ("It rains in Oslo, as ever.", STOP)


async def test_ids_of_calls_are_new_in_the_conversation() -> None:
    request = with_tools()
    turn = request.messages.add(role=Role.ROLE_ASSISTANT)
    turn.parts.add(tool_call=ToolCallPart(call_id="call_plain-1_1", name="clock", arguments_json="{}"))
    seen = await ask(request, GOOD)
    assert [call.call_id for call in tool_calls_of(seen.answer)] == ["call_plain-1_2"]


@pytest.mark.parametrize(
    ("bad", "told"),
    [
        (WRONG_TOOL, "there is no tool 'wether' to call; there is: weather, clock"),
        (WRONG_ARGUMENTS, "the arguments of weather do not meet their schema: $: 'city' is a required property"),
        (NO_JSON, "the call is not JSON"),
        ('<tool_call>{"name":"weather"', "not closed"),
    ],
)
async def test_a_call_that_can_not_be_used_is_asked_for_again(bad: str, told: str) -> None:
    seen = await ask(with_tools(), f"Let me look.\n{bad}", f"Sorry!\n{GOOD}")
    # What was said stays; the apology is no part of the answer.
    assert text_of(seen.answer) == "Let me look."
    assert seen.calls == [("weather", '{"city":"Oslo"}')]
    assert seen.answer.finish_reason == CALLS
    assert seen.facts == {"tools": "prompt", "repairs": 1.0}
    [demand] = seen.said_before_repairs
    assert told in demand
    roles = [message.role for message in seen.inner.requests[1].messages]
    assert roles == [1, 2, 1]
    assert seen.inner.requests[1].messages[1].parts[0].text.text == f"Let me look.\n{bad}"
    assert seen.answer.usage == Usage(input_tokens=20, output_tokens=10)


async def test_calls_before_a_broken_one_are_kept() -> None:
    seen = await ask(with_tools(), f"{TIME}\n{WRONG_TOOL}\n{TIME}", f"{GOOD}")
    assert seen.calls == [("clock", "{}"), ("weather", '{"city":"Oslo"}')]
    assert "do not repeat them" in seen.said_before_repairs[0]


async def test_an_answer_without_a_good_call_is_malformed_after_the_last_repair() -> None:
    seen = await ask(with_tools(), WRONG_TOOL, NO_JSON, f"Well.\n{WRONG_ARGUMENTS}", GOOD)
    assert len(seen.inner.requests) == 3
    assert (seen.answer.finish_reason, seen.calls) == (MALFORMED, [])
    assert seen.facts["repairs"] == 2.0
    assert "'city' is a required property" in seen.facts["malformed"]
    assert seen.facts["malformed_text"] == f"Well.\n{WRONG_ARGUMENTS}"
    assert seen.answer.usage == Usage(input_tokens=30, output_tokens=15)


async def test_the_number_of_repairs_is_a_setting() -> None:
    inner = TextProvider(WRONG_TOOL, GOOD)
    answer = fold(await Polyfilled(inner, False, max_repairs=0).complete(with_tools()))
    assert (answer.finish_reason, len(inner.requests)) == (MALFORMED, 1)


async def test_a_model_that_answers_a_repair_in_words_has_answered() -> None:
    seen = await ask(with_tools(), f"Hm.\n{WRONG_TOOL}", "I can't look.")
    assert (text_of(seen.answer), seen.answer.finish_reason) == ("Hm.I can't look.", STOP)


async def test_a_call_that_must_come_is_demanded() -> None:
    seen = await ask(with_tools(tool_choice=REQUIRED), "It rains.", GOOD)
    assert (text_of(seen.answer), seen.calls) == ("It rains.", [("weather", '{"city":"Oslo"}')])
    assert "Call weather or clock now" in seen.said_before_repairs[0]
    never = await ask(with_tools(tool_choice=REQUIRED), "It rains.", "It rains.", "It rains!")
    assert (never.answer.finish_reason, never.facts["malformed"]) == (MALFORMED, "no tool is called")


async def test_a_named_tool_is_the_only_one_and_called_once() -> None:
    named = ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_NAMED, names=["clock"])
    seen = await ask(with_tools(tool_choice=named), GOOD, f"{TIME}{TIME}{TIME}")
    assert seen.calls == [("clock", "{}")]
    assert "there is: clock" in seen.said_before_repairs[0]
    assert [warning.code for warning in seen.answer.warnings] == ["tool_call_left_out"]


async def test_without_a_choice_of_tools_markers_are_text() -> None:
    none = ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_NONE)
    seen = await ask(with_tools(tool_choice=none), GOOD)
    assert (text_of(seen.answer), seen.answer.finish_reason) == (GOOD, STOP)
    assert "weather" not in seen.inner.requests[0].system


async def test_a_call_that_was_cut_is_not_asked_for_again() -> None:
    seen = await ask(with_tools(), say("Let me look.\n<tool_call>{", reason=LENGTH))
    assert (seen.answer.finish_reason, text_of(seen.answer)) == (LENGTH, "Let me look.")
    assert seen.facts["malformed"] == "the call is not closed by </tool_call>"


async def test_what_is_no_text_passes_through() -> None:
    before = [
        ChatEvent(reasoning=ReasoningDelta(index=7, text="Hm,")),
        ChatEvent(reasoning=ReasoningDelta(index=7, text=" hm.")),
        ChatEvent(warning=ChatWarning(code="w", message="a warning")),
        ChatEvent(usage=Usage(input_tokens=10, output_tokens=1)),
        ChatEvent(part=Part(index=3, refusal=RefusalPart(text="no"))),
    ]
    seen = await ask(with_tools(), say(WRONG_TOOL, before=before), say(GOOD, before=before))
    assert [part.WhichOneof("kind") for part in seen.answer.parts] == [
        *("reasoning", "refusal", "reasoning", "refusal", "tool_call")
    ]
    assert [part.index for part in seen.answer.parts] == [0, 1, 2, 3, 4]
    # A warning comes once, and usage grows.
    assert [warning.code for warning in seen.answer.warnings] == ["w"]
    counts = [event.usage.input_tokens for event in seen.events if event.HasField("usage")]
    assert counts == [10, 20]
    assert [event.WhichOneof("kind") for event in seen.events].count("started") == 1


async def test_texts_of_the_model_stay_apart_and_states_go_with_what_they_are_of() -> None:
    state = PartState(origin=Origin(provider="plain"), provider_state=b"s")
    thought, spoken = PartState(index=0), PartState(index=1)
    for each in (thought, spoken):
        each.MergeFrom(state)
    before = [
        ChatEvent(reasoning=ReasoningDelta(index=0, text="Hm.")),
        ChatEvent(part_state=thought),
        ChatEvent(text=TextDelta(index=1, text="One.", citations=[Citation(title="t")])),
        ChatEvent(part_state=spoken),
        ChatEvent(part=Part(index=2, text=TextPart(text="Two."))),
    ]
    parts = (await ask(with_tools(), say("", before=before))).answer.parts
    assert [part.text.text or part.reasoning.text for part in parts] == ["Hm.", "One.", "Two."]
    # Text that was read here is other text than the state speaks of.
    assert [part.provider_state for part in parts] == [b"s", b"", b""]
    assert [citation.title for citation in parts[1].text.citations] == ["t"]


async def test_an_answer_of_nothing_is_mended_in_the_same_turn() -> None:
    seen = await ask(with_tools(tool_choice=REQUIRED), "", GOOD)
    [turn] = seen.inner.requests[1].messages
    assert turn.parts[0].text.text.startswith("Weather in Oslo?\n\nYou have called no tool")


async def test_costs_of_repairs_are_summed() -> None:
    first, second = say(WRONG_TOOL), say(GOOD)
    first[-1].finish.cost.CopyFrom(Cost(usd="0.001", price_date="2026-01-01"))
    second[-1].finish.cost.CopyFrom(Cost(usd="0.0025", price_date="2026-01-01", estimated=True))
    seen = await ask(with_tools(), first, second)
    assert seen.answer.cost == Cost(usd="0.0035", price_date="2026-01-01", estimated=True)
    second[-1].finish.ClearField("cost")
    assert not (await ask(with_tools(), first, second)).answer.HasField("cost")


async def test_a_model_is_stopped_before_it_makes_up_a_result() -> None:
    model = plain_model("plain/model", Feature.FEATURE_STOP_SEQUENCES)
    for said, reason in ((f"{GOOD}\n", CALLS), ("Hm. ", STOP)):
        events = say(said, model=model, reason=FinishReason.FINISH_REASON_STOP_SEQUENCE)
        events[-1].finish.stop_sequence = "<tool_result>"
        seen = await ask(with_tools(stop=["END"]), events, model=model)
        assert seen.inner.requests[0].stop == ["END", "<tool_result>"]
        assert (seen.answer.finish_reason, seen.answer.stop_sequence) == (reason, "")
    seen = await ask(with_tools(stop=["a", "b", "c", "d"]), GOOD, model=model)
    assert seen.inner.requests[0].stop == ["a", "b", "c", "d"]


async def test_log_probabilities_are_warned_about() -> None:
    seen = await ask(with_tools(logprobs=Logprobs(top=1)), "Hello.")
    assert [(warning.code, warning.field) for warning in seen.answer.warnings] == [
        ("unsupported_parameter", "logprobs")
    ]
    assert not seen.inner.requests[0].HasField("logprobs")
    seen = await ask(with_tools(logprobs=Logprobs(top=1), strict=True), "Hello.")
    assert isinstance(seen.error, UnsupportedParameter)


# The stream as such


async def test_leaving_closes_the_stream_inside_at_once() -> None:
    inner = TextProvider("One two three four five six seven.")
    async with aclosing(cast("Any", Polyfilled(inner, False).stream(with_tools()))) as batches:
        async for events in batches:
            if events[0].HasField("text"):
                break
    assert inner.abandoned == 1


async def test_a_caller_that_is_cancelled_takes_the_stream_inside_along() -> None:
    class Stalling(TextProvider):
        async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
            try:
                yield say("a")[:1]
                reached.set()
                await asyncio.Event().wait()
            finally:
                self.abandoned += 1

    reached = asyncio.Event()
    for ask_by in ("stream", "complete"):
        reached.clear()
        inner = Stalling()
        provider = Polyfilled(inner, False)
        if ask_by == "complete":
            task = asyncio.create_task(cast("Any", provider.complete(with_tools())))
        else:
            task = asyncio.create_task(cast("Any", anext_but_one(provider.stream(with_tools()))))
        await reached.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert inner.abandoned == 1


async def anext_but_one(batches: AsyncIterator[Sequence[ChatEvent]]) -> None:
    await anext(batches)
    await anext(batches)


async def test_errors_of_the_model_end_the_answer() -> None:
    class Failing(TextProvider):
        async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
            if self.requests:
                raise Overloaded("busy")
            async for events in super().stream(request):
                yield events

    with pytest.raises(Overloaded):
        await Polyfilled(Failing(WRONG_TOOL), False).complete(with_tools())


async def test_a_stream_without_an_end_is_broken() -> None:
    for events in (say(GOOD)[:-1], [*say(GOOD), ChatEvent(text=TextDelta(text="more"))], [*say("a")[:1], ChatEvent()]):
        with pytest.raises(StreamBroken):
            await Polyfilled(TextProvider(events), False).complete(with_tools())
