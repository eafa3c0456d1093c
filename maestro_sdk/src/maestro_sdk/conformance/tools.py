"""Cases of tools: calls, their arguments, results, and the rules for calling."""

from __future__ import annotations

import json
from typing import Any, cast

from maestro.llm.v1.chat_pb2 import ChatResponse, FinishReason, ToolChoice, ToolChoiceMode
from maestro.llm.v1.message_pb2 import ToolCallPart
from maestro.llm.v1.model_pb2 import Feature
from maestro_sdk.conformance import prompts
from maestro_sdk.conformance.answering import two_calls
from maestro_sdk.conformance.case import feature
from maestro_sdk.conformance.outcome import Broken, expect
from maestro_sdk.conformance.target import Target
from maestro_sdk.types import assistant, text_of, tool_result, tool_results

_DEGREES = "17"


def _calls(answer: ChatResponse) -> list[ToolCallPart]:
    return [part.tool_call for part in answer.parts if part.HasField("tool_call")]


def _arguments(call: ToolCallPart, where: str) -> dict[str, Any]:
    try:
        value: Any = json.loads(call.arguments_json or "{}")
    except ValueError as error:
        raise Broken(f"arguments are no JSON: {call.arguments_json[:120]!r}", where) from error
    expect(isinstance(value, dict), f"arguments are no object: {call.arguments_json[:120]!r}", where)
    return cast("dict[str, Any]", value)


def _expect_city(call: ToolCallPart, where: str) -> str:
    expect(call.name == "get_weather", f"calls {call.name!r}", where)
    arguments = _arguments(call, where)
    meets = set(arguments) == {"city"} and isinstance(arguments["city"], str)
    expect(meets, f"arguments do not meet the schema: {call.arguments_json[:120]}", where)
    return str(arguments["city"])


@feature(
    Feature.FEATURE_TOOLS,
    "a tool is called, its result is used",
    "message.proto ToolCallPart: call_id, name, arguments as one JSON object; ToolResultPart goes back under call_id",
)
async def tools(target: Target) -> str:
    """Two turns: the call, and the answer that tells the result."""
    request = prompts.weather()
    answer = (await target.recorded("tool", request)).answer()
    calls = _calls(answer)
    expect(calls, f"no call, {prompts.said(answer)}", "first turn")
    city = _expect_city(calls[0], "first turn")
    made = [part for part in answer.parts if part.HasField("tool_call")]
    target.expect_marked(Feature.FEATURE_TOOLS, made, "first turn")
    request.messages.append(assistant(answer))
    results = [tool_result(call, f"{_DEGREES} degrees and sunny") for call in calls]
    request.messages.append(tool_results(*results))
    told = await target.ask(request, "tool result")
    expect(_DEGREES in text_of(told), f"the result is not told: {prompts.said(told)}", "second turn")
    return f"get_weather({city}), then {prompts.said(told)}"


@feature(
    Feature.FEATURE_PARALLEL_TOOLS,
    "several tools are called in one answer",
    "FEATURE_PARALLEL_TOOLS: calls several tools in one answer, each a part of its own",
)
async def parallel_tools(target: Target) -> str:
    """Two cities at once."""
    answer = (await target.recorded("two calls", two_calls())).answer()
    calls = _calls(answer)
    expect(len(calls) >= 2, f"{len(calls)} call, {prompts.said(answer)}", "two calls")
    cities = [_expect_city(call, "two calls") for call in calls]
    expect(len(set(cities)) >= 2, f"both for {cities[0]}", "two calls")
    return ", ".join(cities)


@feature(
    Feature.FEATURE_TOOL_CHOICE,
    "tool_choice is obeyed",
    "chat.proto ToolChoice: NONE calls no tool, REQUIRED at least one, NAMED the named one",
    needs=("finish_reason",),
)
async def tool_choice(target: Target) -> str:
    """Against what the prompt suggests."""
    both = [prompts.weather_tool(), prompts.time_tool()]
    none = ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_NONE)
    answer = await target.ask(prompts.weather(tool_choice=none), "none")
    expect(not _calls(answer), f"calls {_names(answer)}", "tool_choice none")
    expect(text_of(answer), "no text either", "tool_choice none")
    required = ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED)
    answer = await target.ask(prompts.ask("Hello there.", tools=both, tool_choice=required), "required")
    expect(_calls(answer), f"no call, {prompts.said(answer)}", "tool_choice required")
    _expect_waits(answer, "tool_choice required")
    named = ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_NAMED, names=["get_time"])
    request = prompts.ask("How is the weather in Rome, in Europe/Rome?", tools=both, tool_choice=named)
    answer = await target.ask(request, "named")
    expect({call.name for call in _calls(answer)} == {"get_time"}, f"calls {_names(answer)}", "tool_choice named")
    _expect_waits(answer, "tool_choice named")
    return "none, required, named"


def _names(answer: ChatResponse) -> str:
    return ", ".join(call.name for call in _calls(answer)) or "nothing"


def _expect_waits(answer: ChatResponse, where: str) -> None:
    waits = answer.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
    expect(waits, f"finish reason {FinishReason.Name(answer.finish_reason)} with a call", where)


@feature(
    Feature.FEATURE_STREAMED_TOOL_ARGS,
    "arguments of a call are streamed",
    "chat.proto ToolCallDelta.arguments_json: fragment of the arguments' JSON text to append",
)
async def streamed_tool_args(target: Target) -> str:
    """Several fragments of one call."""
    exchange = await target.recorded("tool", prompts.weather())
    fragments: dict[int, int] = {}
    for event in exchange.events:
        if event.HasField("tool_call") and event.tool_call.arguments_json:
            fragments[event.tool_call.index] = fragments.get(event.tool_call.index, 0) + 1
    most = max(fragments.values(), default=0)
    expect(most >= 2, f"the arguments came in {most} piece", exchange.label)
    return f"{most} fragments"
