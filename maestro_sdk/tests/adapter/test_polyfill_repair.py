"""Answers of models that write calls and JSON as text, well and badly: what the caller gets, and what it costs."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from typing import Any, cast

import pytest
from google.protobuf.json_format import MessageToDict

from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    ChatRequest,
    ChatResponse,
    FinishReason,
    JsonFormat,
    JsonSchemaFormat,
    Logprobs,
    PartState,
    ReasoningDelta,
    ResponseFormat,
    TextDelta,
    ToolCallDelta,
    ToolChoice,
    ToolChoiceMode,
)
from maestro.llm.v1.chat_pb2 import Warning as ChatWarning
from maestro.llm.v1.message_pb2 import Citation, Origin, Part, RefusalPart, Role, TextPart, ToolCallPart
from maestro.llm.v1.model_pb2 import Feature
from maestro.llm.v1.usage_pb2 import Cost, Usage
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.polyfill import Polyfilled
from maestro_sdk.errors import MaestroError, OutputInvalid, Overloaded, StreamBroken, UnsupportedParameter
from maestro_sdk.testing.plain_models import TextProvider, plain_model, say
from maestro_sdk.types import text_of, tool, tool_calls_of, user

STOP = FinishReason.FINISH_REASON_STOP
LENGTH = FinishReason.FINISH_REASON_LENGTH
CALLS = FinishReason.FINISH_REASON_TOOL_CALLS
MALFORMED = FinishReason.FINISH_REASON_MALFORMED
REQUIRED = ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED)
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = tool("weather", "Tells the weather.", CITY)
CLOCK = tool("clock", "Tells the time.")

GOOD = '<tool_call>{"name":"weather","arguments":{"city":"Oslo"}}</tool_call>'
TIME = '<tool_call>{"name":"clock","arguments":{}}</tool_call>'
WRONG_TOOL = '<tool_call>{"name":"wether","arguments":{"city":"Oslo"}}</tool_call>'
WRONG_ARGUMENTS = '<tool_call>{"name":"weather","arguments":{"town":"Oslo"}}</tool_call>'
NO_JSON = '<tool_call>{"name":"weather","arguments":{city}}</tool_call>'


def asked(**fields: Any) -> ChatRequest:
    return ChatRequest(model="plain/model", messages=[user("Weather in Oslo?")], **fields)


def with_tools(**fields: Any) -> ChatRequest:
    return asked(tools=[WEATHER, CLOCK], **fields)


def in_form(schema: Any = CITY, **fields: Any) -> ChatRequest:
    wanted = JsonSchemaFormat(name="city", schema=json.dumps(schema), **fields)
    return asked(response_format=ResponseFormat(json_schema=wanted))


class Seen:
    """What the caller saw: the events, the answer they make, and the error, one of the two."""

    def __init__(self, batches: Sequence[Sequence[ChatEvent]], error: MaestroError | None, inner: TextProvider) -> None:
        self.events = [event for batch in batches for event in batch]
        self.error = error
        self.inner = inner

    @property
    def answer(self) -> ChatResponse:
        if self.error is not None:
            raise self.error
        return fold(self.events)

    @property
    def facts(self) -> dict[str, Any]:
        return MessageToDict(self.answer.provider_metadata["maestro"])

    @property
    def calls(self) -> list[tuple[str, str]]:
        return [
            (part.tool_call.name, part.tool_call.arguments_json)
            for part in self.answer.parts
            if part.HasField("tool_call")
        ]

    @property
    def said_before_repairs(self) -> list[str]:
        """The last turn of each request to the model but the first: what it was asked to mend."""
        return [request.messages[-1].parts[-1].text.text for request in self.inner.requests[1:]]


async def ask(
    request: ChatRequest, *answers: str | Sequence[ChatEvent], constrained: bool = False, **settings: Any
) -> Seen:
    """Asks by stream and by complete, in pieces of several sizes: all have to come to the same."""
    seen: list[Seen] = []
    for size in (1, 4, 1000):
        inner = TextProvider(*answers, size=size, **settings)
        batches: list[Sequence[ChatEvent]] = []
        error: MaestroError | None = None
        try:
            async for batch in Polyfilled(inner, constrained).stream(request):
                assert batch
                batches.append(batch)
        except MaestroError as raised:
            error = raised
        seen.append(Seen(batches, error, inner))
        unary = Polyfilled(TextProvider(*answers, size=size, **settings), constrained)
        if error is None:
            whole = fold(await unary.complete(request))
            assert whole.SerializeToString(deterministic=True) == seen[-1].answer.SerializeToString(deterministic=True)
            assert seen[0].answer == whole
        else:
            with pytest.raises(type(error)) as again:
                await unary.complete(request)
            assert str(again.value) == str(error) == str(seen[0].error)
        assert [sent.SerializeToString(deterministic=True) for sent in inner.requests] == [
            sent.SerializeToString(deterministic=True) for sent in seen[0].inner.requests
        ]
    return seen[1]


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


# Structured output


def structured(**value: Any) -> str:
    return json.dumps(value)


OSLO = {"name": "weather", "arguments": {"city": "Oslo"}}


async def test_structured_output_is_read_as_text_or_calls() -> None:
    seen = await ask(with_tools(), structured(reply="It rains.\n\U0001f600"), constrained=True)
    assert (text_of(seen.answer), seen.answer.finish_reason) == ("It rains.\n\U0001f600", STOP)
    assert [part.polyfilled for part in seen.answer.parts] == [True]
    assert seen.facts == {"tools": "structured_output", "repairs": 0.0}
    sent = seen.inner.requests[0]
    assert "weather" in sent.response_format.json_schema.schema
    seen = await ask(with_tools(), structured(calls=[OSLO, {"name": "clock"}]), constrained=True)
    assert seen.calls == [("weather", '{"city": "Oslo"}'), ("clock", "{}")]
    assert seen.answer.finish_reason == CALLS
    fragments = [event.tool_call for event in seen.events if event.HasField("tool_call")]
    assert len(fragments) > 4
    assert all(fragment.polyfilled for fragment in fragments)


async def test_a_server_that_does_not_hold_to_the_schema_is_asked_again() -> None:
    good = structured(calls=[OSLO])
    unknown = structured(calls=[{"name": "wether", "arguments": {}}])
    seen = await ask(with_tools(), "It rains.", unknown, good, constrained=True)
    assert (seen.calls, seen.facts["repairs"]) == ([("weather", '{"city": "Oslo"}')], 2.0)
    assert "not a JSON object" in seen.said_before_repairs[0]
    never = await ask(with_tools(), "a", "b", "c", constrained=True)
    assert (never.answer.finish_reason, len(never.answer.parts)) == (MALFORMED, 0)


async def test_what_has_gone_out_is_not_asked_for_again() -> None:
    broken = await ask(with_tools(), '{"reply":"It rains', constrained=True)
    assert (broken.answer.finish_reason, text_of(broken.answer)) == (MALFORMED, "It rains")
    for said in ('{"calls":[{"name":"weather","arguments":{"city":Oslo}}]}', '{"calls":[{"name":"weather","argu'):
        bad = await ask(with_tools(), said, constrained=True)
        assert (bad.answer.finish_reason, bad.facts["repairs"]) == (MALFORMED, 0.0)
    loose = await ask(with_tools(), structured(calls=[{**OSLO, "arguments": {}}]), constrained=True)
    assert loose.answer.finish_reason == CALLS
    assert [warning.code for warning in loose.answer.warnings] == ["tool_arguments_invalid"]


async def test_a_reply_may_be_cut_by_a_limit_or_a_stop_text() -> None:
    cut = await ask(with_tools(), say('{"reply":"It ra', reason=LENGTH), constrained=True)
    assert (cut.answer.finish_reason, text_of(cut.answer)) == (LENGTH, "It ra")
    stopped = await ask(with_tools(stop=["in"]), '{"reply":"It ra', constrained=True)
    assert (stopped.answer.finish_reason, text_of(stopped.answer)) == (STOP, "It ra")


# JSON that meets a schema


async def test_json_goes_out_once_it_meets_its_schema() -> None:
    seen = await ask(in_form(max_repairs=2), "Oslo is a city.", '{"town":"Oslo"}', '```json\n{"city": "Oslo"}\n```')
    assert [event.text for event in seen.events if event.HasField("text")] == [
        TextDelta(index=0, text='{"city": "Oslo"}', polyfilled=True)
    ]
    assert (seen.answer.finish_reason, seen.facts) == (STOP, {"json_schema": "prompt", "repairs": 2.0})
    assert "$: it is not JSON" in seen.said_before_repairs[0]
    assert "$: 'city' is a required property" in seen.said_before_repairs[1]
    assert seen.answer.usage == Usage(input_tokens=30, output_tokens=15)
    assert '{"type":"object"' in seen.inner.requests[0].system
    assert not seen.inner.requests[0].HasField("response_format")


@pytest.mark.parametrize(("repairs", "asked_for"), [({}, 2), ({"max_repairs": 0}, 1), ({"max_repairs": 3}, 4)])
async def test_json_that_never_meets_its_schema_is_an_error(repairs: dict[str, int], asked_for: int) -> None:
    schema = {"type": "object", "properties": {"days": {"items": {"properties": {"high": {"type": "integer"}}}}}}
    seen = await ask(in_form(schema, **repairs), *['{"days":[{},{"high":"hot"}]}'] * asked_for)
    assert isinstance(seen.error, OutputInvalid)
    assert "$.days[1].high: 'hot' is not of type 'integer'" in seen.error.message
    assert seen.error.metadata == {"violation": "$.days[1].high", "repairs": str(asked_for - 1)}
    assert len(seen.inner.requests) == asked_for
    # Nothing that is wrong went out, and the tokens are told.
    assert [event.WhichOneof("kind") for event in seen.events] == ["started", "usage"]
    assert seen.events[-1].usage == Usage(input_tokens=10 * asked_for, output_tokens=5 * asked_for)


async def test_json_of_any_kind_is_an_object() -> None:
    request = asked(response_format=ResponseFormat(json=JsonFormat()))
    seen = await ask(request, "[1]", 'Here you are:\n```json\n{"a": [1, 2]}\n```\nAnything else?')
    assert text_of(seen.answer) == '{"a": [1, 2]}'
    assert seen.answer.parts[0].polyfilled


@pytest.mark.parametrize("said", ['{"city": "Oslo"}', ' {"city": "Oslo"}\n', '```\n{"city": "Oslo"}```'])
async def test_fences_and_space_are_stripped(said: str) -> None:
    assert text_of((await ask(in_form(), said)).answer) == '{"city": "Oslo"}'


@pytest.mark.parametrize(
    "said", ['{"city":1e999}', '{"city":NaN}', '{"city":"\\ud800"}', "[" * 65 + "]" * 65, "[" * 2000]
)
async def test_what_only_looks_like_json_is_none(said: str) -> None:
    seen = await ask(in_form(True, max_repairs=0), said)
    assert isinstance(seen.error, OutputInvalid)


async def test_json_that_was_cut_is_an_error_at_once() -> None:
    seen = await ask(in_form(), say('{"city": "Os', reason=LENGTH))
    assert isinstance(seen.error, OutputInvalid)
    assert "LENGTH" in seen.error.message
    assert len(seen.inner.requests) == 1


async def test_a_refusal_is_no_broken_json() -> None:
    refusal = ChatEvent(part=Part(index=1, refusal=RefusalPart(text="No.")))
    seen = await ask(in_form(), say("", before=[refusal]))
    assert [part.WhichOneof("kind") for part in seen.answer.parts] == ["refusal"]
    said = say("I can't.", reason=FinishReason.FINISH_REASON_REFUSAL)
    seen = await ask(in_form(), said)
    assert (text_of(seen.answer), seen.answer.parts[0].polyfilled) == ("I can't.", False)


async def test_a_constrained_server_gets_the_schema_and_is_checked_all_the_same() -> None:
    seen = await ask(in_form(), '{"city": 7}', '{"city": "Oslo"}', constrained=True)
    assert seen.inner.requests[0].response_format.json_schema.schema == json.dumps(CITY)
    assert (text_of(seen.answer), seen.facts["json_schema"]) == ('{"city": "Oslo"}', "structured_output")


@pytest.mark.parametrize("constrained", [False, True])
async def test_with_tools_and_a_form_calls_go_as_calls_and_text_has_the_form(constrained: bool) -> None:
    request = in_form()
    request.tools.extend([WEATHER, CLOCK])
    said = structured(calls=[OSLO]) if constrained else f"One moment.\n{GOOD}"
    seen = await ask(request, said, constrained=constrained)
    assert [name for name, _ in seen.calls] == ["weather"]
    assert text_of(seen.answer) == ""
    assert [warning.code for warning in seen.answer.warnings] == ([] if constrained else ["text_left_out"])
    texts = ['{"town":"Oslo"}', '{"city":"Oslo"}']
    if constrained:
        texts = [f'{{"reply":{text}}}' for text in texts]
    seen = await ask(request, *texts, constrained=constrained)
    assert (text_of(seen.answer), seen.answer.finish_reason) == ('{"city":"Oslo"}', STOP)
    means = "structured_output" if constrained else "prompt"
    assert seen.facts == {"tools": means, "json_schema": means, "repairs": 1.0}


async def test_native_calls_beside_a_polyfilled_form_stay_native() -> None:
    model = plain_model("plain/model", Feature.FEATURE_TOOLS, Feature.FEATURE_TOOL_CHOICE)
    request = in_form()
    request.tools.append(CLOCK)
    delta = ToolCallDelta(index=0, call_id="c1", name="clock", arguments_json="{}")
    said = say("", model=model, before=[ChatEvent(tool_call=delta)])
    said[-1].finish.reason = CALLS
    seen = await ask(request, said, model=model)
    [part] = seen.answer.parts
    assert (part.tool_call.call_id, part.polyfilled, seen.answer.finish_reason) == ("c1", False, CALLS)
    assert seen.inner.requests[0].tools == request.tools


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
