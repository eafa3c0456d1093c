"""The provider's own SDK as the judge: it reads the same bytes, and it makes the requests that ours have to equal."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from maestro_adapter_claude.translate import Outgoing, Stream
from maestro_sdk.adapter.fold import fold
from maestro_sdk.testing.faults import FaultServer, Headers, Send

STREAMS = [path for path in sorted(Path(__file__).with_name("golden").glob("streams/*.sse")) if path.stem != "error"]


@pytest.fixture(scope="module")
def sdk() -> Any:
    # Imported late: it takes seconds, and only these tests need it.
    import anthropic

    return anthropic


@pytest.mark.parametrize("raw", [path.read_bytes() for path in STREAMS], ids=[path.stem for path in STREAMS])
async def test_the_sdk_reads_the_same_answer(raw: bytes, sdk: Any) -> None:
    async with FaultServer() as server:
        server.on("POST", "/v1/messages", Headers(200, {"content-type": "text/event-stream"}), Send(raw))
        async with sdk.AsyncAnthropic(api_key="k", base_url=server.url, max_retries=0) as client:
            turn = {"role": "user", "content": "hi"}
            async with client.messages.stream(model="claude-sonnet-5", max_tokens=9, messages=[turn]) as stream:
                theirs = await stream.get_final_message()
        asked = server.requests[0]

    answer = Stream(Outgoing({}, "claude-sonnet-5"))
    ours = fold(answer.feed(raw))
    kinds = {
        "text": "text",
        "thinking": "reasoning",
        "redacted_thinking": "reasoning",
        "tool_use": "tool_call",
        "server_tool_use": "opaque",
        "web_search_tool_result": "opaque",
    }
    blocks = [block for block in theirs.content if not (block.type == "text" and not block.text)]
    assert [part.WhichOneof("kind") for part in ours.parts] == [kinds[block.type] for block in blocks]
    for part, block in zip(ours.parts, blocks, strict=True):
        match block.type:
            case "text":
                assert part.text.text == block.text
                assert len(part.text.citations) == len(block.citations or [])
            case "thinking":
                assert (part.reasoning.text, part.provider_state.decode()) == (block.thinking, block.signature)
            case "redacted_thinking":
                assert part.provider_state.decode() == block.data
            case "tool_use":
                call = part.tool_call
                assert (call.call_id, call.name) == (block.id, block.name)
                assert json.loads(call.arguments_json) == block.input
            case _:
                assert json.loads(part.opaque.json)["type"] == block.type
    usage = theirs.usage
    written, read = usage.cache_creation_input_tokens or 0, usage.cache_read_input_tokens or 0
    assert ours.usage.input_tokens == usage.input_tokens + written + read
    assert ours.usage.output_tokens == usage.output_tokens
    assert (ours.raw_reason, ours.response_id) == (theirs.stop_reason, theirs.id)
    # The SDK shows how the provider wants to be called today.
    assert asked.headers["authorization"] == "Bearer k"
    assert asked.headers["anthropic-version"] == "2026-10-21"


async def test_the_sdk_sends_what_we_send(sdk: Any, ask: Any, provider_at: Any) -> None:
    """One conversation with tools, through both: method, path and body are the same."""
    schema = {"type": "object", "properties": {"city": {"type": "string"}}, "additionalProperties": False}
    text = {"type": "text", "text": "Weather?"}
    async with FaultServer() as server:
        server.on("POST", "/v1/messages", Headers(400), Send(b"{}"))
        async with sdk.AsyncAnthropic(api_key="k", base_url=server.url, max_retries=0) as client:
            with pytest.raises(sdk.BadRequestError):
                await client.messages.create(
                    model="claude-sonnet-5",
                    max_tokens=99,
                    system="Be brief.",
                    messages=[
                        {"role": "user", "content": [text]},
                        {
                            "role": "assistant",
                            "content": [{"type": "tool_use", "id": "t1", "name": "weather", "input": {"city": "Rome"}}],
                        },
                        {
                            "role": "user",
                            "content": [
                                {
                                    "type": "tool_result",
                                    "tool_use_id": "t1",
                                    "content": [{"type": "text", "text": "sunny"}],
                                    "is_error": True,
                                }
                            ],
                        },
                    ],
                    tools=[{"name": "weather", "input_schema": schema, "description": "d", "strict": True}],
                    tool_choice={"type": "tool", "name": "weather", "disable_parallel_tool_use": True},
                    stop_sequences=["END"],
                    thinking={"type": "adaptive"},
                    output_config={"effort": "high"},
                )
        call = {"call_id": "t1", "name": "weather", "arguments_json": '{"city":"Rome"}'}
        result = {"call_id": "t1", "parts": [{"text": {"text": "sunny"}}], "is_error": True}
        request = ask(
            system="Be brief.",
            max_tokens=99,
            messages=[
                {"role": "ROLE_USER", "parts": [{"text": {"text": "Weather?"}}]},
                {"role": "ROLE_ASSISTANT", "parts": [{"tool_call": call}]},
                {"role": "ROLE_TOOL", "parts": [{"tool_result": result}]},
            ],
            tools=[{"name": "weather", "description": "d", "input_schema": json.dumps(schema), "strict": True}],
            tool_choice={"mode": "TOOL_CHOICE_MODE_NAMED", "names": ["weather"], "parallel": False},
            stop=["END"],
            reasoning={"effort": "REASONING_EFFORT_HIGH"},
        )
        async with provider_at(server.url) as provider:
            with pytest.raises(Exception, match="HTTP 400"):
                await provider.complete(request)
        theirs, ours = server.requests
    assert (ours.method, ours.path) == (theirs.method, theirs.path)
    assert ours.json() == theirs.json()
