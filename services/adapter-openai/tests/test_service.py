"""The adapter as a service: over gRPC, and as a process."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import Role
from maestro.llm.v1.model_pb2 import GetInfoRequest, ListModelsRequest
from maestro.llm.v1.model_pb2_grpc import ModelServiceStub
from maestro_adapter_openai.provider import OpenAIProvider
from maestro_adapter_openai.settings import OpenAISettings
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.errors import RateLimited, from_rpc_error
from maestro_sdk.service.settings import Secret
from maestro_sdk.testing import openai_chat as scripts
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.servers import free_port, serve
from maestro_sdk.testing.wire import Tokens

if TYPE_CHECKING:
    from maestro.llm.v1.chat_pb2_grpc import ChatServiceAsyncStub


def ask() -> ChatRequest:
    request = ChatRequest(model="openai/gpt-4.1")
    request.messages.add(role=Role.ROLE_USER).parts.add().text.text = "hello"
    return request


@pytest.fixture
async def server() -> AsyncIterator[FaultServer]:
    async with FaultServer() as running:
        yield running


@pytest.fixture
async def stub(server: FaultServer, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[ChatServiceAsyncStub]:
    monkeypatch.setenv("ADAPTER_TEST_KEY", "sk-test")
    settings = OpenAISettings(api_key=Secret(env="ADAPTER_TEST_KEY"), base_url=f"{server.url}/v1")
    provider = OpenAIProvider.from_settings(settings)
    servicers = (ChatServicer(provider), ModelServicer(provider))
    async with (
        serve(*servicers) as address,
        grpc.aio.insecure_channel(address) as channel,
    ):
        yield ChatServiceStub(channel)
    await provider.close()


async def test_both_calls_give_the_same_priced_answer(server: FaultServer, stub: ChatServiceAsyncStub) -> None:
    server.on("POST", scripts.PATH, scripts.text(tokens=Tokens(input=1000, output=500, cache_read=400)))
    whole = await stub.Chat(ask())
    streamed = fold([event async for message in stub.StreamChat(ask()) for event in message.events])
    assert whole == streamed
    # 600 at $2, 400 at $0.50, 500 at $8 per million.
    assert float(whole.cost.usd) == pytest.approx(0.0054)


async def test_a_refusal_keeps_its_reason(server: FaultServer, stub: ChatServiceAsyncStub) -> None:
    server.on("POST", scripts.PATH, scripts.rate_limited(2))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await stub.Chat(ask())
    error = from_rpc_error(caught.value)
    assert isinstance(error, RateLimited)
    assert (error.retry_after, error.metadata["upstream_code"]) == (2.0, "rate_limit_exceeded")


@pytest.mark.parametrize("pieces", [0, 2])
async def test_a_client_that_leaves_closes_the_providers_socket(
    server: FaultServer, stub: ChatServiceAsyncStub, pieces: int
) -> None:
    server.on("POST", scripts.PATH, scripts.stall_after(pieces))
    call = stub.StreamChat(ask())
    first = await anext(aiter(call))
    assert first.events[0].WhichOneof("kind") == "started"
    seen = await server.request()
    call.cancel()
    await asyncio.wait_for(seen.closed.wait(), 5)


async def test_a_client_that_leaves_the_unary_call_closes_the_providers_socket(
    server: FaultServer, stub: ChatServiceAsyncStub
) -> None:
    server.on("POST", scripts.PATH, scripts.stall_after(1))
    call = stub.Chat(ask())
    seen = await server.request()
    call.cancel()
    await asyncio.wait_for(seen.closed.wait(), 5)
    assert len(server.requests) == 1, "nobody tries again for a caller who is gone"


async def test_the_sdk_is_not_loaded_to_serve() -> None:
    """It takes a second and 60 MB; a mesh that only chats has neither to spend."""
    code = "import sys, maestro_adapter_openai.__main__; sys.exit('openai' in sys.modules)"
    process = await asyncio.create_subprocess_exec(sys.executable, "-c", code)
    assert await process.wait() == 0


async def test_process_tells_what_is_missing_and_ends_on_sigterm(tmp_path: Path) -> None:
    port = free_port()
    file = tmp_path / "maestro.yaml"
    file.write_text(f"version: 1\nadapters: {{openai: {{address: '127.0.0.1:{port}'}}}}\n", encoding="utf-8")
    env = {name: value for name, value in os.environ.items() if name != "OPENAI_API_KEY"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "maestro_adapter_openai", env={**env, "MAESTRO_CONFIG": str(file)}, cwd=tmp_path
    )
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            info = await ModelServiceStub(channel).GetInfo(GetInfoRequest(), wait_for_ready=True, timeout=20)
            assert (info.name, info.ready, list(info.providers)) == ("adapter-openai", False, ["openai"])
            assert "set OPENAI_API_KEY" in info.not_ready_reason
            listed = await ModelServiceStub(channel).ListModels(ListModelsRequest())
            assert "openai/gpt-6.2-sol" in [model.id for model in listed.models]
            stub: Any = health_pb2_grpc.HealthStub(channel)  # its types lack the methods
            health = await stub.Check(health_pb2.HealthCheckRequest())
            assert health.status == health_pb2.HealthCheckResponse.NOT_SERVING
    finally:
        process.send_signal(signal.SIGTERM)
        code = await asyncio.wait_for(process.wait(), 10)
    assert code == 0
