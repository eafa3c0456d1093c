"""Answers that were begun: the offline model says the rest, vLLM is asked to go on, Ollama goes on by itself."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse, FinishReason, Reasoning, ReasoningEffort, Tool
from maestro.llm.v1.message_pb2 import Part, ToolCallPart
from maestro.llm.v1.model_pb2 import Feature
from maestro_adapter_local.offline import tokens
from maestro_adapter_local.provider import LocalProvider
from maestro_adapter_local.settings import LocalSettings
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.models import supports
from maestro_sdk.testing import openai_chat
from maestro_sdk.testing.faults import FaultServer, SendJson
from maestro_sdk.types import assistant, text_of, user

QUESTIONS = (
    "Count from 1 to 12.",
    "Tell me something about the sea.",
    "Write 30 words.",
    "Say exactly: one\n\n two  three ",
)


@asynccontextmanager
async def local(**settings: Any) -> AsyncGenerator[LocalProvider]:
    provider = LocalProvider(LocalSettings.model_validate({"hashing": False, **settings}))
    try:
        yield provider
    finally:
        await provider.close()


async def answer(provider: LocalProvider, request: ChatRequest) -> ChatResponse:
    """The answer, streamed; the unary one is the same."""
    streamed = fold([event async for batch in provider.stream(request) for event in batch])
    assert fold(await provider.complete(request)) == streamed
    return streamed


def begun(question: str, text: str, **fields: Any) -> ChatRequest:
    messages = [user(question), assistant(text)] if text else [user(question)]
    return ChatRequest(model="local/offline", messages=messages, **fields)


@pytest.mark.parametrize("question", QUESTIONS)
async def test_the_offline_model_says_the_rest_wherever_it_was_cut(question: str) -> None:
    async with local() as provider:
        whole = text_of(await answer(provider, begun(question, "", seed=3)))
        for place in range(1, len(whole) + 1):
            rest = await answer(provider, begun(question, whole[:place], seed=3))
            assert whole[:place] + text_of(rest) == whole
            assert rest.finish_reason == FinishReason.FINISH_REASON_STOP


async def test_its_limits_and_counts_are_those_of_the_rest() -> None:
    async with local() as provider:
        rest = await answer(provider, begun("Count from 1 to 12.", "1, 2, 3", max_tokens=4))
        high = Reasoning(effort=ReasoningEffort.REASONING_EFFORT_HIGH)
        thoughtful = await answer(provider, begun("Count from 1 to 12.", "1, 2, 3", stop=["10"], reasoning=high))
        asked = await provider.count_tokens(begun("Count from 1 to 12.", "1, 2, 3"))
    assert (text_of(rest), rest.finish_reason) == (", 4, 5", FinishReason.FINISH_REASON_LENGTH)
    assert rest.usage.input_tokens == asked == tokens.count("Count from 1 to 12.") + tokens.count("1, 2, 3")
    assert [part.WhichOneof("kind") for part in thoughtful.parts] == ["text"]
    assert text_of(thoughtful) == ", 4, 5, 6, 7, 8, 9, "
    assert thoughtful.stop_sequence == "10"


async def test_it_goes_on_behind_what_another_model_began() -> None:
    async with local() as provider:
        whole = text_of(await answer(provider, begun("hello", "")))
        assert text_of(await answer(provider, begun("hello", "Good morning!"))) == f" {whole}"
        assert text_of(await answer(provider, begun("hello", "Good morning!\n"))) == whole


async def test_a_call_without_its_result_is_no_text_that_was_begun() -> None:
    request = ChatRequest(model="local/offline", messages=[user("hello")], tools=[Tool(name="clock")])
    called = Part(tool_call=ToolCallPart(call_id="c1", name="clock", arguments_json="{}"))
    request.messages.append(assistant("I look.", called))
    async with local() as provider:
        assert "This is answer 2" in text_of(await answer(provider, request))


async def test_vllm_is_asked_to_go_on() -> None:
    async with FaultServer() as server:
        served = {"id": "m", "object": "model", "max_model_len": 4096}
        server.on("GET", "/v1/models", SendJson({"data": [served, {**served, "id": "thinker"}]}))
        server.on("POST", openai_chat.PATH, openai_chat.text(" 3"))
        server.on("POST", "/tokenize", SendJson({"count": 5}))
        entry = {
            "name": "gpu",
            "base_url": f"{server.url}/v1",
            "api": "vllm",
            "models": [{"match": "thinker", "features": ["REASONING"]}],
        }
        async with local(servers=[entry]) as provider:
            found = {model.name: supports(model, Feature.FEATURE_PREFILL) for model in await provider.models()}
            assert (found["m"], found["thinker"]) == (True, False)
            request = begun("Count.", "1, 2,")
            request.model = "local/m"
            await provider.complete(request)
            await provider.count_tokens(request)
            told, counted = (seen.json() for seen in server.requests[-2:])
            assert told["messages"][-1] == {"role": "assistant", "content": "1, 2,"}
            for body in (told, counted):
                assert (body["add_generation_prompt"], body["continue_final_message"]) == (False, True)
            request.model = "local/thinker"
            await provider.complete(request)
            assert not {"add_generation_prompt", "continue_final_message"} & set(server.requests[-1].json())
            del request.messages[1]
            request.model = "local/m"
            await provider.complete(request)
            assert not {"add_generation_prompt", "continue_final_message"} & set(server.requests[-1].json())
