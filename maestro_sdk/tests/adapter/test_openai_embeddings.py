"""The embeddings wire: what is sent for a request, how long lists are split, and how answers are read."""

import asyncio
import base64
import itertools
import struct
import time
from collections.abc import AsyncIterator, Sequence
from typing import Any

import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedRequest, TokenInput
from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.adapter.chat_completions import to_error
from maestro_sdk.adapter.http import HttpWire
from maestro_sdk.adapter.openai_embeddings import Answer, EmbeddingDialect, Embeddings, join, read, to_wire
from maestro_sdk.errors import InvalidRequest, RateLimited, StreamBroken, UnsupportedParameter
from maestro_sdk.testing import openai_chat
from maestro_sdk.testing.faults import FaultServer, Headers, Seen, Send, SendJson, Step

PLAIN = EmbeddingDialect("compatible")
SMALL = EmbeddingDialect("compatible", max_inputs=3, max_tokens=20)


def texts(*given: str, **fields: Any) -> EmbedRequest:
    return EmbedRequest(model="compatible/small", inputs=[EmbedInput(text=text) for text in given], **fields)


def encoded(*values: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(values)}f", *values)).decode()


def answer(*vectors: Any, usage: Any = None) -> bytes:
    data = [{"object": "embedding", "index": place, "embedding": vector} for place, vector in enumerate(vectors)]
    return orjson.dumps({"object": "list", "data": data, "model": "small", "usage": usage})


def test_unset_is_never_sent() -> None:
    assert to_wire(texts("a"), PLAIN).bodies == [{"model": "small", "input": ["a"], "encoding_format": "base64"}]


def test_the_servers_own_name_goes_out() -> None:
    dialect = EmbeddingDialect("compatible", wire_name="deployed", base64=False)
    assert to_wire(texts("a"), dialect).bodies == [{"model": "deployed", "input": ["a"], "encoding_format": "float"}]


def test_options_of_the_caller_come_last() -> None:
    request = texts("a", dimensions=4)
    request.provider_options["compatible"].update({"user": "someone", "dimensions": 8})
    request.provider_options["other"].update({"user": "nobody"})
    assert to_wire(request, PLAIN).bodies[0]["dimensions"] == 8
    assert to_wire(request, PLAIN).bodies[0]["user"] == "someone"
    request.provider_options["compatible"].update({"encoding_format": "float"})
    with pytest.raises(InvalidRequest) as caught:
        to_wire(request, PLAIN)
    assert caught.value.violations[0].field == "provider_options.compatible.encoding_format"


@pytest.mark.parametrize(
    ("truncates", "asked", "warned"),
    [(None, True, True), (None, False, True), (True, True, False), (True, False, True), (False, False, False)],
)
def test_truncation_is_the_servers(truncates: bool | None, asked: bool, warned: bool) -> None:
    wire = to_wire(texts("a", truncate=asked), EmbeddingDialect("compatible", truncates=truncates))
    assert [warning.field for warning in wire.warnings] == (["truncate"] if warned else [])
    assert set(wire.bodies[0]) == {"model", "input", "encoding_format"}


def test_inputs_that_the_wire_can_not_carry() -> None:
    request = texts("a", "b")
    request.inputs.append(EmbedInput(tokens=TokenInput(ids=[1])))
    with pytest.raises(UnsupportedParameter) as caught:
        to_wire(request, EmbeddingDialect("compatible", tokens=False))
    assert caught.value.violations[0].field == "inputs[2].tokens"
    request.inputs.add()
    with pytest.raises(InvalidRequest) as empty:
        to_wire(request, PLAIN)
    assert empty.value.violations[0].field == "inputs[3]"


def test_long_lists_are_split_by_number_and_by_size() -> None:
    wire = to_wire(texts("a", "b", "c", "d", "e" * 15, "f" * 15, "g" * 99), SMALL)
    assert wire.places == [[0, 1, 2], [3, 4], [5], [6]]
    assert [len(body["input"]) for body in wire.bodies] == [3, 2, 1, 1]


INPUTS = st.lists(st.one_of(st.text(min_size=1, max_size=8), st.lists(st.integers(0, 9), min_size=1, max_size=8)))


@given(INPUTS.filter(bool))
def test_whatever_is_split_is_joined_in_order(inputs: Sequence[Any]) -> None:
    request = EmbedRequest(model="compatible/small")
    for entry in inputs:
        request.inputs.append(
            EmbedInput(text=entry) if isinstance(entry, str) else EmbedInput(tokens=TokenInput(ids=entry))
        )
    wire = to_wire(request, SMALL)
    assert sorted(place for places in wire.places for place in places) == list(range(len(inputs)))
    answers: list[Answer] = []
    for body, places in zip(wire.bodies, wire.places, strict=True):
        given = body["input"]
        assert 1 <= len(given) <= 3
        assert (
            len(given) == 1
            or sum(len(entry.encode()) if isinstance(entry, str) else len(entry) for entry in given) <= 20
        )
        assert len({type(entry) for entry in given}) == 1
        vectors = [encoded(float(place), 1.0) for place in places]
        answers.append(read(answer(*vectors, usage={"prompt_tokens": len(given)}), SMALL, len(given)))
    response = join(request, SMALL, wire, answers)
    assert [list(entry.values) for entry in response.embeddings] == [
        [float(place), 1.0] for place in range(len(inputs))
    ]
    assert response.usage.input_tokens == len(inputs)


def test_decimals_and_base64_are_read_alike() -> None:
    values = [0.5, -0.25, 3.0]
    for vector in (values, encoded(*values)):
        assert list(read(answer(vector), PLAIN, 1).vectors[0]) == values


def test_places_count_and_not_the_order() -> None:
    body = orjson.dumps({"data": [{"index": 1, "embedding": [2.0]}, {"index": 0, "embedding": [1.0]}]})
    assert [list(vector) for vector in read(body, PLAIN, 2).vectors] == [[1.0], [2.0]]
    bare = orjson.dumps({"data": [{"embedding": [1.0]}, {"embedding": [2.0]}]})
    assert [list(vector) for vector in read(bare, PLAIN, 2).vectors] == [[1.0], [2.0]]


@pytest.mark.parametrize(
    "body",
    [
        b"<html>",
        b"[]",
        b"{}",
        b'{"data":[]}',
        b'{"data":[{"index":1,"embedding":[1]}]}',
        b'{"data":[{"index":0,"embedding":[1]},{"index":0,"embedding":[1]},{"index":1,"embedding":[1]}]}',
        b'{"data":[{"index":0,"embedding":[1]},{"index":0,"embedding":[2]}]}',
        b'{"data":[{"index":0,"embedding":"@@@@"}]}',
        b'{"data":[{"index":0,"embedding":"YWI="}]}',
        b'{"data":[{"index":0,"embedding":["x"]}]}',
        b'{"data":[{"index":0}]}',
        b'{"data":[7]}',
    ],
)
def test_what_can_not_be_read_is_never_guessed(body: bytes) -> None:
    with pytest.raises(StreamBroken):
        read(body, PLAIN, 1)


def test_usage_is_unset_unless_every_call_told_it() -> None:
    wire = to_wire(texts("a", "b", "c", "d"), SMALL)
    told = [read(answer([1.0], [1.0], [1.0], usage={"prompt_tokens": 3}), SMALL, 3), read(answer([1.0]), SMALL, 1)]
    assert not join(texts("a", "b", "c", "d"), SMALL, wire, told).HasField("usage")
    told[1].usage = Usage(input_tokens=2)
    assert join(texts("a", "b", "c", "d"), SMALL, wire, told).usage.input_tokens == 5


@pytest.mark.parametrize(
    ("normalized", "asked", "expected"),
    [(None, True, [0.6, 0.8]), (None, False, [3.0, 4.0]), (None, None, [3.0, 4.0]), (True, True, [3.0, 4.0])],
)
def test_length_one_is_made_where_the_server_does_not(
    normalized: bool | None, asked: bool | None, expected: list[float]
) -> None:
    dialect = EmbeddingDialect("compatible", normalized=normalized)
    request = texts("a") if asked is None else texts("a", normalize=asked)
    wire = to_wire(request, dialect)
    assert not wire.warnings
    response = join(request, dialect, wire, [read(answer([3.0, 4.0]), dialect, 1)])
    assert list(response.embeddings[0].values) == pytest.approx(expected)


def test_a_vector_of_zeros_stays() -> None:
    request = texts("a", normalize=True)
    response = join(request, PLAIN, to_wire(request, PLAIN), [read(answer([0.0, 0.0]), PLAIN, 1)])
    assert list(response.embeddings[0].values) == [0.0, 0.0]


# --- calls ------------------------------------------------------------------------------------------------------------


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with FaultServer() as running:
        yield running


@pytest.fixture
async def wire(server: FaultServer) -> AsyncIterator[HttpWire]:
    made = HttpWire(f"{server.url}/v1", {}, lambda status, body, headers: to_error(status, body, headers, "compatible"))
    yield made
    await made.close()


async def test_a_server_without_base64_is_asked_for_decimals_from_then_on(server: FaultServer, wire: HttpWire) -> None:
    def reply(seen: Seen) -> Sequence[Step]:
        if seen.json().get("encoding_format") == "base64":
            message = "Unsupported encoding_format: base64"
            return [Headers(400), SendJson({"error": {"message": message, "type": "invalid_request_error"}})]
        data = [{"index": place, "embedding": [1.0, 2.0]} for place in range(len(seen.json()["input"]))]
        return [SendJson({"data": data})]

    server.on("POST", "/v1/embeddings", reply)
    embeddings = Embeddings(wire)
    for _ in range(2):
        response = await embeddings.embed(texts("a"), PLAIN)
        assert list(response.embeddings[0].values) == [1.0, 2.0]
        assert response.response_id.startswith("embd_")
        assert not response.HasField("usage")
    assert [seen.json()["encoding_format"] for seen in server.requests] == ["base64", "float", "float"]


async def test_a_large_answer_is_read_beside_the_loop(server: FaultServer, wire: HttpWire) -> None:
    """An answer of 25 MB takes a second to read: streams of others go on meanwhile."""
    count, length = 500, 3072
    body = answer(*[encoded(*([0.25] * length))] * count)
    server.on("POST", "/v1/embeddings", Send(body))
    beats: list[float] = []

    async def beat() -> None:
        while True:
            # Time that the machine gives to others does not count: what holds the loop up takes time of this process.
            beats.append(time.process_time())
            await asyncio.sleep(0.001)

    heart = asyncio.create_task(beat())
    request = texts(*["a"] * count, normalize=True)
    found = await Embeddings(wire).embed(request, PLAIN)
    heart.cancel()
    assert len(found.embeddings) == count
    assert found.embeddings[-1].values[0] == pytest.approx(length**-0.5)
    # Scaling alone is a million and a half roots and divisions, 0.3 s and more.
    assert max(after - before for before, after in itertools.pairwise(beats)) < 0.2


@pytest.mark.parametrize(
    "vector",
    [
        encoded(1.0, float("nan")),
        encoded(float("inf"), 1.0),
        encoded(float("inf"), float("-inf")),
        [1e39, 1.0],
        base64.b64encode(b"12345").decode(),
        encoded(1.0)[:-1],
        encoded(1.0) + "\n",
    ],
)
def test_what_is_no_number_is_no_vector(vector: Any) -> None:
    with pytest.raises(StreamBroken, match="can't be read"):
        read(answer(vector), PLAIN, 1)


def test_usage_below_zero_is_none() -> None:
    with pytest.raises(StreamBroken, match="negative"):
        read(answer([1.0], usage={"prompt_tokens": -1}), PLAIN, 1)


async def test_the_first_failure_of_several_calls_ends_the_request(server: FaultServer, wire: HttpWire) -> None:
    server.on(
        "POST", "/v1/embeddings", SendJson({"data": [{"index": place, "embedding": [1.0]} for place in range(3)]})
    )
    server.on("POST", "/v1/embeddings", openai_chat.rate_limited(3))
    with pytest.raises(RateLimited) as caught:
        await Embeddings(wire).embed(texts(*"abcdefg"), SMALL)
    assert (caught.value.retry_after, len(server.requests)) == (3.0, 2)
    assert (caught.value.metadata["provider"], caught.value.metadata["model"]) == ("compatible", "small")
