"""The provider's own SDK as the judge: it reads the same bytes, and it makes the requests that ours have to equal."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Literal

import pytest

from maestro_adapter_vertex.translate import Outgoing, Stream, to_events
from maestro_sdk.adapter.fold import fold
from maestro_sdk.testing.faults import FaultServer, Headers, Send, SendJson

STREAMS = [
    path
    for path in sorted(Path(__file__).with_name("golden").glob("streams/*.sse"))
    if path.stem not in {"blocked", "error"}
]
BLOCKED = Path(__file__).with_name("golden") / "streams/blocked.sse"
MODELS = "/v1/projects/p1/locations/global/publishers/google/models"
PNG = b"\x89PNG"


class Sdk:
    """The SDK, and a client of it at the test's server."""

    def __init__(self, client: Any, types: Any, errors: Any) -> None:
        self.client = client
        self.types = types
        self.errors = errors


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with FaultServer() as running:
        yield running


@pytest.fixture
async def sdk(server: FaultServer) -> AsyncIterator[Sdk]:
    # Imported late: it takes seconds, and only these tests need it.
    import httpx2
    from google.auth.credentials import Credentials
    from google.genai import Client, errors, types

    class Fixed(Credentials):
        """Never expires and asks nobody."""

        def __init__(self) -> None:
            super().__init__()
            self.token = "ya29.test-token"

        @property
        def valid(self) -> bool:
            return True

        @property
        def expired(self) -> Literal[False]:
            return False

        def refresh(self, request: object) -> None:
            raise AssertionError("the token is good")

    # Pinned: with aiohttp at hand the SDK would take that, with other timeouts and a retry of its own.
    async with httpx2.AsyncClient() as http:
        options = types.HttpOptions(
            base_url=server.url,
            api_version="v1",
            httpx_async_client=http,
            retry_options=types.HttpRetryOptions(attempts=1),
        )
        fixed = Fixed()
        client = Client(enterprise=True, project="p1", location="global", credentials=fixed, http_options=options)
        yield Sdk(client.aio, types, errors)
        await client.aio.aclose()


def off(types: Any) -> dict[str, Any]:
    """What the SDK would do on its own."""
    return {
        "automatic_function_calling": types.AutomaticFunctionCallingConfig(disable=True),
        "automatic_continuation": False,
    }


@pytest.mark.parametrize("raw", [path.read_bytes() for path in STREAMS], ids=[path.stem for path in STREAMS])
async def test_the_sdk_reads_the_same_answer(raw: bytes, sdk: Sdk, server: FaultServer) -> None:
    server.on("POST", "*", Headers(200, {"content-type": "text/event-stream"}), Send(raw))
    config = sdk.types.GenerateContentConfig(**off(sdk.types))
    stream = await sdk.client.models.generate_content_stream(model="gemini-3.5-flash", contents="hi", config=config)
    chunks = [chunk async for chunk in stream]
    asked = server.requests[0]
    # The SDK shows how the provider wants to be called today.
    assert (
        asked.path == "/v1/projects/p1/locations/global/publishers/google/models/gemini-3.5-flash:streamGenerateContent"
    )
    assert (asked.query, asked.headers["authorization"]) == ("alt=sse", "Bearer ya29.test-token")

    answer = Stream(Outgoing({}, "gemini-3.5-flash"))
    ours = fold([*answer.feed(raw), *answer.end()])
    theirs = [part for chunk in chunks for one in chunk.candidates or [] for part in (one.content.parts or [])]
    texts = [
        "".join(part.text for part in theirs if part.text and bool(part.thought) is thought)
        for thought in (False, True)
    ]
    assert "".join(part.text.text for part in ours.parts) == texts[0]
    assert "".join(part.reasoning.text for part in ours.parts) == texts[1]
    signatures = [part.thought_signature for part in theirs if part.thought_signature]
    assert [base64.b64decode(part.provider_state) for part in ours.parts if part.provider_state] == signatures
    called = [part.function_call for part in theirs if part.function_call and part.function_call.name]
    calls = [part.tool_call for part in ours.parts if part.HasField("tool_call")]
    assert [call.name for call in calls] == [call.name for call in called]
    for call, their in zip(calls, called, strict=True):
        assert their.id is None or call.call_id == their.id
        if not their.will_continue:
            assert json.loads(call.arguments_json) == (their.args or {})
    reasons = [one.finish_reason.value for chunk in chunks for one in chunk.candidates or [] if one.finish_reason]
    assert ours.raw_reason == reasons[-1]
    used = chunks[-1].usage_metadata
    assert ours.usage.input_tokens == (used.prompt_token_count or 0) + (used.tool_use_prompt_token_count or 0)
    assert ours.usage.output_tokens == (used.candidates_token_count or 0) + (used.thoughts_token_count or 0)
    assert ours.usage.cache_read_tokens == (used.cached_content_token_count or 0)
    assert ours.response_id == chunks[0].response_id


async def test_the_sdk_sees_a_blocked_prompt_too(sdk: Sdk, server: FaultServer) -> None:
    raw = BLOCKED.read_bytes().removeprefix(b"data: ")
    server.on("POST", "*", Headers(200, {"content-type": "application/json"}), Send(raw))
    config = sdk.types.GenerateContentConfig(**off(sdk.types))
    theirs = await sdk.client.models.generate_content(model="gemini-3.5-flash", contents="hi", config=config)
    assert not theirs.candidates
    with pytest.raises(Exception, match="not allowed") as caught:
        to_events(raw, Outgoing({}, "gemini-3.5-flash"))
    assert getattr(caught.value, "metadata", {})["upstream_code"] == theirs.prompt_feedback.block_reason.value


async def test_the_sdk_sends_what_we_send(sdk: Sdk, server: FaultServer, ask: Any, provider_at: Any) -> None:
    """One conversation with everything, through both: method, path, query and body are the same."""
    types = sdk.types
    server.on(
        "POST", "*", Headers(400), SendJson({"error": {"code": 400, "message": "no", "status": "INVALID_ARGUMENT"}})
    )
    schema = {
        "type": "object",
        "properties": {"city": {"type": "string"}, "days": {"type": ["integer", "null"], "minimum": 1}},
        "required": ["city"],
    }
    signature = b"\xfb\xff signature"
    contents = [
        types.Content(
            role="user",
            parts=[
                types.Part(text="Weather?"),
                types.Part(inline_data=types.Blob(mime_type="image/png", data=PNG)),
                types.Part(file_data=types.FileData(mime_type="application/pdf", file_uri="gs://b/r.pdf")),
            ],
        ),
        types.Content(
            role="model",
            parts=[
                types.Part(
                    function_call=types.FunctionCall(id="f1", name="weather", args={"city": "Rome"}),
                    thought_signature=signature,
                )
            ],
        ),
        types.Content(
            role="user",
            parts=[
                types.Part(
                    function_response=types.FunctionResponse(id="f1", name="weather", response={"error": "no idea"})
                )
            ],
        ),
    ]
    declaration = types.FunctionDeclaration(
        name="weather",
        description="d",
        parameters=types.Schema(
            type="OBJECT",
            properties={
                "city": types.Schema(type="STRING"),
                "days": types.Schema(type="INTEGER", nullable=True, minimum=1),
            },
            required=["city"],
        ),
    )
    calling = types.FunctionCallingConfig(mode="ANY", allowed_function_names=["weather"])
    config = types.GenerateContentConfig(
        system_instruction=types.Content(parts=[types.Part(text="Be brief.")]),
        temperature=0.5,
        top_p=0.9,
        max_output_tokens=99,
        stop_sequences=["END"],
        seed=7,
        response_mime_type="application/json",
        response_json_schema=schema,
        tools=[types.Tool(function_declarations=[declaration])],
        tool_config=types.ToolConfig(function_calling_config=calling),
        thinking_config=types.ThinkingConfig(include_thoughts=True, thinking_level="HIGH"),
        safety_settings=[types.SafetySetting(category="HARM_CATEGORY_HARASSMENT", threshold="BLOCK_NONE")],
        **off(types),
    )
    with pytest.raises(sdk.errors.ClientError):
        await sdk.client.models.generate_content(model="gemini-3.5-flash", contents=contents, config=config)
    with pytest.raises(sdk.errors.ClientError):
        async for _ in await sdk.client.models.generate_content_stream(
            model="gemini-3.5-flash", contents=contents, config=config
        ):
            pass

    origin = {"provider": "vertex", "api": "generateContent", "model": "gemini-3.5-flash"}
    # The SDK writes signatures with the letters that are safe in addresses; the state keeps whatever the wire had.
    state = base64.b64encode(base64.urlsafe_b64encode(signature)).decode()
    call = {"call_id": "f1", "name": "weather", "arguments_json": '{"city":"Rome"}'}
    request = ask(
        model="vertex/gemini-3.5-flash",
        system="Be brief.",
        messages=[
            {
                "role": "ROLE_USER",
                "parts": [
                    {"text": {"text": "Weather?"}},
                    {"image": {"data": base64.b64encode(PNG).decode(), "mime_type": "image/png"}},
                    {"document": {"url": "gs://b/r.pdf"}},
                ],
            },
            {"role": "ROLE_ASSISTANT", "parts": [{"tool_call": call, "origin": origin, "provider_state": state}]},
            {
                "role": "ROLE_TOOL",
                "parts": [
                    {"tool_result": {"call_id": "f1", "is_error": True, "parts": [{"text": {"text": "no idea"}}]}}
                ],
            },
        ],
        tools=[{"name": "weather", "description": "d", "input_schema": json.dumps(schema)}],
        tool_choice={"mode": "TOOL_CHOICE_MODE_NAMED", "names": ["weather"]},
        temperature=0.5,
        top_p=0.9,
        max_tokens=99,
        stop=["END"],
        seed=7,
        response_format={"json_schema": {"schema": json.dumps(schema)}},
        reasoning={"effort": "REASONING_EFFORT_HIGH"},
        provider_options={
            "vertex": {"safetySettings": [{"category": "HARM_CATEGORY_HARASSMENT", "threshold": "BLOCK_NONE"}]}
        },
    )
    async with provider_at(server.url) as provider:
        with pytest.raises(Exception, match="no"):
            await provider.complete(request)
        with pytest.raises(Exception, match="no"):
            async for _ in provider.stream(request):
                pass
    for theirs, ours in zip(server.requests[:2], server.requests[2:], strict=True):
        assert (ours.method, ours.path, ours.query) == (theirs.method, theirs.path, theirs.query)
        assert ours.headers["authorization"] == theirs.headers["authorization"]
        assert _plain(ours.json()) == _plain(theirs.json())


def _plain(value: Any) -> Any:
    """A body with one spelling: the SDK writes inner names as `mime_type`, which the provider reads as `mimeType`."""
    match value:
        case dict():
            return {re.sub("_([a-z])", lambda m: m[1].upper(), name): _plain(one) for name, one in value.items()}
        case list():
            return [_plain(one) for one in value]
        case _:
            return value


async def test_tokens_are_counted_alike(sdk: Sdk, server: FaultServer, ask: Any, provider_at: Any) -> None:
    server.on("POST", "*", SendJson({"totalTokens": 31}))
    config = sdk.types.CountTokensConfig(system_instruction=sdk.types.Content(parts=[sdk.types.Part(text="s")]))
    theirs = await sdk.client.models.count_tokens(model="gemini-2.5-flash", contents="hi", config=config)
    async with provider_at(server.url) as provider:
        assert await provider.count_tokens(ask(system="s")) == theirs.total_tokens
    one, other = server.requests
    assert (one.path, one.json()) == (other.path, other.json())


@pytest.mark.parametrize("model", ["text-embedding-005", "gemini-embedding-001"])
async def test_vectors_are_asked_for_alike(model: str, sdk: Sdk, server: FaultServer, provider_at: Any) -> None:
    from google.protobuf.json_format import ParseDict

    from maestro.llm.v1.embedding_pb2 import EmbedRequest
    from maestro_sdk.testing.obliging_gemini import oblige_gemini

    oblige_gemini(server)
    config = sdk.types.EmbedContentConfig(task_type="RETRIEVAL_DOCUMENT", output_dimensionality=4, auto_truncate=True)
    theirs = await sdk.client.models.embed_content(model=model, contents=["one"], config=config)
    fields = {"purpose": "EMBED_PURPOSE_SEARCH_DOCUMENT", "dimensions": 4, "truncate": True}
    request = ParseDict({"model": f"vertex/{model}", "inputs": [{"text": "one"}], **fields}, EmbedRequest())
    async with provider_at(server.url) as provider:
        ours = await provider.embed(request)
    one, other = server.requests
    assert (one.path, one.json()) == (other.path, other.json())
    assert list(ours.embeddings[0].values) == pytest.approx(theirs.embeddings[0].values)
    assert ours.usage.input_tokens == theirs.embeddings[0].statistics.token_count
