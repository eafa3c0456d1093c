"""The offline model calls tools when it is told to, with literals of the prompt, until their results are there."""

from __future__ import annotations

import asyncio
import json

import pytest

from maestro.llm.v1.chat_pb2 import FinishReason, Tool, ToolChoice, ToolChoiceMode
from maestro_sdk.errors import InvalidRequest

from .offline_asking import CLOCK, SEARCH, WEATHER, answer, ask, both, calls_of, text_of, with_results


def test_a_named_tool_is_called_with_literals() -> None:
    response = answer(ask("What is the weather in Paris? Use get_weather, in fahrenheit.", tools=[SEARCH, WEATHER]))
    assert calls_of(response) == [("get_weather", {"city": "Paris", "unit": "fahrenheit"})]
    assert response.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS


def test_use_the_tool_is_enough() -> None:
    assert calls_of(answer(ask("Use the tool.", tools=[CLOCK]))) == [("clock", {})]


@pytest.mark.parametrize("prompt", ["hello", "Don't use get_weather for Paris", "Answer without calling get_weather"])
def test_no_tool_is_called_unasked(prompt: str) -> None:
    response = answer(ask(prompt, tools=[WEATHER]))
    assert calls_of(response) == []
    assert response.finish_reason == FinishReason.FINISH_REASON_STOP


def test_the_tool_loop_ends_with_the_result() -> None:
    request = ask("What is the weather in Paris? Use get_weather.", tools=[WEATHER])
    first = answer(request)
    second = answer(with_results(request, first, "21 degrees and sunny"))
    assert calls_of(second) == []
    assert second.finish_reason == FinishReason.FINISH_REASON_STOP
    assert "The tool get_weather returned: 21 degrees and sunny" in text_of(second)
    failed = answer(with_results(request, first, "no such city", is_error=True))
    assert "The tool get_weather failed: no such city" in text_of(failed)


def test_several_named_tools_are_called_one_after_the_other() -> None:
    request = ask('search for "boats", then use clock', tools=[CLOCK, SEARCH])
    first = answer(request)
    assert calls_of(first) == [("search", {"query": "boats"})]
    request = with_results(request, first, "found")
    second = answer(request)
    assert calls_of(second) == [("clock", {})]
    third = answer(with_results(request, second, "noon"))
    assert "The tool search returned: found\nThe tool clock returned: noon" in text_of(third)


def test_parallel_tools_have_distinct_parts_and_ids() -> None:
    prompt = "Call get_weather for Paris and Tokyo in parallel."
    response = answer(ask(prompt, tools=[WEATHER]))
    assert calls_of(response) == [("get_weather", {"city": "Paris"}), ("get_weather", {"city": "Tokyo"})]
    assert [part.index for part in response.parts] == [0, 1]
    assert len({part.tool_call.call_id for part in response.parts}) == 2
    one = answer(ask(prompt, tools=[WEATHER], tool_choice=ToolChoice(parallel=False)))
    assert len(calls_of(one)) == 1
    several = answer(ask("In parallel, use search and clock", tools=[WEATHER, SEARCH, CLOCK]))
    assert [name for name, _ in calls_of(several)] == ["search", "clock"]


def test_tool_choice_is_obeyed() -> None:
    def choose(mode: ToolChoiceMode.ValueType, *names: str, prompt: str = "hello") -> list[str]:
        choice = ToolChoice(mode=mode, names=names)
        return [name for name, _ in calls_of(answer(ask(prompt, tools=[WEATHER, SEARCH, CLOCK], tool_choice=choice)))]

    mode = ToolChoiceMode
    assert choose(mode.TOOL_CHOICE_MODE_NONE, prompt="use clock") == []
    assert choose(mode.TOOL_CHOICE_MODE_REQUIRED) == ["get_weather"]
    assert choose(mode.TOOL_CHOICE_MODE_REQUIRED, prompt="the clock") == ["clock"]
    assert choose(mode.TOOL_CHOICE_MODE_REQUIRED, "search", "clock") == ["search"]
    assert choose(mode.TOOL_CHOICE_MODE_NAMED, "clock", prompt="don't use tools") == ["clock"]
    assert choose(mode.TOOL_CHOICE_MODE_AUTO, "clock", prompt="use get_weather") == []
    with pytest.raises(InvalidRequest, match=r"tool_choice\.names\[0\]: there is no tool 'x'"):
        choose(mode.TOOL_CHOICE_MODE_NAMED, "x")
    with pytest.raises(InvalidRequest, match="exactly one name"):
        choose(mode.TOOL_CHOICE_MODE_NAMED)


def test_tool_arguments_are_streamed_in_pieces() -> None:
    _, batches = asyncio.run(both(ask("use get_weather for Paris", tools=[WEATHER]), {}))
    deltas = [event.tool_call for batch in batches for event in batch if event.HasField("tool_call")]
    assert len(deltas) > 3
    assert (deltas[0].name, deltas[1].name, deltas[1].call_id) == ("get_weather", "", "")
    assert json.loads("".join(delta.arguments_json for delta in deltas)) == {"city": "Paris"}


def test_a_tool_schema_that_can_not_be_met_is_refused_at_its_place() -> None:
    bad = Tool(name="bad", input_schema='{"type": "object", "required": ["n"], "properties": {"n": false}}')
    with pytest.raises(InvalidRequest) as caught:
        answer(ask("use bad", tools=[CLOCK, bad]))
    assert caught.value.violations[0].field == "tools[1].input_schema"
    assert "#/properties/n" in caught.value.message
