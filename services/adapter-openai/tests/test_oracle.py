"""The official SDK reads the same recorded streams: what it understands is what the adapter tells."""

from __future__ import annotations

import json
from pathlib import Path

import openai
import pytest
from openai.types.chat import ChatCompletionChunk

from maestro.llm.v1.chat_pb2 import ChatResponse
from maestro.llm.v1.embedding_pb2 import EmbedRequest
from maestro_adapter_openai.translate import OPENAI, Stream
from maestro_sdk.adapter.fold import fold
from maestro_sdk.testing import openai_chat as scripts
from maestro_sdk.testing.faults import FaultServer, Headers, Send

GOLDEN = Path(__file__).with_name("golden")
STREAMS = {path.stem: path.read_bytes() for path in sorted(GOLDEN.glob("streams/*.sse"))}
SENT = json.loads((GOLDEN / "requests/text.wire.json").read_text(encoding="utf-8"))["body"]


async def read_by_sdk(data: bytes) -> list[ChatCompletionChunk]:
    async with FaultServer() as server:
        server.on("POST", scripts.PATH, Headers(200, {"content-type": "text/event-stream"}), Send(data))
        async with openai.AsyncOpenAI(api_key="sk-test", base_url=f"{server.url}/v1", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="gpt-4.1", messages=[{"role": "user", "content": "hi"}], stream=True
            )
            return [chunk async for chunk in stream]


def read_by_adapter(data: bytes) -> ChatResponse:
    stream = Stream(OPENAI, "gpt-4.1")
    return fold([*stream.feed(data), *stream.end()])


@pytest.mark.parametrize("name", STREAMS)
async def test_same_as_the_sdk(name: str) -> None:
    data = STREAMS[name]
    chunks = await read_by_sdk(data)
    response = read_by_adapter(data)
    choices = [choice for chunk in chunks for choice in chunk.choices]

    text = "".join(choice.delta.content or "" for choice in choices)
    assert "".join(part.text.text for part in response.parts) == text
    refusal = "".join(choice.delta.refusal or "" for choice in choices)
    assert "".join(part.refusal.text for part in response.parts) == refusal
    thought = "".join((choice.delta.model_extra or {}).get("reasoning") or "" for choice in choices)
    assert "".join(part.reasoning.text for part in response.parts) == thought

    calls: dict[int, list[str]] = {}
    for delta in (delta for choice in choices for delta in choice.delta.tool_calls or ()):
        call = calls.setdefault(delta.index, ["", "", ""])
        call[0] += delta.id or ""
        if delta.function is not None:
            call[1] += delta.function.name or ""
            call[2] += delta.function.arguments or ""
    told = [part.tool_call for part in response.parts if part.HasField("tool_call")]
    assert [[call.call_id, call.name, call.arguments_json] for call in told] == [
        calls[index] for index in sorted(calls)
    ]

    tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content or ()]
    mine = [token for part in response.parts for token in part.text.logprobs]
    assert [(token.token, token.logprob, bytes(token.bytes or ())) for token in tokens] == [
        (token.token, token.logprob, token.utf8) for token in mine
    ]
    assert [[top.token for top in token.top_logprobs] for token in tokens] == [
        [top.token for top in token.top] for token in mine
    ]

    assert response.raw_reason == next(choice.finish_reason for choice in reversed(choices) if choice.finish_reason)
    assert response.response_id == next(chunk.id for chunk in chunks if chunk.id)
    usage = next((chunk.usage for chunk in reversed(chunks) if chunk.usage), None)
    if usage is None:
        assert response.usage.input_tokens == response.usage.output_tokens == 0
        return
    assert (response.usage.input_tokens, response.usage.output_tokens) == (usage.prompt_tokens, usage.completion_tokens)
    if usage.prompt_tokens_details is not None:
        assert response.usage.cache_read_tokens == usage.prompt_tokens_details.cached_tokens
    if usage.completion_tokens_details is not None:
        assert response.usage.reasoning_tokens == usage.completion_tokens_details.reasoning_tokens


async def test_the_sdk_would_send_the_same() -> None:
    """The SDK's own request and ours, for the same wish, are the same JSON."""
    async with FaultServer() as server:
        server.on("POST", scripts.PATH, scripts.text())
        async with openai.AsyncOpenAI(api_key="sk-test", base_url=f"{server.url}/v1", max_retries=0) as client:
            stream = await client.chat.completions.create(
                model="gpt-4.1",
                messages=[
                    {"role": "system", "content": "Be brief."},
                    {"role": "user", "content": "What is the capital of France?"},
                ],
                stream=True,
                stream_options={"include_usage": True, "include_obfuscation": False},
            )
            assert [chunk async for chunk in stream]
        assert server.requests[0].json() == SENT


async def test_embeddings_are_those_that_the_sdk_would_get() -> None:
    """The same bytes go out, and the same vectors are read, base64 or not."""
    from maestro_adapter_openai.translate import OPENAI_EMBEDDINGS
    from maestro_sdk.adapter.openai_embeddings import read, to_wire
    from maestro_sdk.testing.openai_auxiliary import OpenAIAuxiliary

    request = EmbedRequest(model="openai/text-embedding-3-small", dimensions=8)
    request.inputs.add(text="one")
    request.inputs.add(text="two")
    ours = to_wire(request, OPENAI_EMBEDDINGS).bodies[0]
    async with FaultServer() as server:
        OpenAIAuxiliary(server)
        async with openai.AsyncOpenAI(api_key="sk-test", base_url=f"{server.url}/v1", max_retries=0) as client:
            theirs = await client.embeddings.create(model="text-embedding-3-small", input=["one", "two"], dimensions=8)
            assert server.requests[0].json() == ours
            for form in ("base64", "float"):
                raw = await client.embeddings.with_raw_response.create(
                    model="text-embedding-3-small", input=["one", "two"], dimensions=8, encoding_format=form
                )
                mine = read(raw.content, OPENAI_EMBEDDINGS, 2)
                assert [list(vector) for vector in mine.vectors] == [
                    pytest.approx(entry.embedding) for entry in theirs.data
                ]
