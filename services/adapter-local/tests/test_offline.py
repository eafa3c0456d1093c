"""The offline model keeps its promises: every declared feature, limits, the tool loop, the same bytes every time."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from maestro.llm.v1.chat_pb2 import (
    Cache,
    ChatEvent,
    ChatRequest,
    ChatResponse,
    CountTokensRequest,
    FinishReason,
    JsonFormat,
    JsonSchemaFormat,
    Logprobs,
    Reasoning,
    ReasoningEffort,
    ResponseFormat,
    Tool,
    ToolChoice,
    ToolChoiceMode,
)
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import ImagePart, Message, Part, Role, TextPart, ToolResultPart
from maestro.llm.v1.model_pb2 import Feature, ListModelsRequest
from maestro.llm.v1.model_pb2_grpc import ModelServiceStub
from maestro_adapter_local.offline import tokens
from maestro_adapter_local.offline.prose import NOTICE
from maestro_adapter_local.provider import LocalProvider
from maestro_adapter_local.settings import LocalSettings
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.models import supports
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.errors import ContextTooLong, InvalidRequest, UnsupportedParameter, from_rpc_error
from maestro_sdk.testing.servers import serve

WEATHER = Tool(
    name="get_weather",
    description="Tells the weather",
    input_schema=json.dumps(
        {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city"],
            "additionalProperties": False,
        }
    ),
)
SEARCH = Tool(
    name="search",
    input_schema='{"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}',
)
CLOCK = Tool(name="clock")


def ask(text: str, **fields: Any) -> ChatRequest:
    """A request with one user turn."""
    turn = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])
    return ChatRequest(model="local/offline", messages=[turn], **fields)


def answer(request: ChatRequest, **offline: Any) -> ChatResponse:
    """The unary answer, after checking that the stream folds to the same bytes."""
    whole, batches = asyncio.run(_both(request, offline))
    folded = fold(event for batch in batches for event in batch)
    assert folded.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)
    return whole


async def _both(request: ChatRequest, offline: dict[str, Any]) -> tuple[ChatResponse, list[Sequence[ChatEvent]]]:
    provider = LocalProvider(LocalSettings.model_validate({"offline": offline, "hashing": False}))
    try:
        return fold(await provider.complete(request)), [batch async for batch in provider.stream(request)]
    finally:
        await provider.close()


def text_of(response: ChatResponse) -> str:
    return "".join(part.text.text for part in response.parts)


def calls_of(response: ChatResponse) -> list[tuple[str, Any]]:
    """Name and arguments of every call."""
    parts = [part.tool_call for part in response.parts if part.HasField("tool_call")]
    return [(call.name, json.loads(call.arguments_json)) for call in parts]


def with_results(request: ChatRequest, response: ChatResponse, *results: str, is_error: bool = False) -> ChatRequest:
    """The conversation after the tools have answered."""
    after = ChatRequest()
    after.CopyFrom(request)
    after.messages.add(role=Role.ROLE_ASSISTANT, parts=response.parts)
    called = [part.tool_call for part in response.parts if part.HasField("tool_call")]
    after.messages.add(
        role=Role.ROLE_TOOL,
        parts=[
            Part(
                tool_result=ToolResultPart(
                    call_id=call.call_id, parts=[Part(text=TextPart(text=result))], is_error=is_error
                )
            )
            for call, result in zip(called, results, strict=True)
        ],
    )
    return after


# What it says of itself


async def test_it_tells_what_it_is() -> None:
    provider = LocalProvider(LocalSettings(hashing=False))
    models = list(await provider.models())
    assert [model.id for model in models] == ["local/offline"]
    assert "not a language model" in models[0].description
    assert list(models[0].tags) == ["development"]
    assert NOTICE in text_of(fold(await provider.complete(ask("hello"))))
    assert await provider.check() == ""


async def test_declared_features_are_those_with_a_test() -> None:
    (model,) = await LocalProvider(LocalSettings(hashing=False)).models()
    assert {Feature.Name(entry.feature).removeprefix("FEATURE_") for entry in model.features} == {
        "CHAT", "STREAMING", "SYSTEM_PROMPT", "TOOLS", "PARALLEL_TOOLS", "TOOL_CHOICE", "STREAMED_TOOL_ARGS",
        "JSON_SCHEMA", "REASONING", "STOP_SEQUENCES", "SEED", "TOKEN_COUNTING", "PREFILL",
    }  # fmt: skip
    assert not supports(model, Feature.FEATURE_TEMPERATURE)
    assert not supports(model, Feature.FEATURE_VISION)


def test_chat_uses_the_last_user_turn() -> None:
    request = ask("first question")
    request.messages.add(role=Role.ROLE_ASSISTANT, parts=[Part(text=TextPart(text="an answer"))])
    request.messages.add(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="second question, please"))])
    said = text_of(answer(request))
    assert said.startswith(f"{NOTICE} You wrote: “second question, please”. That is 3 words. This is answer 2")


def test_streaming_sends_a_token_per_event_in_several_batches() -> None:
    whole, batches = asyncio.run(_both(ask("hello"), {}))
    pieces = [event.text.text for batch in batches for event in batch if event.HasField("text")]
    assert pieces == tokens.split(text_of(whole))
    assert len(batches) > 2
    assert batches[0][0].HasField("started")
    assert [event.WhichOneof("kind") for event in batches[-1]] == ["finish"]


def test_system_text_is_seen() -> None:
    plain, with_system = answer(ask("hello")), answer(ask("hello", system="Be very brief."))
    assert "The system text has 3 words." in text_of(with_system)
    assert with_system.usage.input_tokens == plain.usage.input_tokens + tokens.count("Be very brief.")


def test_seed_chooses_the_words() -> None:
    said = [text_of(answer(ask("hello", seed=seed))) for seed in (1, 2, 3, 1)]
    assert said[0] == said[3]
    assert len(set(said)) > 1


# Text on demand


@pytest.mark.parametrize("amount", [1, 5, 9, 10, 60, 500])
def test_words_are_counted(amount: int) -> None:
    said = text_of(answer(ask(f"Write {amount} words about the sea.")))
    assert len(said.split()) == amount
    assert said.startswith("This")


def test_sentences_paragraphs_and_items_are_counted() -> None:
    assert len(re.findall(r"[.](?:\s|$)", text_of(answer(ask("Tell me five sentences."))))) == 5
    assert text_of(answer(ask("Write 3 paragraphs"))).count("\n\n") == 2
    assert re.findall(r"^\d+\.", text_of(answer(ask("Give me 4 items"))), re.MULTILINE) == ["1.", "2.", "3.", "4."]


@pytest.mark.parametrize(
    ("prompt", "said"),
    [
        ("Say exactly: pong", "pong"),
        ('Reply with "hi there".', "hi there"),
        ("Please repeat the following: a b\nc", "a b\nc"),
        ("Answer with just yes.", "yes"),
        ("Count to 5", "1, 2, 3, 4, 5"),
        ("Please count from three to 6.", "3, 4, 5, 6"),
    ],
)
def test_what_is_asked_verbatim_is_said_verbatim(prompt: str, said: str) -> None:
    assert text_of(answer(ask(prompt))) == said


# Limits

TEXTS = st.text(alphabet="abc de. \n“é", max_size=60) | st.sampled_from(
    ["hello", "Write 80 words", "Count to 40", "Write 3 paragraphs", "Tell me six sentences"]
)


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


# Tools


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
    _, batches = asyncio.run(_both(ask("use get_weather for Paris", tools=[WEATHER]), {}))
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


# Structured answers

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}  # fmt: skip


def _schema(schema: Any) -> ResponseFormat:
    return ResponseFormat(json_schema=JsonSchemaFormat(name="x", schema=json.dumps(schema)))


def test_json_schema_is_met_with_values_of_the_prompt() -> None:
    response = answer(ask("Her name is Ada and her age is 36.", response_format=_schema(PERSON)))
    value = json.loads(text_of(response))
    Draft202012Validator(PERSON).validate(value)
    assert (value["name"], value["age"]) == ("Ada", 36)


def test_json_mode_is_an_honest_object() -> None:
    value = json.loads(text_of(answer(ask("hi", response_format=ResponseFormat(json=JsonFormat())))))
    assert value == {"model": "offline", "notice": NOTICE, "text": "hi"}


def test_tools_come_before_the_structured_answer() -> None:
    request = ask("use get_weather for Paris", tools=[WEATHER], response_format=_schema(PERSON))
    first = answer(request)
    assert [name for name, _ in calls_of(first)] == ["get_weather"]
    second = answer(with_results(request, first, "her name is Bo, age: 3"))
    assert json.loads(text_of(second))["name"] == "Bo"


def test_schemas_that_can_not_be_met_are_told_apart() -> None:
    impossible = {"type": "integer", "minimum": 2, "maximum": 1}
    schema = {"type": "object", "required": ["a"], "properties": {"a": impossible}}
    with pytest.raises(InvalidRequest, match="#/properties/a: the least number 2 is above the greatest 1"):
        answer(ask("x", response_format=_schema(schema)))
    with pytest.raises(UnsupportedParameter, match="#/pattern"):
        answer(ask("x", response_format=_schema({"type": "string", "pattern": "^(?!a)b$"})))


# Reasoning, warnings, what it can't see


def test_reasoning_is_given_when_asked_for() -> None:
    efforts = ReasoningEffort
    silent = answer(ask("hello", reasoning=Reasoning(effort=efforts.REASONING_EFFORT_OFF)))
    little = answer(ask("hello", reasoning=Reasoning(effort=efforts.REASONING_EFFORT_LOW)))
    much = answer(ask("hello", reasoning=Reasoning(effort=efforts.REASONING_EFFORT_MAX)))
    assert not silent.parts[0].HasField("reasoning")
    assert (
        little.parts[0].reasoning.text
        == "No tool is to be called, so I answer with text. The last user turn has 1 word."
    )
    assert much.usage.reasoning_tokens > little.usage.reasoning_tokens == tokens.count(little.parts[0].reasoning.text)
    assert much.usage.output_tokens == much.usage.reasoning_tokens + tokens.count(much.parts[1].text.text)
    bounded = answer(ask("hello", reasoning=Reasoning(budget_tokens=4)))
    assert bounded.usage.reasoning_tokens == 4
    assert bounded.finish_reason == FinishReason.FINISH_REASON_STOP


def test_what_has_no_effect_is_warned_of_or_refused() -> None:
    request = ask("hello", temperature=0.0, top_p=0.5, logprobs=Logprobs(top=1), cache=Cache())
    request.provider_options["local"].update({"x": 1})
    request.provider_options["openai"].update({"x": 1})
    names = ["temperature", "top_p", "logprobs", "cache", "provider_options.local"]
    assert [warning.field for warning in answer(request).warnings] == names
    request.strict = True
    with pytest.raises(UnsupportedParameter) as caught:
        answer(request)
    assert [violation.field for violation in caught.value.violations] == names


def test_what_it_can_not_see_is_refused() -> None:
    request = ask("what is this?")
    request.messages[0].parts.add(image=ImagePart(data=b"\x89PNG", mime_type="image/png"))
    with pytest.raises(
        UnsupportedParameter, match=r"messages\[0\]\.parts\[1\]\.image: the offline model reads text only"
    ):
        answer(request)


# The whole, as the contract serves it


@settings(max_examples=60, deadline=None)
@given(
    st.builds(
        ask,
        TEXTS | st.sampled_from(["use get_weather for Paris", "call all tools in parallel", "search Rome, then clock"]),
        tools=st.lists(st.sampled_from([WEATHER, SEARCH, CLOCK]), max_size=3, unique_by=lambda tool: tool.name),
        max_tokens=st.none() | st.integers(1, 60),
        stop=st.lists(st.sampled_from(["model", "2", " a"]), max_size=2),
        seed=st.none() | st.integers(-9, 9),
        reasoning=st.none() | st.sampled_from([Reasoning(effort=ReasoningEffort.REASONING_EFFORT_HIGH)]),
        response_format=st.none() | st.just(_schema(PERSON)) | st.just(ResponseFormat(json=JsonFormat())),
    )
)
def test_unary_is_the_fold_of_the_stream(request: ChatRequest) -> None:
    response = answer(request)
    assert response.usage.output_tokens <= (request.max_tokens or 8192)
    assert response.usage.input_tokens > 0 or not request.messages[0].parts[0].text.text.strip()
    assert not response.usage.estimated
    for name, arguments in calls_of(response):
        schema = next(tool.input_schema for tool in request.tools if tool.name == name) or "{}"
        Draft202012Validator(json.loads(schema)).validate(arguments)


async def test_served_by_the_kit_it_costs_nothing_and_counts_exactly() -> None:
    provider = LocalProvider(LocalSettings(hashing=False))
    async with (
        serve(ChatServicer(provider), ModelServicer(provider)) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub = ChatServiceStub(channel)
        request = ask("Use get_weather for Paris", tools=[WEATHER], system="Be brief.")
        response = await stub.Chat(request)
        counted = await stub.CountTokens(CountTokensRequest(request=request))
        events = [event async for message in stub.StreamChat(request) for event in message.events]
        listed = await ModelServiceStub(channel).ListModels(ListModelsRequest())
        assert response.cost.usd == "0.000000"
        assert (counted.input_tokens, counted.estimated) == (response.usage.input_tokens, False)
        assert fold(events) == response
        assert [model.id for model in listed.models] == ["local/offline"]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stub.Chat(ChatRequest(model="local/other", messages=request.messages))
        assert from_rpc_error(caught.value).reason == "NOT_FOUND"


def test_other_names_are_the_same_model() -> None:
    request = ask("Say exactly: hi")
    request.model = "local/second"
    response = answer(request, names=["second"])
    assert (response.model, text_of(response)) == ("second", "hi")


def test_pace_is_kept_per_token() -> None:
    began = time.monotonic()
    _, batches = asyncio.run(_both(ask("Count to 5"), {"pace": "10ms"}))
    # Nine tokens, once for the unary answer and once for the stream.
    assert time.monotonic() - began >= 0.17
    assert [len(batch) for batch in batches] == [1] * 11


_PRINT = """
import asyncio, sys
from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_adapter_local.provider import LocalProvider
from maestro_adapter_local.settings import LocalSettings
from maestro_sdk.adapter.fold import fold
async def main():
    provider = LocalProvider(LocalSettings(hashing=False))
    for line in sys.stdin:
        events = await provider.complete(ChatRequest.FromString(bytes.fromhex(line)))
        print(fold(events).SerializeToString(deterministic=True).hex())
asyncio.run(main())
"""


def test_answers_are_the_same_in_every_process() -> None:
    requests = [
        ask("hello", seed=4),
        ask("Write 50 words"),
        ask("use get_weather for Rome", tools=[WEATHER], metadata={"a": "1", "b": "2"}),
        ask("x", response_format=_schema(PERSON), reasoning=Reasoning(budget_tokens=9)),
    ]
    lines = "\n".join(request.SerializeToString().hex() for request in requests)
    outputs = {
        subprocess.run(
            [sys.executable, "-c", _PRINT],
            input=lines,
            env={**os.environ, "PYTHONHASHSEED": seed},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(outputs) == 1
    found = [ChatResponse.FromString(bytes.fromhex(line)) for line in outputs.pop().split()]
    assert found == [answer(request) for request in requests]


def test_labels_and_routing_do_not_change_the_answer() -> None:
    plain, labelled = ask("hello"), ask("hello", metadata={"team": "a"})
    labelled.routing.persona = "tester"
    assert answer(plain) == answer(labelled)


async def test_a_simple_answer_is_cheap() -> None:
    provider, request = LocalProvider(LocalSettings(hashing=False)), ask("hello")
    await provider.complete(request)
    began = time.process_time()
    for _ in range(300):
        fold(await provider.complete(request))
    assert (time.process_time() - began) / 300 < 0.0003
