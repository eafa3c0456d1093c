"""The ports behind the gateway: they take calls of their own mesh, and of nobody else."""

import asyncio
import stat
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc_health.v1 import health

from maestro.llm.v1.batch_pb2 import ListBatchesRequest
from maestro.llm.v1.batch_pb2_grpc import BatchServiceStub
from maestro.llm.v1.chat_pb2 import CountTokensRequest
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedRequest
from maestro.llm.v1.embedding_pb2_grpc import EmbeddingServiceStub
from maestro.llm.v1.model_pb2 import GetInfoRequest, ListModelsRequest
from maestro.llm.v1.model_pb2_grpc import ModelServiceStub
from maestro.llm.v1.standing_pb2 import GetStandingCallRequest
from maestro.llm.v1.standing_pb2_grpc import StandingCallServiceStub
from maestro.router.v1 import router_pb2
from maestro.router.v1.router_pb2_grpc import RouterServiceStub
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.service.channel import open_channel
from maestro_sdk.service.interceptors import MeshInterceptor
from maestro_sdk.service.peer import TOKEN_KEY
from maestro_sdk.service.validation import VALIDATED
from maestro_sdk.testing import openai_chat as wire
from maestro_sdk.testing.callers import Caller, question
from maestro_sdk.testing.chaos.record import read_events
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.scripted import ScriptedProvider, scripted_model
from maestro_sdk.testing.servers import serve

from .conftest import KEY, asked, bearer

grpc_health: Any = health  # its asyncio half has no types
MODEL = "openai/gpt-6-luna"
OUTER = "outer/model"
FORGED = (("x-maestro-tenant", "acme"), ("x-maestro-call-key", "k"), ("x-request-id", "forged-1"), VALIDATED)


class Recording(grpc.aio.ServerInterceptor):
    """Notes the metadata of each call to a service of the contract."""

    def __init__(self) -> None:
        self.seen: list[dict[str, list[str | bytes]]] = []

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Any:
        if handler_call_details.method.startswith("/maestro."):
            found: dict[str, list[str | bytes]] = {}
            for key, value in handler_call_details.invocation_metadata:
                found.setdefault(key, []).append(value)
            self.seen.append(found)
        return await continuation(handler_call_details)


@dataclass
class Stage:
    """A mesh, the provider of its adapter, and an adapter elsewhere that belongs to it."""

    process: MeshProcess
    caller: Caller
    provider: FaultServer
    outer: Recording

    @property
    def token(self) -> str:
        return (self.process.data / "mesh-token").read_text().strip()


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stage(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """Without any setting about the mesh: as `maestro up` protects it."""
    recording = Recording()
    outer = ScriptedProvider(models=[scripted_model(OUTER)])
    outer_servicers = (ChatServicer(outer), ModelServicer(outer), grpc_health.aio.HealthServicer())
    async with (
        FaultServer() as provider,
        serve(*outer_servicers, interceptors=[recording, MeshInterceptor()]) as address,
    ):
        provider.on("POST", wire.PATH, wire.text("Hello."))
        config = {
            "version": 1,
            "adapters": {
                "openai": {
                    "module": "maestro_adapter_openai",
                    "address": "127.0.0.1:50062",
                    "settings": {"api_key": {"env": "OPENAI_API_KEY"}, "base_url": f"{provider.url}/v1"},
                },
                "outer": {"address": address},
            },
            "routes": {"default": {"targets": [MODEL]}},
            "aliases": {},
            "grace": "2s",
        }
        folder = tmp_path_factory.mktemp("peers")
        variables = {"MAESTRO_KEY": KEY, "OPENAI_API_KEY": "sk-peers"}
        async with MeshProcess(folder, config, variables) as process, Caller(process.url, KEY) as caller:
            yield Stage(process, caller, provider, recording)


async def refusals(channel: grpc.aio.Channel, sent: tuple[tuple[str, str], ...]) -> dict[str, str]:
    """What every method behind the gateway says to a caller that sends this."""
    chat = asked(MODEL)
    count = CountTokensRequest(request=chat)
    embed = EmbedRequest(model="openai/text-embedding-3-small", inputs=[EmbedInput(text="hello")])
    adapter, router = ChatServiceStub(channel), RouterServiceStub(channel)
    state = router_pb2.SetBackendStateRequest(
        backend_id=f"openai/{MODEL}", state=router_pb2.BACKEND_STATE_DISABLED, reason="no"
    )
    calls: dict[str, Any] = {
        "Chat": adapter.Chat(chat, metadata=sent, timeout=10),
        "StreamChat": adapter.StreamChat(chat, metadata=sent, timeout=10).read(),
        "CountTokens": adapter.CountTokens(count, metadata=sent, timeout=10),
        "Embed": EmbeddingServiceStub(channel).Embed(embed, metadata=sent, timeout=10),
        "GetInfo": ModelServiceStub(channel).GetInfo(GetInfoRequest(), metadata=sent, timeout=10),
        "ListModels": ModelServiceStub(channel).ListModels(ListModelsRequest(), metadata=sent, timeout=10),
        "ListBatches": BatchServiceStub(channel).ListBatches(ListBatchesRequest(), metadata=sent, timeout=10),
        "GetStandingCall": StandingCallServiceStub(channel).GetStandingCall(
            GetStandingCallRequest(key="k", model=MODEL), metadata=sent, timeout=10
        ),
        "WatchRoutes": router.WatchRoutes(
            router_pb2.WatchRoutesRequest(subscriber="gateway"), metadata=sent, timeout=10
        ).read(),
        "Report": router.Report(router_pb2.ReportRequest(reporter="gateway"), metadata=sent, timeout=10),
        "ListBackends": router.ListBackends(router_pb2.ListBackendsRequest(), metadata=sent, timeout=10),
        "SetBackendState": router.SetBackendState(state, metadata=sent, timeout=10),
    }
    said: dict[str, str] = {}
    for name, call in calls.items():
        try:
            await call
            said[name] = "OK"
        except grpc.aio.AioRpcError as error:
            said[name] = error.code().name
    return said


async def test_a_neighbour_gets_nothing_from_the_ports_inside(stage: Stage, figures: list[str]) -> None:
    before = len(stage.provider.requests)
    tried = 0
    for name, own in (("adapter-openai", "Chat"), ("router", "ListBackends")):
        async with open_channel(stage.process.address(name)) as channel:
            for more in ((), ((TOKEN_KEY, "x" * 64),), ((TOKEN_KEY, stage.token[:-1]),), bearer(KEY)):
                said = await refusals(channel, (*FORGED, *more))
                # What this one does not serve it does not serve to anybody.
                assert said[own] == "UNAUTHENTICATED"
                assert set(said.values()) == {"UNAUTHENTICATED", "UNIMPLEMENTED"}
                tried += len(said)
    assert len(stage.provider.requests) == before
    async with stage.process.peer.open_channel(stage.process.address("adapter-openai")) as channel:
        assert (await refusals(channel, ()))["Chat"] == "OK"
    assert len(stage.provider.requests) > before
    figures.append(f"{tried} calls of a stranger to the ports inside: 0 answered, 0 reached the provider")


async def test_what_a_caller_claims_ends_at_the_gateway(stage: Stage) -> None:
    claims = {TOKEN_KEY: "forged", "x-maestro-tenant": "acme", "x-maestro-call-key": "k", "x-maestro-validated": "1"}
    async with open_channel(stage.process.target) as through, open_channel(stage.process.address("gateway")) as beside:
        for channel in (through, beside):
            stage.outer.seen.clear()
            request = asked(OUTER)
            sent = (*bearer(KEY), *claims.items())
            assert (await ChatServiceStub(channel).Chat(request, metadata=sent, timeout=10)).parts
            [seen] = stage.outer.seen
            assert seen[TOKEN_KEY] == [stage.token]
            assert seen["x-maestro-tenant"] == ["development"]
            assert "x-maestro-call-key" not in seen
            # The token is no key.
            with pytest.raises(grpc.aio.AioRpcError) as caught:
                await ChatServiceStub(channel).Chat(request, metadata=((TOKEN_KEY, stage.token), FORGED[0]), timeout=10)
            assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED


async def test_a_service_that_was_killed_comes_back_as_a_member(stage: Stage) -> None:
    await stage.process.wait_restarted(stage.process.kill("adapter-openai"))
    async with asyncio.timeout(20):
        while (await stage.caller.chat(question(model=MODEL))).status != 200:
            await asyncio.sleep(0.02)
    async with open_channel(stage.process.address("adapter-openai")) as channel:
        assert (await refusals(channel, FORGED))["Chat"] == "UNAUTHENTICATED"


async def test_the_token_is_seen_nowhere(stage: Stage) -> None:
    assert _places_of(stage.token, stage.process) == [stage.process.data / "mesh-token"]
    events = await read_events(stage.process.address("nats"))
    assert events
    assert not any(stage.token.encode() in event.SerializeToString() for event in events)
    status, told, _ = await stage.process.run("status", "--data", str(stage.process.data), "--json")
    assert (status, stage.token in told) == (0, False)


async def test_the_conformance_suite_knows_the_mesh_of_its_machine(stage: Stage) -> None:
    address, data = stage.process.address("adapter-openai"), str(stage.process.data)
    _, told, _ = await stage.process.run("conformance", address, "--model", MODEL, "--timeout", "1", "--data", data)
    assert "health" in told
    assert "UNAUTHENTICATED" not in told


def _places_of(token: str, process: MeshProcess) -> list[Path]:
    """The files and command lines that have the token, and the environments of those that are no members."""
    processes = process.members()
    found = [path for path in process.data.rglob("*") if path.is_file()]
    found += [Path(f"/proc/{each.pid}/cmdline") for each in processes.values()]
    found += [Path(f"/proc/{processes[name].pid}/environ") for name in ("envoy", "nats")]
    assert stat.S_IMODE((process.data / "mesh-token").stat().st_mode) == 0o600
    return [path for path in found if token.encode() in path.read_bytes()]
