"""Embeddings by the official OpenAI client, unmodified, in front of every provider that embeds."""

import asyncio
import base64
import time
from array import array
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import openai
import pytest
import pytest_asyncio

from maestro_sdk.embeddings import EmbeddingClient, vectors_of
from maestro_sdk.testing.faults import FaultServer, Headers, Seen, SendJson, Step, Wait
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.obliging_openai import oblige_azure, oblige_openai_account

from .conftest import KEY

OPENAI, AZURE = "openai/text-embedding-3-small", "azure/text-embedding-3-small"
MODELS = (
    (OPENAI, 1536, 256),
    (AZURE, 1536, 256),
    ("vertex/gemini-embedding-001", 3072, 768),
    ("vertex/text-embedding-005", 768, 256),
    ("bedrock/amazon.titan-embed-text-v2:0", 1024, 256),
    ("bedrock/cohere.embed-english-v3", 1024, None),
    ("local/embedder:latest", 384, 128),
    ("local/hashing", 256, 64),
)
TEXTS = ["the quick brown fox", "jumps over", "the lazy dog"]


@pytest_asyncio.fixture(loop_scope="session")
async def client(mesh: MeshProcess, provider: FaultServer) -> AsyncIterator[openai.AsyncOpenAI]:
    """The client as its users make it."""
    oblige_openai_account(provider)
    oblige_azure(provider)
    async with openai.AsyncOpenAI(base_url=f"{mesh.url}/v1", api_key=KEY, max_retries=0) as made:
        yield made


@pytest.mark.parametrize(("model", "length", "shorter"), MODELS)
async def test_embed(client: openai.AsyncOpenAI, model: str, length: int, shorter: int | None):
    whole = await client.embeddings.create(model=model, input=TEXTS)
    assert whole.model == model
    assert [item.index for item in whole.data] == [0, 1, 2]
    if model.partition("/")[0] in ("openai", "azure", "vertex"):
        assert len(whole.data[0].embedding) == length
    assert whole.usage.prompt_tokens == whole.usage.total_tokens > 0
    plain = await client.embeddings.create(model=model, input=TEXTS, encoding_format="float")
    assert [item.embedding for item in plain.data] == [item.embedding for item in whole.data]
    single = await client.embeddings.create(model=model, input=TEXTS[2])
    assert [item.embedding for item in single.data] == [whole.data[2].embedding]
    if shorter is not None:
        short = await client.embeddings.create(model=model, input=TEXTS, dimensions=shorter)
        assert {len(item.embedding) for item in short.data} == {shorter}


async def test_base64_as_it_stands(client: openai.AsyncOpenAI):
    answer = await client.embeddings.create(model=OPENAI, input=TEXTS, encoding_format="base64", dimensions=8)
    plain = await client.embeddings.create(model=OPENAI, input=TEXTS, encoding_format="float", dimensions=8)
    packed: list[Any] = [item.embedding for item in answer.data]
    assert [list(array("f", base64.b64decode(one))) for one in packed] == [item.embedding for item in plain.data]


async def test_tokens_where_the_provider_takes_them(client: openai.AsyncOpenAI):
    answer = await client.embeddings.create(model=OPENAI, input=[[1, 2, 3], [4, 5]])
    assert len(answer.data) == 2
    with pytest.raises(openai.BadRequestError) as refused:
        await client.embeddings.create(model="vertex/gemini-embedding-001", input=[[1, 2, 3]])
    assert refused.value.param == "input[0]"


async def test_errors_are_the_clients_own(client: openai.AsyncOpenAI, provider: FaultServer):
    with pytest.raises(openai.BadRequestError) as empty:
        await client.embeddings.create(model=OPENAI, input=["a", ""])
    assert empty.value.param == "input[1]"
    with pytest.raises(openai.NotFoundError):
        await client.embeddings.create(model="openai/none", input="a")
    with pytest.raises(openai.APIStatusError, match="does not offer EMBEDDINGS") as unable:
        await client.embeddings.create(model="openai/gpt-4.1", input="a")
    assert unable.value.status_code == 412
    with pytest.raises(openai.APIStatusError) as large:
        await client.embeddings.create(model=OPENAI, input=["a"] * 8193)
    assert large.value.status_code == 413
    with pytest.raises(openai.AuthenticationError):
        await client.with_options(api_key="mk-wrong-0123456789").embeddings.create(model=OPENAI, input="a")
    assert provider.requests == []


async def test_five_thousand_inputs(client: openai.AsyncOpenAI, provider: FaultServer):
    texts = [f"text number {number}" for number in range(5000)]
    begun = time.monotonic()
    answer = await client.embeddings.create(model=OPENAI, input=texts, dimensions=64)
    assert time.monotonic() - begun < 30
    assert [item.index for item in answer.data] == list(range(5000))
    assert len(provider.requests) == 10
    for number in (0, 511, 512, 2047, 4999):
        [alone] = (await client.embeddings.create(model=OPENAI, input=texts[number], dimensions=64)).data
        assert alone.embedding == answer.data[number].embedding
    assert answer.usage.prompt_tokens == sum(max(1, len(text) // 4) for text in texts)


async def test_the_same_model_elsewhere_takes_over(client: openai.AsyncOpenAI, provider: FaultServer):
    here = (await client.embeddings.create(model="embeddings", input=TEXTS)).data
    provider.replace("POST", "/v1/embeddings", Headers(503), SendJson({"error": {"message": "down"}}))
    answer = await client.embeddings.create(model="embeddings", input=TEXTS)
    assert answer.model == AZURE
    assert answer.data == here
    # No model of another name is asked, though the route lists one.
    provider.replace("POST", "/openai/deployments/*/embeddings", Headers(503), SendJson({"error": {"message": "down"}}))
    provider.requests.clear()
    with pytest.raises(openai.InternalServerError):
        await client.embeddings.create(model="embeddings", input=TEXTS)
    assert not [seen.path for seen in provider.requests if "/models/" in seen.path]


async def test_a_caller_who_leaves_frees_the_provider(client: openai.AsyncOpenAI, provider: FaultServer):
    def reply(seen: Seen) -> list[Step]:
        return [Wait(60), SendJson({})]

    provider.replace("POST", "/v1/embeddings", reply)
    asking = asyncio.create_task(client.embeddings.create(model=OPENAI, input="a"))
    seen = await provider.request(0)
    asking.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asking
    async with asyncio.timeout(10):
        await seen.closed.wait()


async def test_the_meshs_own_client_and_fields(mesh: MeshProcess, client: openai.AsyncOpenAI):
    async with EmbeddingClient(mesh.url, KEY) as own:
        answer = await own.embed(TEXTS, model=OPENAI, dimensions=16)
    assert answer.cost.usd
    theirs = await client.embeddings.create(
        model=OPENAI,
        input=TEXTS,
        dimensions=16,
        extra_body={"routing": {"session_key": "s"}, "metadata": {"team": "a"}},
    )
    assert vectors_of(answer) == [item.embedding for item in theirs.data]
    # A request that names no model takes the route for embeddings.
    async with (
        aiohttp.ClientSession() as session,
        session.post(
            f"{mesh.url}/v1/embeddings", json={"input": "a"}, headers={"authorization": f"Bearer {KEY}"}
        ) as unnamed,
    ):
        document = await unnamed.json()
    assert (document["maestro"]["route"], document["model"]) == ("embeddings", OPENAI)
