"""Embeddings at OpenAI: the wire, what it can't carry, and money."""

from __future__ import annotations

from typing import Any

import pytest

from maestro.llm.v1.embedding_pb2 import EmbedPurpose, EmbedRequest
from maestro_adapter_openai.models import models
from maestro_adapter_openai.provider import OpenAIProvider
from maestro_sdk.adapter.catalogue import Catalogue
from maestro_sdk.adapter.embedding_servicer import EmbeddingServicer
from maestro_sdk.errors import (
    CapabilityUnavailable,
    ContextTooLong,
    InvalidRequest,
    RateLimited,
    StreamBroken,
    UnsupportedParameter,
)
from maestro_sdk.testing import openai_chat
from maestro_sdk.testing.faults import Cut, FaultServer, SendJson
from maestro_sdk.testing.openai_auxiliary import OpenAIAuxiliary
from maestro_sdk.testing.openai_embedding import vector_of
from maestro_sdk.testing.servers import Aimock

SMALL = "openai/text-embedding-3-small"


def texts(*given: str, model: str = SMALL, **fields: Any) -> EmbedRequest:
    request = EmbedRequest(model=model, **fields)
    for text in given:
        request.inputs.add(text=text)
    return request


async def test_vectors_are_those_of_the_texts(server: FaultServer, openai: OpenAIProvider) -> None:
    OpenAIAuxiliary(server)
    answer = await openai.embed(texts("a cat", "a dog", dimensions=8))
    assert [list(entry.values) for entry in answer.embeddings] == [
        pytest.approx(vector_of("a cat", 8)),
        pytest.approx(vector_of("a dog", 8)),
    ]
    assert (answer.provider, answer.model, answer.usage.input_tokens) == ("openai", "text-embedding-3-small", 2)
    assert server.requests[0].json() == {
        "model": "text-embedding-3-small",
        "input": ["a cat", "a dog"],
        "encoding_format": "base64",
        "dimensions": 8,
    }
    assert server.requests[0].headers["authorization"] == "Bearer sk-test"


async def test_tokens_and_texts_go_in_calls_of_their_own_and_come_back_in_order(
    server: FaultServer, openai: OpenAIProvider
) -> None:
    OpenAIAuxiliary(server)
    request = texts("first")
    request.inputs.add().tokens.ids.extend([1, 2, 3])
    request.inputs.add(text="third")
    answer = await openai.embed(request)
    assert [seen.json()["input"] for seen in server.requests] == [["first", "third"], [[1, 2, 3]]]
    assert [list(entry.values)[:4] for entry in answer.embeddings] == [
        pytest.approx(vector_of(entry, 1536)[:4]) for entry in ("first", [1, 2, 3], "third")
    ]
    assert answer.usage.input_tokens == 1 + 3 + 1


async def test_what_this_wire_does_not_know(server: FaultServer, openai: OpenAIProvider) -> None:
    OpenAIAuxiliary(server)
    purpose = EmbedPurpose.EMBED_PURPOSE_SEARCH_QUERY
    answer = await openai.embed(texts("x", purpose=purpose, truncate=True, normalize=False))
    assert [warning.field for warning in answer.warnings] == ["purpose", "truncate", "normalize"]
    assert not (await openai.embed(texts("x", truncate=False, normalize=True))).warnings
    ada = await openai.embed(texts("x", model="openai/text-embedding-ada-002", dimensions=8))
    assert ([warning.field for warning in ada.warnings], len(ada.embeddings[0].values)) == (["dimensions"], 1536)
    with pytest.raises(UnsupportedParameter) as caught:
        await openai.embed(texts("x", purpose=purpose, strict=True))
    assert [violation.field for violation in caught.value.violations] == ["purpose"]
    image = texts("x")
    image.inputs.add().image.url = "https://example.com/cat.png"
    with pytest.raises(UnsupportedParameter) as caught:
        await openai.embed(image)
    assert caught.value.violations[0].field == "inputs[1].image"
    with pytest.raises(CapabilityUnavailable, match="EMBEDDINGS"):
        await openai.embed(texts("x", model="openai/gpt-4.1"))


async def test_refusals(server: FaultServer, openai: OpenAIProvider) -> None:
    OpenAIAuxiliary(server)
    with pytest.raises(InvalidRequest) as caught:
        await openai.embed(texts("x", dimensions=5000))
    assert caught.value.violations[0].field == "dimensions"
    with pytest.raises(ContextTooLong):
        await openai.embed(texts("word " * 20_000))
    server.reset()
    server.on("POST", "/v1/embeddings", openai_chat.rate_limited(2))
    with pytest.raises(RateLimited) as limited:
        await openai.embed(texts("x"))
    assert (limited.value.retry_after, limited.value.metadata["model"]) == (2.0, "text-embedding-3-small")
    server.reset()
    server.on("POST", "/v1/embeddings", SendJson({"data": []}))
    with pytest.raises(StreamBroken, match="was given 1 inputs"):
        await openai.embed(texts("x"))
    server.reset()
    server.on("POST", "/v1/embeddings", Cut())
    with pytest.raises(Exception, match="can't be reached"):
        await openai.embed(texts("x"))


async def test_money(server: FaultServer, openai: OpenAIProvider) -> None:
    OpenAIAuxiliary(server)
    servicer = EmbeddingServicer(openai, Catalogue(openai))
    answer = await servicer.Embed(texts("word " * 4000), None)
    # 5000 tokens at 2 cents per million.
    assert (answer.usage.input_tokens, answer.cost.usd) == (5000, "0.000100")


def test_embedding_models_do_not_chat() -> None:
    found = models()
    assert [name for name, entry in found.items() if entry.embedding is not None] == [
        "text-embedding-3-large",
        "text-embedding-3-small",
        "text-embedding-ada-002",
    ]
    assert all((entry.dialect is None) == (entry.embedding is not None) for entry in found.values())


async def test_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another hand's emulator of the API gives the same shapes."""
    from maestro_adapter_openai.settings import OpenAISettings

    fixture = {"match": {"inputText": "hello"}, "response": {"embedding": [0.5, -0.25, 0.125]}}
    async with Aimock([fixture]) as emulator:
        settings = {"api_key": {"env": "ADAPTER_TEST_KEY"}, "base_url": emulator.openai_url}
        provider = OpenAIProvider.from_settings(OpenAISettings.model_validate(settings))
        answer = await provider.embed(texts("hello"))
        assert list(answer.embeddings[0].values) == [0.5, -0.25, 0.125]
        await provider.close()
