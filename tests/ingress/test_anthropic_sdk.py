"""The official Anthropic client, unmodified, in front of every provider: it only has another base URL."""

from collections.abc import AsyncIterator
from typing import Any

import anthropic
import pytest
import pytest_asyncio
from anthropic.types import MessageParam, ToolParam, ToolResultBlockParam

from maestro_sdk.testing import anthropic_messages, openai_chat
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.wire import Answer

from .conftest import KEY, MODELS

WEATHER: ToolParam = {
    "name": "get_weather",
    "description": "The weather of a city.",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
COUNT: list[MessageParam] = [{"role": "user", "content": "Count from 1 to 5"}]
ROOM = 500
COMPLETE: Any = {"model": "anthropic/claude-sonnet-5", "messages": COUNT, "max_tokens": ROOM}


@pytest_asyncio.fixture(loop_scope="session")
async def client(mesh: MeshProcess, provider: FaultServer) -> AsyncIterator[anthropic.AsyncAnthropic]:
    """The client as its users make it."""
    async with anthropic.AsyncAnthropic(base_url=mesh.url, api_key=KEY, max_retries=0) as made:
        yield made


def text_of(message: anthropic.types.Message) -> str:
    return "".join(block.text for block in message.content if block.type == "text")


@pytest.mark.parametrize("model", MODELS)
async def test_message(client: anthropic.AsyncAnthropic, model: str):
    answer = await client.messages.create(model=model, messages=COUNT, max_tokens=ROOM)
    assert (answer.role, answer.type, answer.stop_reason, answer.model) == ("assistant", "message", "end_turn", model)
    assert "1" in text_of(answer)
    assert "5" in text_of(answer)
    assert answer.usage.input_tokens > 0
    assert answer.usage.output_tokens > 0


@pytest.mark.parametrize("model", MODELS)
async def test_stream(client: anthropic.AsyncAnthropic, model: str):
    whole = await client.messages.create(model=model, messages=COUNT, max_tokens=ROOM)
    kinds: list[str] = []
    async with client.messages.stream(model=model, messages=COUNT, max_tokens=ROOM) as stream:
        async for event in stream:
            kinds.append(event.type)  # noqa: PERF401 - the stream is read to its end
        message = await stream.get_final_message()
    raw = [kind for kind in kinds if kind not in ("text", "thinking", "signature", "input_json")]
    assert raw[:2] == ["message_start", "content_block_start"]
    assert raw[-3:] == ["content_block_stop", "message_delta", "message_stop"]
    assert raw.count("message_start") == raw.count("message_stop") == 1
    assert text_of(message) == text_of(whole)
    assert message.stop_reason == "end_turn"
    assert message.usage.output_tokens == whole.usage.output_tokens


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("streamed", [False, True])
async def test_tools_there_and_back(client: anthropic.AsyncAnthropic, model: str, streamed: bool):
    asked: list[MessageParam] = [{"role": "user", "content": "Use get_weather for Paris"}]
    fields: Any = {"model": model, "max_tokens": ROOM, "tools": [WEATHER]}
    if streamed:
        async with client.messages.stream(messages=asked, **fields) as stream:
            first = await stream.get_final_message()
    else:
        first = await client.messages.create(messages=asked, **fields)
    assert first.stop_reason == "tool_use"
    [call] = [block for block in first.content if block.type == "tool_use"]
    assert (call.name, call.input) == ("get_weather", {"city": "Paris"})
    asked.append({"role": "assistant", "content": first.content})
    result: ToolResultBlockParam = {"type": "tool_result", "tool_use_id": call.id, "content": "21 degrees, sunny"}
    asked.append({"role": "user", "content": [result]})
    answer = await client.messages.create(messages=asked, **fields)
    assert answer.stop_reason == "end_turn"
    assert "21 degrees" in text_of(answer)


@pytest.mark.parametrize("model", MODELS)
async def test_structured_output(client: anthropic.AsyncAnthropic, model: str):
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
        "required": ["name", "age"],
        "additionalProperties": False,
    }
    answer = await client.messages.create(
        model=model,
        max_tokens=ROOM,
        messages=[{"role": "user", "content": "Invent a person."}],
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert '"age"' in text_of(answer)


@pytest.mark.parametrize("model", MODELS)
async def test_limits(client: anthropic.AsyncAnthropic, model: str):
    short = await client.messages.create(model=model, messages=COUNT, max_tokens=2)
    assert short.stop_reason == "max_tokens"
    stopped = await client.messages.create(model=model, messages=COUNT, max_tokens=ROOM, stop_sequences=["3"])
    assert "4" not in text_of(stopped)


@pytest.mark.parametrize("model", MODELS)
async def test_counting_tokens(client: anthropic.AsyncAnthropic, model: str):
    counted = await client.messages.count_tokens(model=model, messages=COUNT)
    assert counted.input_tokens > 0


@pytest.mark.parametrize("streamed", [False, True])
async def test_thinking_goes_back_byte_for_byte(
    client: anthropic.AsyncAnthropic, provider: FaultServer, streamed: bool
):
    thought = Answer(pieces=("Hello",), thoughts=("Let me", " see."), signature="c2lnbmVk+/=")
    provider.replace("POST", anthropic_messages.PATH, anthropic_messages.answer(thought))
    fields: Any = {"model": "anthropic/claude-sonnet-5", "max_tokens": 2000, "thinking": {"type": "adaptive"}}
    if streamed:
        async with client.messages.stream(messages=COUNT, **fields) as stream:
            first = await stream.get_final_message()
    else:
        first = await client.messages.create(messages=COUNT, **fields)
    assert [block.type for block in first.content] == ["thinking", "text"]
    again: list[MessageParam] = [*COUNT, {"role": "assistant", "content": first.content}, *COUNT]
    await client.messages.create(messages=again, **fields)
    sent = provider.requests[-1].json()["messages"][1]["content"]
    assert sent[0] == {"type": "thinking", "thinking": "Let me see.", "signature": "c2lnbmVk+/="}


async def test_a_cache_point_and_its_time_reach_the_provider(client: anthropic.AsyncAnthropic, provider: FaultServer):
    await client.messages.create(
        model="anthropic/claude-sonnet-5",
        max_tokens=ROOM,
        system=[{"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}}],
        messages=COUNT,
        metadata={"user_id": "u-1"},
        extra_body={"top_k": 5},
    )
    sent = provider.requests[-1].json()
    assert sent["system"][0]["cache_control"] == {"type": "ephemeral", "ttl": "1h"}
    assert sent["top_k"] == 5


@pytest.mark.parametrize(
    ("fields", "kind", "words"),
    [
        ({"model": "anthropic/no-such"}, anthropic.NotFoundError, "no model or route"),
        ({"temperature": "hot"}, anthropic.BadRequestError, "temperature: must be a number"),
        ({"max_tokens": 0}, anthropic.BadRequestError, "max_tokens: must be between"),
        ({"messages": []}, anthropic.BadRequestError, "messages: must hold at least one"),
        ({"messages": [{"role": "poet", "content": "x"}]}, anthropic.BadRequestError, "messages[0].role"),
        ({"tools": [{"type": "web_search_20250305", "name": "x"}]}, anthropic.BadRequestError, "tools[0].type"),
        ({"tool_choice": {"type": "all"}}, anthropic.BadRequestError, "tool_choice.type: must be one of"),
        ({"thinking": {"type": "deep"}}, anthropic.BadRequestError, "thinking.type"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {"type": "moon"}}]}]},
            anthropic.BadRequestError,
            "messages[0].content[0].source.type",
        ),
        (
            {
                "messages": [
                    *COUNT,
                    {"role": "assistant", "content": [{"type": "redacted_thinking", "data": "maestro1.%%"}]},
                ]
            },
            anthropic.BadRequestError,
            "messages[1].content[0].data: was altered",
        ),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
async def test_bad_input_is_told_with_its_place_and_costs_nothing(
    client: anthropic.AsyncAnthropic,
    provider: FaultServer,
    fields: dict[str, Any],
    kind: type[anthropic.APIStatusError],
    words: str,
    stream: bool,
):
    # The client's own checks are passed over: other clients have none.
    body: Any = {"model": "anthropic/claude-sonnet-5", "messages": COUNT, "max_tokens": ROOM, **fields}
    before = len(provider.requests)
    with pytest.raises(kind) as raised:
        await client.messages.create(**COMPLETE, extra_body=body, stream=stream)
    assert words in raised.value.message
    assert raised.value.request_id
    assert len(provider.requests) == before


@pytest.mark.parametrize(
    ("status", "model", "kind"),
    [
        (400, "anthropic/claude-sonnet-5", anthropic.BadRequestError),
        # A model of its own: it is left alone for as long as the provider asks.
        (429, "anthropic/claude-opus-5-5", anthropic.RateLimitError),
        (500, "anthropic/claude-sonnet-5", anthropic.InternalServerError),
        (529, "anthropic/claude-sonnet-5", anthropic.InternalServerError),
    ],
)
async def test_errors_of_providers_keep_their_class(
    client: anthropic.AsyncAnthropic,
    provider: FaultServer,
    status: int,
    model: str,
    kind: type[anthropic.APIStatusError],
):
    hint = {"retry-after": "7"} if status == 429 else {}
    provider.replace("POST", anthropic_messages.PATH, anthropic_messages.error(status, headers=hint))
    with pytest.raises(kind) as raised:
        await client.messages.create(model=model, messages=COUNT, max_tokens=ROOM)
    assert raised.value.status_code == (503 if status == 500 else status)
    if status == 429:
        assert raised.value.response.headers["retry-after"] == "7"


async def test_an_error_after_content_is_raised_by_the_stream(client: anthropic.AsyncAnthropic, provider: FaultServer):
    provider.replace("POST", openai_chat.PATH, openai_chat.cut_after(2))
    seen: list[str] = []
    with pytest.raises(anthropic.APIStatusError) as raised:
        async with client.messages.stream(model="second", messages=COUNT, max_tokens=ROOM) as stream:
            async for text in stream.text_stream:
                seen += [text]
    assert "".join(seen)
    assert "cut" in raised.value.message


async def test_a_wrong_key_is_an_authentication_error(mesh: MeshProcess, provider: FaultServer):
    async with anthropic.AsyncAnthropic(base_url=mesh.url, api_key="mk-wrong", max_retries=0) as stranger:
        with pytest.raises(anthropic.AuthenticationError) as raised:
            await stranger.messages.create(model="default", messages=COUNT, max_tokens=ROOM)
    assert "key" in raised.value.message


async def test_another_version_is_refused(mesh: MeshProcess, provider: FaultServer):
    old = {"anthropic-version": "2023-01-01"}
    async with anthropic.AsyncAnthropic(base_url=mesh.url, api_key=KEY, max_retries=0, default_headers=old) as client:
        with pytest.raises(anthropic.BadRequestError) as raised:
            await client.messages.create(model="default", messages=COUNT, max_tokens=ROOM)
    assert "2023-06-01" in raised.value.message
