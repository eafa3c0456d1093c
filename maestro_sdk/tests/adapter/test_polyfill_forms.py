"""JSON that models write as text, or under a schema of their server: what has its form goes out, the rest is mended."""

from __future__ import annotations

import json
from typing import Any

import pytest

from maestro.llm.v1.chat_pb2 import ChatEvent, FinishReason, JsonFormat, ResponseFormat, TextDelta, ToolCallDelta
from maestro.llm.v1.message_pb2 import Part, RefusalPart
from maestro.llm.v1.model_pb2 import Feature
from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.errors import OutputInvalid
from maestro_sdk.testing.plain_models import plain_model, say
from maestro_sdk.types import text_of

from .polyfill_asking import CALLS, CITY, CLOCK, GOOD, LENGTH, MALFORMED, STOP, WEATHER, ask, asked, in_form, with_tools


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
