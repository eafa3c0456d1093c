"""Models of servers that lack tools or schemas get them by the kit, unless the configuration says no."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from typing import Any

import pytest

from maestro.llm.v1.chat_pb2 import (
    ChatRequest,
    ChatResponse,
    FinishReason,
    JsonSchemaFormat,
    ResponseFormat,
    Routing,
    Tool,
    ToolChoice,
    ToolChoiceMode,
)
from maestro.llm.v1.model_pb2 import Feature, Model, Support
from maestro_adapter_local.provider import LocalProvider
from maestro_adapter_local.settings import LocalSettings
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.models import support_of
from maestro_sdk.errors import CapabilityUnavailable, UnsupportedParameter
from maestro_sdk.testing import ollama_chat, openai_chat
from maestro_sdk.testing.faults import FaultServer, SendJson
from maestro_sdk.testing.obliging_ollama import ABLE, EMBEDDER, HANDED, PLAIN, oblige_ollama
from maestro_sdk.types import assistant, tool_result, tool_results, user

SCHEMA = '{"type":"object","properties":{"city":{"type":"string"}},"required":["city"],"additionalProperties":false}'
WEATHER = Tool(name="get_weather", input_schema=SCHEMA)
NATIVE, POLYFILLED, NONE = Support.SUPPORT_NATIVE, Support.SUPPORT_POLYFILLED, Support.SUPPORT_NONE


def ask(model: str, text: str = "Use the tool get_weather for Paris.", **fields: Any) -> ChatRequest:
    return ChatRequest(model=f"local/{model}", messages=[user(text)], **fields)


@asynccontextmanager
async def local(url: str, **server: Any) -> AsyncGenerator[LocalProvider]:
    settings = {"servers": [{"name": "box", "base_url": url, "api": "ollama", **server}], "hashing": False}
    provider = LocalProvider(LocalSettings.model_validate(settings))
    try:
        yield provider
    finally:
        await provider.close()


async def both(provider: LocalProvider, request: ChatRequest) -> list[ChatResponse]:
    streamed = fold([event async for batch in provider.stream(request) for event in batch])
    return [streamed, fold(await provider.complete(request))]


def supports(model: Model) -> dict[str, Support.ValueType]:
    names = ("TOOLS", "PARALLEL_TOOLS", "TOOL_CHOICE", "STREAMED_TOOL_ARGS", "JSON_SCHEMA", "VISION")
    return {name: support_of(model, Feature.Value(f"FEATURE_{name}")) for name in names}


async def test_what_is_native_and_what_is_polyfilled() -> None:
    async with FaultServer() as server, local(server.url) as provider:
        oblige_ollama(server)
        found = {model.name: supports(model) for model in await provider.models()}
    polyfilled = {"TOOLS": POLYFILLED, "PARALLEL_TOOLS": POLYFILLED, "TOOL_CHOICE": POLYFILLED, "VISION": NONE}
    assert found[ABLE] == {
        "TOOLS": NATIVE,
        "PARALLEL_TOOLS": NATIVE,
        "TOOL_CHOICE": POLYFILLED,
        "STREAMED_TOOL_ARGS": NONE,
        "JSON_SCHEMA": NATIVE,
        "VISION": NATIVE,
    }
    assert found[PLAIN] == {**polyfilled, "STREAMED_TOOL_ARGS": POLYFILLED, "JSON_SCHEMA": NATIVE}
    assert found[HANDED] == {**polyfilled, "STREAMED_TOOL_ARGS": NONE, "JSON_SCHEMA": POLYFILLED}
    assert set(found[EMBEDDER].values()) == {NONE}


@pytest.mark.parametrize("model", [ABLE, PLAIN, HANDED])
async def test_a_tool_is_called_and_its_result_told(model: str) -> None:
    async with FaultServer() as server, local(server.url) as provider:
        oblige_ollama(server)
        await provider.models()
        for answer in await both(provider, ask(model, tools=[WEATHER])):
            (part,) = [part for part in answer.parts if part.HasField("tool_call")]
            assert (part.tool_call.name, json.loads(part.tool_call.arguments_json)) == (
                "get_weather",
                {"city": "Paris"},
            )
            assert part.tool_call.call_id
            assert part.polyfilled is (model != ABLE)
            assert answer.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
            follow = ask(model, tools=[WEATHER])
            follow.messages.append(assistant(answer))
            follow.messages.append(tool_results(tool_result(part.tool_call, "17 degrees")))
            for told in await both(provider, follow):
                assert "17 degrees" in "".join(part.text.text for part in told.parts)
        sent = [seen.json() for seen in server.requests if seen.path == ollama_chat.PATH]
    # A server that can be held to a schema is; one that can't is asked nicely.
    assert [("tools" in body, "format" in body) for body in sent[:1]] == [(model == ABLE, model == PLAIN)]


@pytest.mark.parametrize("model", [ABLE, PLAIN, HANDED])
async def test_a_call_can_be_demanded(model: str) -> None:
    named = ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_NAMED, names=["get_weather"])
    async with FaultServer() as server, local(server.url) as provider:
        oblige_ollama(server)
        await provider.models()
        for answer in await both(provider, ask(model, "Hello there.", tools=[WEATHER], tool_choice=named)):
            assert [part.tool_call.name for part in answer.parts] == ["get_weather"]
            assert answer.parts[0].polyfilled
            assert not answer.warnings


@pytest.mark.parametrize("model", [ABLE, PLAIN, HANDED])
async def test_an_answer_meets_its_schema(model: str) -> None:
    form = ResponseFormat(json_schema=JsonSchemaFormat(name="city", schema=SCHEMA))
    async with FaultServer() as server, local(server.url) as provider:
        oblige_ollama(server)
        await provider.models()
        for answer in await both(provider, ask(model, "Describe it.", response_format=form)):
            assert json.loads(answer.parts[0].text.text) == {"city": "Paris"}
            assert answer.parts[0].polyfilled is (model == HANDED)


@pytest.mark.parametrize("model", [ABLE, PLAIN, HANDED])
async def test_tools_and_a_schema_go_together(model: str) -> None:
    """An Ollama server would hold the calls to the schema too, so that there never were any."""
    form = ResponseFormat(json_schema=JsonSchemaFormat(name="city", schema=SCHEMA))
    async with FaultServer() as server, local(server.url) as provider:
        oblige_ollama(server)
        await provider.models()
        for answer in await both(provider, ask(model, tools=[WEATHER], response_format=form)):
            assert [part.tool_call.name for part in answer.parts] == ["get_weather"]
            assert answer.finish_reason == FinishReason.FINISH_REASON_TOOL_CALLS
        for answer in await both(provider, ask(model, "Describe it.", tools=[WEATHER], response_format=form)):
            assert json.loads(answer.parts[0].text.text) == {"city": "Paris"}
        bodies = [seen.json() for seen in server.requests if seen.path == ollama_chat.PATH]
        assert not any("tools" in body and "format" in body for body in bodies)
        none = ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_NONE)
        request = ask(model, "Describe it.", tools=[WEATHER], response_format=form, tool_choice=none)
        for answer in await both(provider, request):
            assert json.loads(answer.parts[0].text.text) == {"city": "Paris"}


async def test_without_polyfills_tools_beside_a_schema_are_warned_of() -> None:
    form = ResponseFormat(json_schema=JsonSchemaFormat(name="city", schema=SCHEMA))
    async with FaultServer() as server, local(server.url, polyfill=False) as provider:
        oblige_ollama(server)
        await provider.models()
        answer = fold(await provider.complete(ask(ABLE, tools=[WEATHER], response_format=form)))
    assert [warning.field for warning in answer.warnings] == ["tools"]


async def test_a_caller_can_demand_what_is_native() -> None:
    async with FaultServer() as server, local(server.url) as provider:
        oblige_ollama(server)
        await provider.models()
        asked = len(server.requests)
        with pytest.raises(CapabilityUnavailable, match="TOOLS"):
            await provider.complete(ask(PLAIN, tools=[WEATHER], routing=Routing(require_native=True)))
        assert len(server.requests) == asked


@pytest.mark.parametrize(
    "settings",
    [
        {"polyfill": False},
        {"without": ["TOOLS"]},
        {"without": ["TOOL_CHOICE"]},
        {"models": [{"match": "plain*", "without": ["TOOLS"]}]},
    ],
)
async def test_polyfills_can_be_switched_off(settings: dict[str, Any]) -> None:
    async with FaultServer() as server, local(server.url, **settings) as provider:
        oblige_ollama(server)
        found = {model.name: supports(model) for model in await provider.models()}
        assert POLYFILLED not in found[PLAIN].values()
        assert (POLYFILLED in found[HANDED].values()) is ("models" in settings)
        asked = len(server.requests)
        with pytest.raises(UnsupportedParameter, match="tools: this model can't call tools"):
            await provider.complete(ask(PLAIN, tools=[WEATHER]))
        assert len(server.requests) == asked


async def test_a_compatible_server_is_prompted_and_vllm_is_held_to_a_schema() -> None:
    for api, constrained in (("openai", False), ("vllm", True)):
        async with FaultServer() as server, local(f"{server.url}/v1", api=api) as provider:
            server.on("GET", "/v1/models", SendJson({"data": [{"id": "llama"}]}))
            call = {"name": "get_weather", "arguments": {"city": "Rome"}}
            said = json.dumps({"calls": [call]}) if constrained else f"<tool_call>{json.dumps(call)}</tool_call>"
            server.on("POST", openai_chat.PATH, openai_chat.text(said))
            for answer in await both(provider, ask("llama", tools=[WEATHER])):
                assert json.loads(answer.parts[0].tool_call.arguments_json) == {"city": "Rome"}
                assert answer.parts[0].polyfilled
            body = server.requests[-1].json()
            assert ("response_format" in body) is constrained
            assert "tools" not in body
