"""What vLLM does in its own way: names of parameters, reasoning, stop reasons, structured outputs, counting."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from maestro.llm.v1.chat_pb2 import ChatRequest, FinishReason
from maestro.llm.v1.embedding_pb2 import EmbedRequest
from maestro.llm.v1.model_pb2 import Feature
from maestro_adapter_local.provider import LocalProvider
from maestro_adapter_local.settings import LocalSettings
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.models import supports
from maestro_sdk.errors import ContextTooLong, StreamBroken, UpstreamError
from maestro_sdk.testing import openai_chat
from maestro_sdk.testing.faults import FaultServer, Headers, SendJson, Sse
from maestro_sdk.testing.wire import Answer

SERVED = {"id": "Qwen/Qwen3-8B", "object": "model", "owned_by": "vllm", "max_model_len": 40960}


@asynccontextmanager
async def vllm(**settings: Any) -> AsyncGenerator[tuple[FaultServer, LocalProvider]]:
    async with FaultServer() as server:
        server.on("GET", "/v1/models", SendJson({"data": [SERVED]}))
        entry = {"name": "gpu", "base_url": f"{server.url}/v1", "api": "vllm", **settings}
        provider = LocalProvider(LocalSettings.model_validate({"servers": [entry]}))
        try:
            yield server, provider
        finally:
            await provider.close()


def ask(text: str = "hi", **fields: Any) -> ChatRequest:
    turn = {"role": "ROLE_USER", "parts": [{"text": {"text": text}}]}
    return ParseDict({"model": "local/Qwen/Qwen3-8B", "messages": [turn], **fields}, ChatRequest())


async def test_what_it_can_do() -> None:
    async with vllm() as (_, provider):
        found = {model.name: model for model in await provider.models()}
    model = found["Qwen/Qwen3-8B"]
    assert model.context_window == 40960
    for name in ("JSON_SCHEMA", "LOGPROBS", "TOKEN_COUNTING", "TOOLS"):
        assert supports(model, Feature.Value(f"FEATURE_{name}"))
    assert not supports(model, Feature.FEATURE_VISION)


async def test_its_words_for_parameters() -> None:
    choice = {"structured_outputs": {"choice": ["yes", "no"]}}
    async with vllm() as (server, provider):
        server.on("POST", openai_chat.PATH, openai_chat.text("yes"))
        fields: dict[str, Any] = {"max_tokens": 9, "stop": list("abcdef"), "logprobs": {"top": 2}, "strict": True}
        await provider.complete(ask(**fields, provider_options={"local": choice}))
        body = server.requests[-1].json()
    assert body["max_completion_tokens"] == 9
    assert "max_tokens" not in body
    assert body["stop"] == list("abcdef")
    assert (body["logprobs"], body["top_logprobs"]) == (True, 2)
    assert body["structured_outputs"] == {"choice": ["yes", "no"]}


async def test_reasoning_and_stop_reasons() -> None:
    def stopped(reason: Any) -> list[Any]:
        choice = {"index": 0, "delta": {}, "finish_reason": "stop", "stop_reason": reason}
        return [Sse(None, {"id": "c", "choices": [choice]}), Sse(None, "[DONE]")]

    async with vllm() as (server, provider):
        server.on("POST", openai_chat.PATH, openai_chat.answer(Answer(pieces=("42",), thoughts=("6 x", " 7"))))
        answer = fold([event async for batch in provider.stream(ask()) for event in batch])
        assert [part.WhichOneof("kind") for part in answer.parts] == ["reasoning", "text"]
        assert answer.parts[0].reasoning.text == "6 x 7"
        for reason, expected, stop in (("###", "STOP_SEQUENCE", "###"), (151645, "STOP", ""), (None, "STOP", "")):
            server.reset()
            server.on("POST", openai_chat.PATH, *stopped(reason))
            answer = fold([event async for batch in provider.stream(ask()) for event in batch])
            assert answer.finish_reason == FinishReason.Value(f"FINISH_REASON_{expected}")
            assert answer.stop_sequence == stop


async def test_tokens_are_counted_by_the_server() -> None:
    async with vllm(features=["TOOLS"]) as (server, provider):
        server.on("POST", "/tokenize", SendJson({"count": 31, "max_model_len": 40960, "tokens": [1, 2]}))
        assert await provider.count_tokens(ask(system="Be brief.", tools=[{"name": "f"}], max_tokens=5)) == 31
        seen = server.requests[-1]
        assert seen.path == "/tokenize"
        assert set(seen.json()) == {"model", "messages", "tools", "add_generation_prompt"}
        assert seen.json()["messages"][0] == {"role": "system", "content": "Be brief."}


async def test_tokens_that_are_not_counted() -> None:
    async with vllm() as (server, provider):
        server.on("POST", "/tokenize", SendJson({"tokens": []}))
        server.on("POST", "/tokenize", Headers(500), SendJson({"error": {"message": "oops"}}))
        too_long = "This model's maximum context length is 10 tokens."
        server.on("POST", "/tokenize", Headers(400), SendJson({"error": {"message": too_long}}))
        for error in (StreamBroken, UpstreamError, ContextTooLong):
            with pytest.raises(error):
                await provider.count_tokens(ask())


async def test_embeddings() -> None:
    only = [{"match": "*", "features": ["EMBEDDINGS"], "without": ["CHAT"]}]
    async with vllm(models=only) as (server, provider):
        (model,) = [model for model in await provider.models() if model.name == SERVED["id"]]
        assert [entry.feature for entry in model.features] == [Feature.FEATURE_EMBEDDINGS]
        data = [{"index": 1, "embedding": [0.0, 1.0]}, {"index": 0, "embedding": [1.0, 0.0]}]
        server.on("POST", "/v1/embeddings", SendJson({"data": data, "usage": {"prompt_tokens": 4}}))
        request = ParseDict({"model": model.id, "inputs": [{"text": "a"}, {"text": "b"}]}, EmbedRequest())
        response = await provider.embed(request)
        assert [list(vector.values) for vector in response.embeddings] == [[1.0, 0.0], [0.0, 1.0]]
        assert response.usage.input_tokens == 4
        assert server.requests[-1].json()["input"] == ["a", "b"]
