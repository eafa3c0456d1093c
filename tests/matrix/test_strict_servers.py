"""Whole adapters over gRPC, against servers that refuse a tool's schema as the provider does, in its own words."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml
from google.protobuf.json_format import ParseDict
from matrix_wires import wire
from test_tool_schemas import STRANGE_NAMES, ask, corpus

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro_sdk.adapter.service import adapter
from maestro_sdk.errors import InvalidRequest, from_rpc_error
from maestro_sdk.service.settings import load
from maestro_sdk.testing import anthropic_messages, bedrock_converse, gemini_content, ollama_chat, openai_chat
from maestro_sdk.testing.faults import FaultServer, Headers, Seen, SendJson, Step
from maestro_sdk.testing.obliging_ollama import oblige_ollama
from maestro_sdk.testing.obliging_vllm import oblige_vllm
from maestro_sdk.testing.servers import serve
from maestro_sdk.testing.wire import Wire

FILES = (
    "edge-root-choices",
    "edge-types",
    "edge-unions",
    "edge-arrays",
    "edge-recursive",
    "openapi-3-petstore",
    "zod-4-draft-4",
    "zod-3-named",
    "pydantic-types",
    "pydantic-union",
    "mcp-notionhq-notion",
    "mcp-playwright",
)

Build = Callable[[], Any]


def _claude() -> Any:
    from maestro_adapter_claude.provider import ClaudeProvider

    return ClaudeProvider.from_config


def _openai() -> Any:
    from maestro_adapter_openai.provider import from_config

    return from_config


def _vertex() -> Any:
    from maestro_adapter_vertex.provider import VertexProvider

    return VertexProvider.from_config


def _local() -> Any:
    from maestro_adapter_local.provider import LocalProvider

    return LocalProvider.from_config


def _bedrock() -> Any:
    from maestro_adapter_bedrock.provider import BedrockProvider

    return BedrockProvider.from_config


# The adapter, how it is built, the provider's wire and its paths, and the settings for a server's URL and a key.
Side = tuple[str, Build, Wire, str, Callable[[str, Any], Any]]
SIDES: dict[str, Side] = {
    "anthropic": (
        "claude",
        _claude,
        anthropic_messages.WIRE,
        anthropic_messages.PATH,
        lambda url, key: {"base_url": url, "api_key": key},
    ),
    "openai": (
        "openai",
        _openai,
        openai_chat.WIRE,
        openai_chat.PATH,
        lambda url, key: {"base_url": f"{url}/v1", "api_key": key},
    ),
    "vertex": (
        "vertex",
        _vertex,
        gemini_content.WIRE,
        gemini_content.PATH,
        lambda url, key: {"base_url": url, "project": "p", "access_token": key},
    ),
    "azure": (
        "openai",
        _openai,
        openai_chat.WIRE,
        "/openai/deployments/my-deployment/chat/completions",
        lambda url, key: {
            "api_key": {"env": "NO_KEY_OF_OPENAI"},
            "azure": {"endpoint": url, "api_key": key, "deployments": {"gpt-4.1": "my-deployment"}},
        },
    ),
    "bedrock": (
        "bedrock",
        _bedrock,
        bedrock_converse.WIRE,
        bedrock_converse.PATH,
        lambda url, key: {"region": "us-east-1", "base_url": url, "access_key_id": key, "secret_access_key": key},
    ),
    "nova": (
        "bedrock",
        _bedrock,
        bedrock_converse.WIRE,
        bedrock_converse.PATH,
        lambda url, key: {"region": "us-east-1", "base_url": url, "access_key_id": key, "secret_access_key": key},
    ),
    "ollama": (
        "local",
        _local,
        ollama_chat.WIRE,
        ollama_chat.PATH,
        lambda url, key: {"servers": [{"name": "box", "base_url": url, "api": "ollama"}]},
    ),
    "vllm": (
        "local",
        _local,
        openai_chat.WIRE,
        openai_chat.PATH,
        lambda url, key: {
            "servers": [{"name": "box", "base_url": f"{url}/v1", "api": "vllm", "features": ["TOOLS", "TOOL_CHOICE"]}]
        },
    ),
}


# Servers of one's own tell which models they have.
LISTING: dict[str, Callable[[FaultServer], None]] = {"ollama": oblige_ollama, "vllm": oblige_vllm}
LISTED = {"ollama": "local/able:8b", "vllm": "local/obliging/model-8b"}


def asked(server: FaultServer) -> list[Seen]:
    """The requests for answers; servers are asked for their models, too."""
    return [seen for seen in server.requests if seen.method == "POST" and seen.path != "/api/show"]


def model_of(name: str) -> str:
    return LISTED.get(name) or wire(name).model.id


@asynccontextmanager
async def standing(name: str, folder: Path) -> AsyncGenerator[tuple[FaultServer, Any]]:
    """A strict provider, and a caller of the adapter before it."""
    title, build, speaker, path, settings = SIDES[name]
    (folder / "key").write_text("sk-test-key", encoding="utf-8")
    target = wire(name)

    def reply(seen: Seen) -> Sequence[Step]:
        tools = target.schemas(seen.json())
        refused = [(number, each) for number, schema in enumerate(tools) for each in target.refusals(schema)]
        if refused:
            number, first = refused[0]
            words = f"tools.{number}{first.pointer}: {first.message}"
            return (Headers(400), SendJson(speaker.refusal(400, "", words)))
        return speaker.text("fine")(seen)

    async with FaultServer() as server:
        if name in LISTING:
            LISTING[name](server)
        server.replace("POST", path, reply)
        file = folder / "maestro.yaml"
        given = settings(server.url, {"file": str(folder / "key")})
        file.write_text(yaml.safe_dump({"adapters": {title: {"address": "127.0.0.1:1", "settings": given}}}))
        config = load(file, env={})
        async with (
            adapter(title, build())(config) as service,
            serve(*service.servicers) as address,
            grpc.aio.insecure_channel(address) as channel,
        ):
            yield server, ChatServiceStub(channel)


@pytest.mark.parametrize("name", list(SIDES))
async def test_real_tools_are_answered(name: str, tmp_path: Path) -> None:
    async with standing(name, tmp_path) as (server, chat):
        for number, file in enumerate(FILES):
            request = ChatRequest(model=model_of(name))
            for place, tool in enumerate(corpus(file)):
                if (file, tool["name"]) not in STRANGE_NAMES.get(name, ()):
                    request.tools.append(ask(tool["input_schema"], f"tool_{place}").tools[0])
            request.messages.extend(ask({}).messages)
            answer = await chat.Chat(request)
            assert "".join(part.text.text for part in answer.parts) == "fine", file
            assert len(wire(name).schemas(asked(server)[number].json())) == len(request.tools)
        # What was rewritten with a loss is told in the answer, too.
        lossy = ask(corpus("edge-root-choices")[0]["input_schema"])
        lossy.model = model_of(name)
        if name in LISTING:
            return  # These take choices of whole arguments as they are.
        warnings = (await chat.Chat(lossy)).warnings
        assert any(warning.field.startswith("tools[0].input_schema#/anyOf") for warning in warnings)


BAD: dict[str, Any] = {
    "anthropic": [{"name": "bad", "input_schema": {"type": "object", "oneOf": [{}]}}],
    "openai": [{"type": "function", "function": {"name": "bad", "parameters": {"type": "object"}}}],
    "vertex": [{"functionDeclarations": [{"name": "bad", "parameters": {"type": "OBJECT", "$schema": "x"}}]}],
}


@pytest.mark.parametrize("name", list(BAD))
async def test_a_refusal_keeps_the_provider_s_words(name: str, tmp_path: Path) -> None:
    """The servers are strict indeed: what a caller puts there past the translation comes back as its own mistake."""
    async with standing(name, tmp_path) as (server, chat):
        request = ask({"type": "object", "properties": {}})
        request.model = model_of(name)
        ParseDict({"provider_options": {wire(name).provider: {"tools": BAD[name]}}}, request)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await chat.Chat(request)
        error = from_rpc_error(caught.value)
        assert type(error) is InvalidRequest
        assert "tools.0" in error.message
        assert (error.retryable, error.failover, error.counts_against_health) == (False, False, False)
        assert error.metadata["upstream_status"] == "400"
        assert len(asked(server)) == 1


@pytest.mark.parametrize("name", list(SIDES))
async def test_what_is_wrong_never_reaches_the_provider(name: str, tmp_path: Path) -> None:
    async with standing(name, tmp_path) as (server, chat):
        model = model_of(name)
        bad = ask('{"type":"object","properties":{"x":{"type":"int"}}}')
        strict = ask({"type": "object", "anyOf": [{"required": ["a"]}, {"required": ["b"]}]})
        strict.strict = True
        # Who takes choices at the root has nothing to refuse there.
        for request in (bad,) if name in LISTING else (bad, strict):
            request.model = model
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await chat.Chat(request)
            error = from_rpc_error(caught.value)
            assert isinstance(error, InvalidRequest)
            assert error.violations[0].field.startswith("tools[0].input_schema#/")
        assert asked(server) == []
