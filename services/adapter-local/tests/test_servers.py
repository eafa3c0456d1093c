"""OpenAI-compatible servers behind the adapter: discovery, names, claims, calls, and a server that is down."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from pydantic import ValidationError

from maestro.llm.v1.chat_pb2 import ChatRequest, FinishReason, Tool
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro.llm.v1.model_pb2 import Feature
from maestro_adapter_local.compatible import read_listing
from maestro_adapter_local.provider import LocalProvider
from maestro_adapter_local.settings import LocalSettings
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.models import supports
from maestro_sdk.errors import NotFound, RateLimited, StreamBroken, Unimplemented, UnsupportedParameter, UpstreamError
from maestro_sdk.testing import openai_chat
from maestro_sdk.testing.faults import FaultServer, Headers, Send, SendJson, Wait
from maestro_sdk.testing.servers import Aimock, free_port
from maestro_sdk.testing.wire import ToolCall

CHAT = "/v1/chat/completions"
WEATHER = Tool(name="get_weather", input_schema='{"type": "object", "properties": {"city": {"type": "string"}}}')


def ask(model: str, text: str = "hello", **fields: Any) -> ChatRequest:
    """A request with one user turn."""
    turn = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])
    return ChatRequest(model=model, messages=[turn], **fields)


@asynccontextmanager
async def local(*servers: dict[str, Any], **offline: Any) -> AsyncGenerator[LocalProvider]:
    """A provider that is closed at the end."""
    settings = {"servers": servers, "offline": offline, "hashing": False}
    provider = LocalProvider(LocalSettings.model_validate(settings))
    try:
        yield provider
    finally:
        await provider.close()


@asynccontextmanager
async def serving(*models: str | dict[str, Any]) -> AsyncGenerator[tuple[FaultServer, str]]:
    """A server that lists `models`, and its base address."""
    listed = [model if isinstance(model, dict) else {"id": model, "object": "model"} for model in models]
    async with FaultServer() as server:
        server.on("GET", "/v1/models", SendJson({"object": "list", "data": listed}))
        yield server, f"{server.url}/v1"


def down(name: str) -> dict[str, Any]:
    """The settings of a server that isn't there."""
    return {"name": name, "base_url": f"http://127.0.0.1:{free_port()}/v1"}


async def ids(provider: LocalProvider) -> list[str]:
    return [model.id for model in await provider.models()]


async def test_models_are_discovered_with_what_the_server_tells() -> None:
    async with serving("qwen3:8b", {"id": "meta/llama", "max_model_len": 8192}) as (_, url):
        settings = {
            "name": "box",
            "base_url": url,
            "features": ["JSON_SCHEMA"],
            "models": [
                {
                    "match": "qwen*",
                    "features": ["VISION"],
                    "without": ["SEED"],
                    "context_window": 4096,
                    "tags": ["fast"],
                }
            ],
        }
        async with local(settings) as provider:
            found = {model.id: model for model in await provider.models()}
    assert sorted(found) == ["local/meta/llama", "local/offline", "local/qwen3:8b"]
    qwen, llama = found["local/qwen3:8b"], found["local/meta/llama"]
    assert (qwen.name, qwen.context_window, list(qwen.tags)) == ("qwen3:8b", 4096, ["fast"])
    assert llama.context_window == 8192
    assert not llama.HasField("price")
    for feature, of_qwen, of_llama in (("JSON_SCHEMA", True, True), ("VISION", True, False), ("SEED", False, True)):
        assert supports(qwen, Feature.Value(f"FEATURE_{feature}")) is of_qwen
        assert supports(llama, Feature.Value(f"FEATURE_{feature}")) is of_llama


async def test_calls_reach_the_server_with_its_key(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-local-123\n")
    async with serving("llama") as (server, url):
        server.on("POST", CHAT, openai_chat.text(["Hi", " there"]))
        key = {"file": str(tmp_path / "key")}
        async with local({"name": "box", "base_url": url, "api_key": key}) as provider:
            request = ask("local/llama", temperature=0.5, max_tokens=7)
            whole = fold(await provider.complete(request))
            streamed = fold([event async for batch in provider.stream(request) for event in batch])
        for response in (whole, streamed):
            assert response.parts[0].text.text == "Hi there"
            assert (response.provider, response.model) == ("local", "llama")
            assert response.finish_reason == FinishReason.FINISH_REASON_STOP
            assert (response.usage.input_tokens, response.usage.output_tokens) == (12, 5)
        listing, call, _ = server.requests
        assert listing.headers["authorization"] == call.headers["authorization"] == "Bearer sk-local-123"
        assert (call.json()["model"], call.json()["temperature"], call.json()["max_tokens"]) == ("llama", 0.5, 7)


async def test_what_a_model_is_not_said_to_have_is_not_sent() -> None:
    async with serving("plain", "tooled") as (server, url):
        call = ToolCall("c1", "get_weather", {"city": "Rome"})
        server.on("POST", CHAT, openai_chat.tools(call))
        known = [{"match": "tooled", "features": ["TOOLS"]}]
        settings = {"name": "box", "base_url": url, "models": known, "polyfill": False}
        async with local(settings) as provider:
            response = fold(await provider.complete(ask("local/tooled", tools=[WEATHER])))
            assert json.loads(response.parts[0].tool_call.arguments_json) == {"city": "Rome"}
            assert server.requests[-1].json()["tools"][0]["function"]["name"] == "get_weather"
            with pytest.raises(UnsupportedParameter, match="tools: "):
                await provider.complete(ask("local/plain", tools=[WEATHER]))
            assert len(server.requests) == 2


async def test_a_server_that_is_down_takes_nothing_down() -> None:
    async with serving("llama") as (server, url):
        server.on("POST", CHAT, openai_chat.text("up"))
        async with local(down("gone"), {"name": "box", "base_url": url}) as provider:
            assert await ids(provider) == ["local/llama", "local/offline"]
            assert await provider.check() == ""
            (problem,) = provider.problems()
            assert problem.startswith("gone: ")
            assert fold(await provider.complete(ask("local/llama"))).parts[0].text.text == "up"
            assert fold(await provider.complete(ask("local/offline", "Say exactly: here"))).parts[0].text.text == "here"
            with pytest.raises(NotFound, match="no server has the model 'other'; gone: "):
                await provider.complete(ask("local/other"))


async def test_a_server_that_goes_down_leaves_the_list_but_keeps_its_names() -> None:
    refused = (Headers(503, {}), SendJson({"error": {"message": "loading"}}))
    async with FaultServer() as first, serving("llama") as (second, second_url):
        first.on("GET", "/v1/models", SendJson({"data": [{"id": "llama"}]}))
        first.on("GET", "/v1/models", *refused)
        first.on("GET", "/v1/models", SendJson({"data": [{"id": "llama"}]}))
        second.on("POST", CHAT, openai_chat.text("second"))
        servers = {"name": "a", "base_url": f"{first.url}/v1"}, {"name": "b", "base_url": second_url}
        async with local(*servers) as provider:
            assert await ids(provider) == ["local/b/llama", "local/llama", "local/offline"]
            assert await ids(provider) == ["local/b/llama", "local/offline"]
            assert "loading" in provider.problems()[0]
            assert await ids(provider) == ["local/b/llama", "local/llama", "local/offline"]
            assert provider.problems() == []
            for events in (
                await provider.complete(ask("local/b/llama")),
                [event async for batch in provider.stream(ask("local/b/llama")) for event in batch],
            ):
                response = fold(events)
                assert (response.model, response.parts[0].text.text) == ("b/llama", "second")
            assert second.requests[-1].json()["model"] == "llama"


async def test_a_servers_model_can_not_take_the_name_of_the_offline_model() -> None:
    async with serving("offline") as (_, url), local({"name": "box", "base_url": url}) as provider:
        assert await ids(provider) == ["local/box/offline", "local/offline"]


async def test_without_offline_model_readiness_follows_the_servers() -> None:
    async with local(down("gone"), enabled=False) as provider:
        assert (await provider.check()).startswith("gone: the provider at http://127.0.0.1:")
        assert await ids(provider) == []
        with pytest.raises(NotFound):
            await provider.complete(ask("local/offline"))
    async with serving("llama") as (_, url), local({"name": "box", "base_url": url}, enabled=False) as provider:
        assert await provider.check() == ""


async def test_servers_do_not_count_tokens() -> None:
    async with serving("llama") as (_, url), local({"name": "box", "base_url": url}) as provider:
        assert await provider.count_tokens(ask("local/offline", "two words")) == 2
        with pytest.raises(Unimplemented):
            await provider.count_tokens(ask("local/llama"))


async def test_errors_of_a_server_are_those_of_the_contract() -> None:
    async with serving("llama") as (server, url), local({"name": "box", "base_url": url}) as provider:
        server.on("POST", CHAT, openai_chat.rate_limited(3))
        server.on("POST", CHAT, openai_chat.cut_after(2))
        with pytest.raises(RateLimited) as limited:
            await provider.complete(ask("local/llama"))
        assert limited.value.retry_after == 3.0
        kinds: list[str | None] = []
        with pytest.raises(StreamBroken):
            async for batch in provider.stream(ask("local/llama")):
                kinds += [event.WhichOneof("kind") for event in batch]
        assert kinds[0] == "started"
        assert "finish" not in kinds
        await server.stop()
        with pytest.raises(UpstreamError):
            await provider.complete(ask("local/llama"))


async def test_leaving_a_stream_closes_the_servers_socket() -> None:
    async with serving("llama") as (server, url), local({"name": "box", "base_url": url}) as provider:
        server.on("POST", CHAT, openai_chat.stall_after(1))
        batches = cast("Any", provider.stream(ask("local/llama")))
        async with aclosing(batches):
            async for events in batches:
                if any(event.HasField("text") for event in events):
                    break
        seen = await server.request(1)
        async with asyncio.timeout(2):
            await seen.closed.wait()
        assert [asked.path for asked in server.requests].count(CHAT) == 1


async def test_the_emulator_answers_through_the_adapter() -> None:
    fixture: dict[str, Any] = {"match": {"userMessage": "hello"}, "response": {"content": "Hello from aimock."}}
    async with Aimock([fixture]) as aimock, local({"name": "aimock", "base_url": aimock.openai_url}) as provider:
        (model, *_) = [model.id for model in await provider.models() if model.id != "local/offline"]
        whole = fold(await provider.complete(ask(model)))
        streamed = fold([event async for batch in provider.stream(ask(model)) for event in batch])
    assert whole.parts[0].text.text == streamed.parts[0].text.text == "Hello from aimock."


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"data": {}}', b'{"data": null}', b"<html>"])
def test_a_list_of_models_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_listing(body)


def test_odd_entries_of_a_list_are_passed_over() -> None:
    body = b'{"data": [{"id": "b", "context_length": 5}, {"id": ""}, {"x": 1}, 7, {"id": "a", "max_model_len": -1}]}'
    assert [(served.name, served.context_window) for served in read_listing(body)] == [("a", None), ("b", 5)]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"servers": [{"name": "a", "base_url": "localhost:1"}]}, "not an http or https address such as"),
        ({"servers": [{"name": "a", "base_url": "http://x:99999"}]}, "not an http or https address such as"),
        ({"servers": [{"name": "a", "base_url": "http://x y"}]}, "not an http or https address such as"),
        ({"offline": {"names": ["hashing"]}}, "two built-in models are named 'hashing'"),
        ({"offline": {"names": ["offline"]}}, "two built-in models are named 'offline'"),
        (
            {"servers": [{"name": "a", "base_url": "http://x", "features": ["SIGHT"]}]},
            "'SIGHT' is not one of STREAMING",
        ),
        ({"servers": [{"name": "a", "base_url": "http://x"}] * 2}, "two servers are named 'a'"),
        ({"servers": [{"name": "a", "base_url": "http://x", "api_key": "sk-1"}]}, "keys never stand in the file"),
        ({"offline": {"enabled": False}, "hashing": False}, "there is nothing to serve"),
        ({"offline": {"pace": "slow"}}, "not a duration"),
    ],
)
def test_wrong_settings_are_refused(wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(ValidationError, match=told):
        LocalSettings.model_validate(wrong)


def test_an_embedder_alone_is_enough_to_serve(tmp_path: Path) -> None:
    settings = LocalSettings.model_validate(
        {"offline": {"enabled": False}, "hashing": False, "embedder": {"path": tmp_path}}
    )
    assert settings.embedder is not None


@pytest.mark.parametrize("api", ["openai", "ollama"])
async def test_a_server_that_sends_a_byte_now_and_then_holds_up_nobody(api: str) -> None:
    slowly = [step for _ in range(100) for step in (Send(b" "), Wait(0.02))]
    async with FaultServer() as server:
        server.on("GET", "/models", *slowly)
        server.on("GET", "/api/tags", *slowly)
        fields = {"name": "slow", "base_url": server.url, "api": api, "list_timeout": 0.3}
        provider = LocalProvider(LocalSettings.model_validate({"servers": [fields]}))
        async with asyncio.timeout(5):
            assert "local/offline" in {model.id for model in await provider.models()}
        assert provider.problems() == ["slow: it did not tell its models within 0.9 s"]
        await provider.close()


def test_a_window_that_is_true_is_unknown() -> None:
    assert [served.context_window for served in read_listing(b'{"data": [{"id": "m", "max_model_len": true}]}')] == [
        None
    ]
