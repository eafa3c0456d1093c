"""Embeddings: the bodies of both families, calls that are split and joined in order, and what goes wrong."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc
import pytest
from google.protobuf.json_format import ParseDict

from maestro.llm.v1.embedding_pb2 import EmbedRequest
from maestro.llm.v1.embedding_pb2_grpc import EmbeddingServiceStub
from maestro_adapter_bedrock.embedding import to_embed_wire
from maestro_sdk.adapter.catalogue import Catalogue
from maestro_sdk.adapter.embedding_servicer import EmbeddingServicer
from maestro_sdk.adapter.provider import Embedder
from maestro_sdk.errors import (
    CapabilityUnavailable,
    InvalidRequest,
    RateLimited,
    StreamBroken,
    UnsupportedParameter,
    from_rpc_error,
)
from maestro_sdk.testing import bedrock_converse as wire
from maestro_sdk.testing.faults import FaultServer, Headers, Seen, Send, SendJson, Step, Wait
from maestro_sdk.testing.servers import serve

TITAN, COHERE, COHERE4 = (
    "bedrock/amazon.titan-embed-text-v2:0",
    "bedrock/cohere.embed-multilingual-v3",
    "bedrock/cohere.embed-v4:0",
)
PATH = "/model/*/invoke"


def want(*texts: str, model: str = TITAN, **fields: Any) -> EmbedRequest:
    return ParseDict({"model": model, "inputs": [{"text": text} for text in texts], **fields}, EmbedRequest())


@pytest.mark.parametrize(
    ("model", "fields", "body", "warned"),
    [
        (TITAN, {}, {"inputText": "a"}, []),
        (
            TITAN,
            {"dimensions": 256, "normalize": False, "truncate": True, "purpose": "EMBED_PURPOSE_SEARCH_QUERY"},
            {"inputText": "a", "dimensions": 256, "normalize": False},
            ["truncate", "purpose"],
        ),
        (COHERE, {}, {"texts": ["a"], "input_type": "search_document"}, []),
        (
            COHERE,
            {"purpose": "EMBED_PURPOSE_SEARCH_QUERY", "truncate": True},
            {"texts": ["a"], "input_type": "search_query", "truncate": "END"},
            [],
        ),
        (
            COHERE,
            {"purpose": "EMBED_PURPOSE_SIMILARITY", "dimensions": 256, "normalize": True, "truncate": False},
            {"texts": ["a"], "input_type": "search_document", "truncate": "NONE"},
            ["purpose", "normalize", "dimensions"],
        ),
        (
            COHERE4,
            {"dimensions": 256, "purpose": "EMBED_PURPOSE_CLUSTERING"},
            {"texts": ["a"], "input_type": "clustering", "embedding_types": ["float"], "output_dimension": 256},
            [],
        ),
        (
            TITAN,
            {"provider_options": {"bedrock": {"embeddingTypes": ["float"]}, "openai": {"x": 1}}},
            {"inputText": "a", "embeddingTypes": ["float"]},
            [],
        ),
    ],
)
def test_bodies(model: str, fields: Any, body: Any, warned: list[str], catalogue: Any) -> None:
    plan = to_embed_wire(want("a", model=model, **fields), catalogue[model])
    assert plan.calls == [(body, 1)]
    assert [warning.field for warning in plan.warnings] == warned
    if warned:
        with pytest.raises(UnsupportedParameter):
            to_embed_wire(want("a", model=model, strict=True, **fields), catalogue[model])


def test_inputs_that_are_no_text(catalogue: Any) -> None:
    request = want("a")
    request.inputs.add().tokens.ids.append(7)
    with pytest.raises(UnsupportedParameter) as caught:
        to_embed_wire(request, catalogue[TITAN])
    assert caught.value.violations[0].field == "inputs[1].tokens"
    with pytest.raises(InvalidRequest, match="inputText"):
        to_embed_wire(want("a", provider_options={"bedrock": {"inputText": "b"}}), catalogue[TITAN])


async def test_titan_is_called_once_per_text_a_few_at_once(provider_at: Any) -> None:
    def reply(seen: Seen) -> Sequence[Step]:
        number = int(seen.json()["inputText"])
        # The later the text, the earlier its answer.
        document = {"embedding": [number, 0.5], "inputTextTokenCount": 2}
        return (Wait(0.002 * (20 - number)), SendJson(document))

    async with FaultServer() as server, provider_at(server.url, embed_concurrency=4) as provider:
        assert isinstance(provider, Embedder)
        server.on("POST", PATH, reply)
        response = await provider.embed(want(*(str(number) for number in range(20))))
        assert len(server.requests) == 20
        assert server.requests[0].path == "/model/amazon.titan-embed-text-v2%3A0/invoke"
        # The fifth call waits for one of the first four.
        ended = server.requests[3].received_at + 0.002 * 17 * 0.9
        assert server.requests[4].received_at >= ended
    assert [vector.index for vector in response.embeddings] == list(range(20))
    assert [list(vector.values) for vector in response.embeddings] == [[number, 0.5] for number in range(20)]
    assert response.usage.input_tokens == 40


async def test_cohere_is_called_with_96_texts(provider_at: Any) -> None:
    def reply(seen: Seen) -> Sequence[Step]:
        texts = seen.json()["texts"]
        head = Headers(200, {"x-amzn-bedrock-input-token-count": str(len(texts)), "x-amzn-requestid": texts[0]})
        return (head, SendJson({"embeddings": {"float": [[float(text), 1.0] for text in texts]}}))

    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", PATH, reply)
        response = await provider.embed(want(*(str(number) for number in range(200)), model=COHERE4))
        assert [len(seen.json()["texts"]) for seen in server.requests] == [96, 96, 8]
    assert [vector.values[0] for vector in response.embeddings] == list(range(200))
    assert (response.usage.input_tokens, response.response_id) == (200, "0")


async def test_served_with_usage_or_without(provider_at: Any) -> None:
    async with (
        FaultServer() as server,
        provider_at(server.url) as provider,
        serve(EmbeddingServicer(provider, Catalogue(provider))) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        embeddings: Any = EmbeddingServiceStub(channel)
        server.on("POST", PATH, SendJson({"embeddings": [[1, 2], [3, 4]]}))
        response = await embeddings.Embed(want("a", "b", model=COHERE))
        assert [list(vector.values) for vector in response.embeddings] == [[1, 2], [3, 4]]
        assert (response.provider, response.model) == ("bedrock", "cohere.embed-multilingual-v3")
        assert not response.HasField("usage"), "what was not told is unknown, not zero"
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await embeddings.Embed(want("a", model="bedrock/amazon.nova-lite-v1:0"))
    assert type(from_rpc_error(caught.value)) is CapabilityUnavailable


@pytest.mark.parametrize(
    "body",
    [b"{}", b"[]", b'{"embeddings":[[1]]}', b'{"embeddings":{"int8":[[1],[2]]}}', b'{"embeddings":[["a"],["b"]]}'],
)
async def test_answers_that_are_none(body: bytes, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", PATH, Headers(200, {"content-type": "application/json"}), Send(body))
        with pytest.raises(StreamBroken):
            await provider.embed(want("a", "b", model=COHERE))


async def test_one_failure_ends_the_others(provider_at: Any) -> None:
    slow = wire.error(429, message="slow down", headers={"retry-after": "4"})

    def reply(seen: Seen) -> Sequence[Step]:
        return slow(seen) if seen.json()["inputText"] == "1" else (Wait(30), SendJson({}))

    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", PATH, reply)
        with pytest.raises(RateLimited) as caught:
            await provider.embed(want("0", "1", "2"))
        for seen in server.requests:
            if seen.json()["inputText"] != "1":
                await asyncio.wait_for(seen.closed.wait(), 2)
    assert caught.value.retry_after == 4.0
    assert caught.value.metadata["model"] == TITAN
