"""Vectors on both wires: what is sent, how lists are split and joined, and what is counted."""

from __future__ import annotations

import asyncio
import math
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from maestro.llm.v1.embedding_pb2 import EmbedRequest
from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.errors import (
    CapabilityUnavailable,
    ContextTooLong,
    InvalidRequest,
    RateLimited,
    StreamBroken,
    UnsupportedParameter,
)
from maestro_sdk.testing.faults import FaultServer, Headers, SendJson, Wait
from maestro_sdk.testing.gemini_content import exhausted, problem
from maestro_sdk.testing.obliging_gemini import oblige_gemini, vector

PREDICT, CONTENT = "text-embedding-005", "gemini-embedding-001"
PATH = "/v1/projects/p1/locations/global/publishers/google/models"


def embed(*texts: str, model: str = PREDICT, **fields: Any) -> EmbedRequest:
    inputs = [{"text": text} for text in texts]
    return ParseDict({"model": f"vertex/{model}", "inputs": inputs, **fields}, EmbedRequest())


async def test_many_texts_in_one_call(provider_at: Any) -> None:
    request = embed("one", "two", purpose="EMBED_PURPOSE_SEARCH_QUERY", dimensions=4, truncate=False)
    async with FaultServer() as server, provider_at(server.url) as provider:
        oblige_gemini(server)
        answer = await provider.embed(request)
        seen = server.requests
    assert [(one.path, one.json()) for one in seen] == [
        (
            f"{PATH}/{PREDICT}:predict",
            {
                "instances": [
                    {"content": "one", "task_type": "RETRIEVAL_QUERY"},
                    {"content": "two", "task_type": "RETRIEVAL_QUERY"},
                ],
                "parameters": {"outputDimensionality": 4, "autoTruncate": False},
            },
        )
    ]
    assert [list(one.values) for one in answer.embeddings] == [pytest.approx(vector(t, 4)) for t in ("one", "two")]
    assert [one.index for one in answer.embeddings] == [0, 1]
    assert answer.usage == Usage(input_tokens=2, input_characters=6)


async def test_one_text_per_call(provider_at: Any) -> None:
    request = embed("one", "two", model=CONTENT, purpose="EMBED_PURPOSE_SIMILARITY", dimensions=4, truncate=True)
    async with FaultServer() as server, provider_at(server.url) as provider:
        oblige_gemini(server)
        answer = await provider.embed(request)
        seen = {one.json()["content"]["parts"][0]["text"]: one for one in server.requests}
    assert seen["two"].path == f"{PATH}/{CONTENT}:embedContent"
    assert seen["two"].json() == {
        "content": {"role": "user", "parts": [{"text": "two"}]},
        "embedContentConfig": {"taskType": "SEMANTIC_SIMILARITY", "outputDimensionality": 4, "autoTruncate": True},
    }
    assert [list(one.values) for one in answer.embeddings] == [pytest.approx(vector(t, 4)) for t in ("one", "two")]
    assert answer.usage == Usage(input_tokens=2)


@pytest.mark.parametrize(("model", "calls"), [(PREDICT, 3), (CONTENT, 600)])
async def test_long_lists_are_split_and_joined_in_order(model: str, calls: int, provider_at: Any) -> None:
    texts = [f"text {number}" for number in range(600)]
    async with FaultServer() as server, provider_at(server.url) as provider:
        oblige_gemini(server)
        answer = await provider.embed(embed(*texts, model=model, dimensions=2))
        assert len(server.requests) == calls
    assert [list(one.values) for one in answer.embeddings] == [pytest.approx(vector(text, 2)) for text in texts]


async def test_long_texts_share_no_call(provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        oblige_gemini(server)
        await provider.embed(embed("a" * 30_000, "b" * 30_000, "c", dimensions=2))
        assert sorted(len(one.json()["instances"]) for one in server.requests) == [1, 2]


async def test_calls_at_once_are_bounded_and_the_first_failure_ends_all(provider_at: Any) -> None:
    running = most = 0

    def reply(seen: Any) -> Any:
        nonlocal running, most
        running += 1
        most = max(most, running)
        asyncio.get_running_loop().call_later(0.02, leave)
        return (Wait(0.02), SendJson({"embedding": {"values": [1.0]}, "usageMetadata": {"promptTokenCount": 1}}))

    def leave() -> None:
        nonlocal running
        running -= 1

    texts = [str(number) for number in range(20)]
    async with FaultServer() as server, provider_at(server.url, embed_concurrency=3) as provider:
        server.on("POST", "*:embedContent", reply)
        await provider.embed(embed(*texts, model=CONTENT))
        assert 1 < most <= 4
        server.reset()
        server.on("POST", "*:embedContent", exhausted("2s"))
        with pytest.raises(RateLimited) as caught:
            await provider.embed(embed(*texts, model=CONTENT))
        assert len(server.requests) < len(texts)
    assert caught.value.retry_after == 2.0
    assert caught.value.metadata["model"] == f"vertex/{CONTENT}"


async def test_vectors_of_length_one(provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        oblige_gemini(server)
        plain = await provider.embed(embed("one", model=CONTENT, dimensions=8))
        unit = await provider.embed(embed("one", model=CONTENT, dimensions=8, normalize=True))
    assert math.hypot(*unit.embeddings[0].values) == pytest.approx(1.0)
    length = math.hypot(*plain.embeddings[0].values)
    assert length != pytest.approx(1.0)
    assert list(unit.embeddings[0].values) == pytest.approx([value / length for value in plain.embeddings[0].values])


async def test_own_options_come_last(provider_at: Any) -> None:
    options = {"vertex": {"parameters": {"autoTruncate": None, "x": 1}}}
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", "*:predict", SendJson({"predictions": [{"embeddings": {"values": [1.0]}}]}))
        answer = await provider.embed(embed("one", truncate=True, provider_options=options))
        assert server.requests[0].json()["parameters"] == {"x": 1}
    # Nothing was counted, so nothing is told.
    assert not answer.HasField("usage")


async def test_what_can_not_be_embedded(provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        for kind in ({"tokens": {"ids": [1]}}, {"image": {"data": "AAAA", "mime_type": "image/png"}}):
            with pytest.raises(UnsupportedParameter) as caught:
                await provider.embed(embed("one", inputs=[{"text": "a"}, kind]))
            assert caught.value.violations[0].field == f"inputs[1].{next(iter(kind))}"
        with pytest.raises(CapabilityUnavailable):
            await provider.embed(embed("one", model="gemini-2.5-flash"))
        assert server.requests == []


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        ((SendJson({"predictions": [{}]}),), StreamBroken),
        ((SendJson([]),), StreamBroken),
        (
            (
                Headers(400),
                SendJson(problem(400, "The input token count is 9999 but the model supports up to 2048.")),
            ),
            ContextTooLong,
        ),
        ((Headers(400), SendJson(problem(400, "bad"))), InvalidRequest),
    ],
)
async def test_answers_that_are_none(steps: Any, expected: type[Exception], provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", "*:predict", *steps)
        with pytest.raises(expected) as caught:
            await provider.embed(embed("one"))
    assert type(caught.value) is expected


@pytest.mark.parametrize("name", ["content", "instances"])
async def test_options_do_not_replace_the_inputs(name: str, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        with pytest.raises(InvalidRequest) as caught:
            await provider.embed(embed("one", provider_options={"vertex": {name: []}}))
        assert caught.value.violations[0].field == f"provider_options.vertex.{name}"
        assert not server.requests
