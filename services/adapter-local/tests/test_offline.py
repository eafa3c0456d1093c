"""The offline model keeps its promises: every declared feature, limits, the tool loop, the same bytes every time."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
import time

import grpc
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jsonschema import Draft202012Validator

from maestro.llm.v1.chat_pb2 import (
    Cache,
    ChatRequest,
    ChatResponse,
    CountTokensRequest,
    FinishReason,
    JsonFormat,
    Logprobs,
    Reasoning,
    ReasoningEffort,
    ResponseFormat,
)
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import ImagePart, Part, Role, TextPart
from maestro.llm.v1.model_pb2 import Feature, ListModelsRequest
from maestro.llm.v1.model_pb2_grpc import ModelServiceStub
from maestro_adapter_local.offline import tokens
from maestro_adapter_local.offline.prose import NOTICE
from maestro_adapter_local.provider import LocalProvider
from maestro_adapter_local.settings import LocalSettings
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.models import supports
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.errors import UnsupportedParameter, from_rpc_error
from maestro_sdk.testing.servers import serve

from .offline_asking import CLOCK, PERSON, SEARCH, TEXTS, WEATHER, answer, ask, both, calls_of, in_form, text_of

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
    whole, batches = asyncio.run(both(ask("hello"), {}))
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
        response_format=st.none() | st.just(in_form(PERSON)) | st.just(ResponseFormat(json=JsonFormat())),
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
    _, batches = asyncio.run(both(ask("Count to 5"), {"pace": "10ms"}))
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
        ask("x", response_format=in_form(PERSON), reasoning=Reasoning(budget_tokens=9)),
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
