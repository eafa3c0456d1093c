"""Answers of the provider with one value wrong: each is an answer still, or an error of the contract, and arrives."""

from __future__ import annotations

import datetime
import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import orjson
import pytest

from maestro.llm.v1.batch_pb2 import ListBatchesRequest
from maestro.llm.v1.chat_pb2 import ChatEvent
from maestro_adapter_bedrock.answer import Stream, to_events
from maestro_adapter_bedrock.embedding import EmbedPlan, join_vectors, to_vectors
from maestro_adapter_bedrock.failure import to_error
from maestro_adapter_bedrock.records import to_batch, to_result
from maestro_adapter_bedrock.request import Outgoing
from maestro_sdk.errors import MaestroError, StreamBroken
from maestro_sdk.testing.bedrock_converse import event
from maestro_sdk.testing.faults import FaultServer, Send
from maestro_sdk.testing.spoiled import WRONG, spoil

STREAMS = Path(__file__).with_name("golden") / "streams"
OUTGOING = Outgoing({}, "m", "/model/m", "anthropic.m")
CITED = {
    "content": [{"text": "x"}],
    "citations": [
        {"title": "t", "location": {"documentChar": {"start": 1, "end": 2}}, "sourceContent": [{"text": "a"}]}
    ],
}
CONTENT = [
    {"text": "hi"},
    {"toolUse": {"toolUseId": "a", "name": "b", "input": {"x": 1}}},
    {"reasoningContent": {"reasoningText": {"text": "t", "signature": "s"}}},
    {"citationsContent": CITED},
]
ANSWER = {
    "output": {"message": {"role": "assistant", "content": CONTENT}},
    "stopReason": "end_turn",
    "usage": {
        "inputTokens": 1,
        "outputTokens": 2,
        "cacheReadInputTokens": 1,
        "cacheDetails": [{"ttl": "1h", "inputTokens": 3}],
    },
    "trace": {"a": 1},
    "additionalModelResponseFields": {"stop_sequence": "x"},
}
JOB = {
    "jobArn": "arn:aws:bedrock:us-east-1:123456789012:model-invocation-job/x",
    "jobName": "a-b",
    "status": "Completed",
    "totalRecordCount": 3,
    "submitTime": datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC),
}


def dump(document: Any) -> bytes:
    return json.dumps(document).encode()


def arrive(events: Sequence[ChatEvent]) -> None:
    for made in events:
        assert ChatEvent.FromString(made.SerializeToString()) == made


def read_stream(messages: Sequence[tuple[str, Any]]) -> None:
    stream = Stream(OUTGOING, "r")
    for kind, payload in messages:
        arrive(stream.feed(event(kind, dump(payload))))
    arrive(stream.end())


def embed(document: Any) -> None:
    join_vectors([to_vectors(dump(document), 1, {})], EmbedPlan("", (), ()), "r")


@pytest.mark.parametrize("name", [path.stem for path in sorted(STREAMS.glob("*.jsonl"))])
def test_streams(name: str) -> None:
    lines = (STREAMS / f"{name}.jsonl").read_bytes().splitlines()
    messages: list[tuple[str, Any]] = [next(iter(orjson.loads(line).items())) for line in lines]
    refused = 0
    for number, (kind, payload) in enumerate(messages):
        for broken in spoil(payload):
            try:
                read_stream([*messages[:number], (kind, broken), *messages[number + 1 :]])
            except MaestroError:
                refused += 1
    assert refused


@pytest.mark.parametrize(
    ("document", "read"),
    [
        (ANSWER, lambda found: arrive(to_events(dump(found), OUTGOING))),
        ({"embedding": [1.0, 2.0], "inputTextTokenCount": 3}, embed),
        ({"embeddings": {"float": [[1.0, 2.0]]}}, embed),
        (
            {"__type": "a#ThrottlingException:", "message": "x", "originalStatusCode": 429, "originalMessage": "t"},
            lambda found: str(to_error(429, dump(found), {})),
        ),
    ],
    ids=["answer", "titan", "cohere", "error"],
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


@pytest.mark.parametrize(
    "record",
    [{"recordId": "a", "modelOutput": ANSWER}, {"recordId": "a", "error": {"errorCode": 400, "errorMessage": "x"}}],
    ids=["answer", "error"],
)
def test_records(record: Any) -> None:
    assert to_result(record, OUTGOING, "b/x").item_id == "a"
    for broken in spoil(record):
        # What is no object was refused before.
        if isinstance(broken, dict):
            with suppress(MaestroError):
                to_result(broken, OUTGOING, "b/x")


def test_jobs() -> None:
    assert to_batch(JOB, "m").counts.total == 3
    for name in JOB:
        for value in WRONG:
            with suppress(MaestroError):
                to_batch({**JOB, name: value}, "m")


@pytest.mark.parametrize("content", ["{}", "null", '{"inputTokens": -5}', '{"inputTokens": 1e30}', "<html>"])
async def test_a_count_that_is_none(content: str, ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", "*", Send(content.encode()))
        with pytest.raises(StreamBroken, match="count"):
            await provider.count_tokens(ask())


@pytest.mark.parametrize("content", ["null", "[]", '{"invocationJobSummaries": 5}', '{"invocationJobSummaries": [{}]}'])
async def test_lists_that_are_none(content: str, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url, control_url=server.url) as provider:
        server.on("GET", "*", Send(content.encode()))
        with pytest.raises(StreamBroken, match="can't be read"):
            await provider.list_batches(ListBatchesRequest())
