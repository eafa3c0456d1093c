"""Answers of the provider with one value wrong: each is an answer still, or an error of the contract, and arrives."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from maestro.llm.v1.chat_pb2 import ChatEvent
from maestro_adapter_vertex.batch_wire import read_results, to_batch
from maestro_adapter_vertex.embedding import EmbedCalls, Vectors, read_vectors, to_response
from maestro_adapter_vertex.failure import to_error
from maestro_adapter_vertex.translate import Outgoing, Stream, to_events
from maestro_sdk.errors import MaestroError, StreamBroken
from maestro_sdk.testing.faults import FaultServer, Send
from maestro_sdk.testing.spoiled import spoil

STREAMS = Path(__file__).with_name("golden") / "streams"
OUTGOING = Outgoing({}, "gemini-3.5-flash")
PREDICTED = {
    "predictions": [{"embeddings": {"values": [1.0, 2.0], "statistics": {"token_count": 3}}}],
    "metadata": {"billableCharacterCount": 4},
}
EMBEDDED = {"embedding": {"values": [1.0, 2.0]}, "usageMetadata": {"promptTokenCount": 4}}
JOB = {
    "name": "projects/1/locations/global/batchPredictionJobs/5",
    "displayName": "x",
    "model": "publishers/google/models/gemini-2.5-flash",
    "state": "JOB_STATE_FAILED",
    "labels": {"maestro-items": "3", "a": "b"},
    "completionStats": {"successfulCount": "1", "failedCount": "0"},
    "createTime": "2026-01-01T00:00:00Z",
    "endTime": "2026-01-01T00:00:00Z",
    "error": {"code": 3, "message": "x"},
    "inputConfig": {"gcsSource": {"uris": ["gs://a/b"]}},
    "outputInfo": {"gcsOutputDirectory": "gs://a"},
}
ANSWER = {
    "candidates": [{"content": {"parts": [{"text": "a"}]}, "finishReason": "STOP"}],
    "usageMetadata": {"promptTokenCount": 1},
}
REFUSAL = {
    "code": 429,
    "message": "x",
    "status": "RESOURCE_EXHAUSTED",
    "details": [
        {"@type": "a/google.rpc.RetryInfo", "retryDelay": "3s"},
        {"@type": "a/google.rpc.QuotaFailure", "violations": [{"quotaId": "x"}]},
        {"@type": "a/google.rpc.ErrorInfo", "reason": "x", "metadata": {"quota_limit": "a"}},
    ],
}


def dump(document: Any) -> bytes:
    return json.dumps(document).encode()


def arrive(events: Sequence[ChatEvent]) -> None:
    for event in events:
        assert ChatEvent.FromString(event.SerializeToString()) == event


def read_stream(frames: Sequence[Any]) -> None:
    stream = Stream(OUTGOING)
    for frame in frames:
        arrive(stream.feed(b"data: " + dump(frame) + b"\n\n"))
    arrive(stream.end())


def embed(method: str, document: Any) -> None:
    vectors = Vectors()
    read_vectors(method, dump(document), vectors, 1)
    to_response(EmbedCalls(method, [{}], [1], normalize=True), vectors)


@pytest.mark.parametrize("name", [path.stem for path in sorted(STREAMS.glob("*.sse"))])
def test_streams(name: str) -> None:
    lines = (STREAMS / f"{name}.sse").read_bytes().splitlines()
    frames = [orjson.loads(line[5:]) for line in lines if line.startswith(b"data:")]
    refused = 0
    for number, frame in enumerate(frames):
        for broken in spoil(frame):
            try:
                read_stream([*frames[:number], broken, *frames[number + 1 :]])
            except MaestroError:
                refused += 1
    assert refused
    for broken in spoil(frames[-1]):
        with suppress(MaestroError):
            arrive(to_events(dump(broken), OUTGOING))


@pytest.mark.parametrize(
    ("document", "read"),
    [
        (PREDICTED, lambda found: embed("predict", found)),
        (EMBEDDED, lambda found: embed("embedContent", found)),
        (JOB, to_batch),
        ({"key": "a", "status": "", "response": ANSWER}, lambda found: read_results(dump(found), "gemini-2.5-flash")),
        ({"key": "a", "status": REFUSAL}, lambda found: read_results(dump(found), "gemini-2.5-flash")),
        ({"error": REFUSAL}, lambda found: str(to_error(429, dump(found), {}))),
    ],
    ids=["predict", "embedContent", "job", "result", "failed", "error"],
)
def test_documents(document: Any, read: Callable[[Any], Any]) -> None:
    read(document)
    # Whatever is wrong in it is read all the same, or told as an error of the contract: nothing else comes out.
    strange: list[str] = []
    for broken in spoil(document):
        try:
            read(broken)
        except MaestroError:
            pass
        except Exception as error:  # noqa: BLE001 - the list of all of them is the point
            strange.append(f"{broken!r}: {error!r}")
    assert not strange


@pytest.mark.parametrize("content", ["{}", "null", '{"totalTokens": -5}', '{"totalTokens": 1e30}', "<html>"])
async def test_a_count_that_is_none(content: str, ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", "*", Send(content.encode()))
        with pytest.raises(StreamBroken, match="count"):
            await provider.count_tokens(ask())


def test_vectors_are_those_of_their_own_call() -> None:
    """Too few in one call and too many in another would be as many as there are texts."""
    for count in (0, 2):
        with pytest.raises(StreamBroken, match=f"{count} texts in a call"):
            read_vectors("predict", dump(PREDICTED), Vectors(), count)
