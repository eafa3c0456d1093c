"""AWS's own SDK as the judge: it makes the requests that ours have to equal, and reads the streams that ours reads."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_adapter_bedrock.translate import Outgoing, Stream, to_error
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import MaestroError
from maestro_sdk.testing import bedrock_converse as wire
from maestro_sdk.testing.bedrock_converse import event, exception
from maestro_sdk.testing.faults import FaultServer, Headers, Send
from maestro_sdk.testing.golden import plain
from maestro_sdk.testing.wire import Answer, ToolCall

GOLDEN = Path(__file__).with_name("golden")
REQUESTS = sorted(GOLDEN.glob("requests/*.request.json"))
STREAMS = sorted(GOLDEN.glob("streams/*.jsonl"))
MODEL = "anthropic.claude-sonnet-4-5-20250929-v1:0"
OUTGOING = Outgoing({}, MODEL, "/model/x", MODEL, tool_names={"time_now": "time.now"})


@pytest.fixture
def client_at() -> Iterator[Any]:
    # Imported late: it takes a while, and only these tests need it.
    import boto3
    from botocore.config import Config

    with ExitStack() as clients:

        def make(url: str) -> Any:
            client: Any = boto3.client(
                "bedrock-runtime",
                region_name="us-east-1",
                endpoint_url=url,
                aws_access_key_id="AKIDEXAMPLE",
                aws_secret_access_key="a/secret+key",
                aws_session_token="a-session-token",
                config=Config(retries={"total_max_attempts": 1}),
            )
            # Its connections would be left to the garbage collector, which tells that of some other test.
            clients.callback(client.close)
            return client

        yield make


def read_request(name: str) -> ChatRequest:
    """A golden conversation."""
    text = (GOLDEN / "requests" / f"{name}.request.json").read_text(encoding="utf-8")
    return ParseDict(json.loads(text), ChatRequest())


def read_stream(name: str) -> bytes:
    """A recorded stream, framed as on the wire."""
    raw = b""
    for line in (GOLDEN / "streams" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        ((kind, payload),) = json.loads(line).items()
        prefix, _, word = kind.rpartition(":")
        raw += exception(word, payload) if prefix == "exception" else event(kind, payload)
    return raw


def as_theirs(value: Any) -> Any:
    """The wire's JSON as arguments of the SDK, which encodes blobs itself."""
    import base64

    match value:
        case {"bytes": str(data)}:
            return {"bytes": base64.b64decode(data)}
        case {"redactedContent": str(data)}:
            return {"redactedContent": base64.b64decode(data)}
        case dict():
            return {name: as_theirs(inner) for name, inner in value.items()}
        case list():
            return [as_theirs(inner) for inner in value]
        case _:
            return value


@pytest.mark.parametrize("name", [path.name.removesuffix(".request.json") for path in REQUESTS])
async def test_it_sends_what_we_send(name: str, client_at: Any, provider_at: Any) -> None:
    """Each golden conversation, through both: path, headers and body are the same, so its own validation passes too."""
    request = read_request(name)
    if name == "thinking":
        # Its state is no base64, to see that it is not touched.
        request.messages[1].parts[2].provider_state = b"cmVkYWN0ZWQ="
    async with FaultServer() as server:
        server.on("POST", wire.PATH, wire.text())
        async with provider_at(server.url, models=[{"name": "mine"}]) as provider:
            await provider.complete(request)
            found = provider._models[request.model]
        ours = server.requests[0]
        client = client_at(server.url)
        await asyncio.to_thread(client.converse, modelId=found.model_id, **as_theirs(plain(ours.json())))
        theirs = server.requests[1]
    assert (ours.method, ours.path) == (theirs.method, theirs.path)
    assert ours.json() == theirs.json()
    assert ours.headers["content-type"] == theirs.headers["content-type"]
    kind = ours.headers["authorization"].partition("Signature=")[0]
    assert kind == theirs.headers["authorization"].partition("Signature=")[0]


@pytest.mark.parametrize("name", [path.stem for path in STREAMS])
async def test_it_reads_the_same_stream(name: str, client_at: Any) -> None:
    from botocore.exceptions import EventStreamError

    raw = read_stream(name)

    def read(url: str) -> tuple[list[Any], Exception | None]:
        answer = client_at(url).converse_stream(modelId=MODEL, messages=[{"role": "user", "content": [{"text": "hi"}]}])
        events: list[Any] = []
        with closing(answer["stream"]) as stream:
            try:
                events.extend(stream)
            except EventStreamError as error:
                return events, error
        return events, None

    async with FaultServer() as server:
        head = Headers(200, {"content-type": "application/vnd.amazon.eventstream"})
        server.on("POST", wire.PATH, head, Send(raw))
        theirs, failure = await asyncio.to_thread(read, server.url)
    stream = Stream(OUTGOING, "r")
    ours = stream.feed(raw)
    text = "".join(
        found["contentBlockDelta"]["delta"].get("text", "") for found in theirs if "contentBlockDelta" in found
    )
    assert "".join(made.text.text for made in ours) == text
    calls = [found["contentBlockStart"]["start"] for found in theirs if "contentBlockStart" in found]
    named = [start["toolUse"]["toolUseId"] for start in calls if "toolUse" in start and "type" not in start["toolUse"]]
    assert [made.tool_call.call_id for made in ours if made.tool_call.call_id] == named
    if isinstance(failure, EventStreamError):
        assert stream.failure is not None
        assert failure.response["Error"]["Code"] in stream.failure.metadata["upstream_code"].replace("Model", "model")
        return
    try:
        ours += stream.end()
    except MaestroError:
        assert not any("messageStop" in found for found in theirs)
        return
    answer = fold(ours)
    (stop,) = [found["messageStop"]["stopReason"] for found in theirs if "messageStop" in found]
    assert answer.raw_reason == stop
    for found in theirs:
        if "metadata" in found:
            usage = found["metadata"]["usage"]
            cached = usage.get("cacheReadInputTokens", 0) + usage.get("cacheWriteInputTokens", 0)
            assert answer.usage.input_tokens == usage["inputTokens"] + cached
            assert answer.usage.output_tokens == usage["outputTokens"]


async def test_it_reads_what_the_test_server_says(client_at: Any) -> None:
    """The scripts that the other tests stand on are the real wire: reasoning, text and interleaved calls."""
    script = Answer(
        pieces=("I", " look."),
        thoughts=("Let me",),
        signature="c2ln",
        calls=(ToolCall("t1", "weather", '{"city":"Paris"}'), ToolCall("t2", "clock", "{}")),
        interleaved=True,
    )

    def read(url: str) -> tuple[list[Any], Any]:
        turn = {"role": "user", "content": [{"text": "hi"}]}
        client = client_at(url)
        streamed = client.converse_stream(modelId=MODEL, messages=[turn])
        return list(streamed["stream"]), client.converse(modelId=MODEL, messages=[turn])

    async with FaultServer() as server:
        server.on("POST", wire.PATH, wire.answer(script))
        streamed, whole = await asyncio.to_thread(read, server.url)
    kinds = [next(iter(found)) for found in streamed]
    assert (kinds[0], kinds[-2:]) == ("messageStart", ["messageStop", "metadata"])
    pieces = [found["contentBlockDelta"]["delta"] for found in streamed if "contentBlockDelta" in found]
    assert "".join(piece.get("text", "") for piece in pieces) == "I look."
    assert [next(iter(block)) for block in whole["output"]["message"]["content"]] == [
        "reasoningContent",
        "text",
        "toolUse",
        "toolUse",
    ]
    assert whole["stopReason"] == "tool_use"


@pytest.mark.parametrize("kind", ["AccessDeniedException", "ThrottlingException", "ValidationException"])
async def test_it_reads_the_same_errors(kind: str, client_at: Any) -> None:
    from botocore.exceptions import ClientError

    def ask(url: str) -> ClientError:
        with pytest.raises(ClientError) as caught:
            client_at(url).converse(modelId=MODEL, messages=[{"role": "user", "content": [{"text": "hi"}]}])
        return caught.value

    async with FaultServer() as server:
        server.on("POST", wire.PATH, wire.error(429, kind, "no such luck"))
        theirs = await asyncio.to_thread(ask, server.url)
    headers = {"x-amzn-errortype": f"{kind}:http://internal.amazon.com/coral/"}
    ours = to_error(429, b'{"message":"no such luck"}', headers)
    assert theirs.response["Error"] == {"Code": kind, "Message": "no such luck"}
    assert ours.metadata["upstream_code"] == kind
    assert "no such luck" in ours.message
