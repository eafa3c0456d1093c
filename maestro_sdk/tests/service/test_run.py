"""A service as a process: health follows readiness, a stop drains, and a start that can't work says why."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import grpc
import pytest
from google.protobuf import descriptor_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc

from maestro.llm.v1 import chat_pb2, chat_pb2_grpc, embedding_pb2, message_pb2, model_pb2
from maestro_sdk.adapter.service import adapter
from maestro_sdk.errors import UpstreamError, from_rpc_error
from maestro_sdk.service.channel import open_channel
from maestro_sdk.service.config_file import ConfigError
from maestro_sdk.service.peer import Peer
from maestro_sdk.service.settings import load
from maestro_sdk.testing.servers import free_port

# The generated stubs do not tell their asynchronous kind from the other one.
ChatStub: Any = chat_pb2_grpc.ChatServiceStub
HealthStub: Any = health_pb2_grpc.HealthStub
ReflectionStub: Any = reflection_pb2_grpc.ServerReflectionStub

HELLO = message_pb2.Part(text=message_pb2.TextPart(text="hello"))
REQUEST = chat_pb2.ChatRequest(messages=[message_pb2.Message(role=message_pb2.ROLE_USER, parts=[HELLO])])
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


@asynccontextmanager
async def process(
    folder: Path, arguments: Sequence[str] = ("3", "0"), *, ready: bool = True, port: int = 0, **env: str
) -> AsyncGenerator[SimpleNamespace]:
    if ready:
        (folder / "ready").touch()
    address = f"127.0.0.1:{port or free_port()}"
    settings = {"MAESTRO__DATA": str(folder), "MAESTRO__GATEWAY__ADDRESS": address, **env}
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("stand.py")), *arguments),
        stderr=asyncio.subprocess.PIPE,
        cwd=folder,
        env={**os.environ, **settings},
    )
    try:
        async with open_channel(address) as channel:
            yield SimpleNamespace(child=child, channel=channel, address=address)
    finally:
        if child.returncode is None:
            child.kill()
        await child.communicate()


async def end(child: asyncio.subprocess.Process) -> tuple[int | None, str]:
    """Exit code and what was told, at the end of the process."""
    _, told = await asyncio.wait_for(child.communicate(), 20)
    return child.returncode, told.decode()


async def told(child: asyncio.subprocess.Process, words: str) -> str:
    """The line of the log that has the words."""
    assert child.stderr is not None
    async with asyncio.timeout(20):
        while True:
            line = (await child.stderr.readline()).decode()
            assert line, f"ended without saying {words!r}"
            if words in line:
                return line


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_running_stream_outlives_the_wish_to_stop(tmp_path: Path) -> None:
    async with process(tmp_path, ("20", "0.1")) as service:
        await told(service.child, "ready")
        watch = HealthStub(service.channel).Watch(health_pb2.HealthCheckRequest())
        assert (await watch.read()).status == SERVING
        stream = ChatStub(service.channel).StreamChat(REQUEST)
        pieces = aiter(stream)
        await anext(pieces)
        begun = time.monotonic()
        service.child.send_signal(signal.SIGTERM)
        assert (await watch.read()).status == NOT_SERVING
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await watch.read()
        assert caught.value.code() == grpc.StatusCode.UNAVAILABLE
        rest = [message.events[0].text.text async for message in pieces]
        assert rest == [str(number) for number in range(1, 20)]
        code, log = await end(service.child)
    assert code == 0
    assert "stopped" in log
    assert (tmp_path / "closed").exists()
    assert time.monotonic() - begun < 20, "a watcher of health doesn't hold the end up"


async def test_a_stream_that_is_longer_than_the_grace_is_cut(tmp_path: Path) -> None:
    async with process(tmp_path, ("1000", "0.1"), MAESTRO__GRACE="500ms") as service:
        await told(service.child, "ready")
        stream = ChatStub(service.channel).StreamChat(REQUEST)
        pieces = aiter(stream)
        await anext(pieces)
        service.child.send_signal(signal.SIGTERM)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async for _ in pieces:
                pass
        code, _ = await end(service.child)
    assert code == 0
    assert isinstance(from_rpc_error(caught.value), UpstreamError), "not CANCELLED: the caller is still there"


async def test_a_second_signal_ends_at_once(tmp_path: Path) -> None:
    async with process(tmp_path, ("1000", "0.1")) as service:
        await told(service.child, "ready")
        stream = ChatStub(service.channel).StreamChat(REQUEST)
        await stream.read()
        service.child.send_signal(signal.SIGTERM)
        await told(service.child, "stopping on SIGTERM")
        service.child.send_signal(signal.SIGTERM)
        code, _ = await end(service.child)
    assert code == 128 + signal.SIGTERM


async def test_a_stop_reaches_a_service_that_is_still_being_built(tmp_path: Path) -> None:
    (tmp_path / "slow").touch()
    async with process(tmp_path) as service:
        await until((tmp_path / "building").exists)
        service.child.send_signal(signal.SIGINT)
        code, log = await end(service.child)
    assert code == 0
    assert "Traceback" not in log


async def test_health_follows_readiness(tmp_path: Path) -> None:
    async with process(tmp_path, ready=False) as service:
        line = await told(service.child, "not ready")
        assert line.strip().endswith("stand: not ready: the file `ready` is missing")
        health = HealthStub(service.channel)
        name = "maestro.llm.v1.ChatService"
        watch = health.Watch(health_pb2.HealthCheckRequest(service=name))
        assert (await watch.read()).status == NOT_SERVING
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == NOT_SERVING
        # Not ready means that callers should go elsewhere, not that they are refused.
        assert (await ChatStub(service.channel).Chat(REQUEST)).response_id == "r"

        (tmp_path / "ready").touch()
        assert (await watch.read()).status == SERVING
        assert (await health.Check(health_pb2.HealthCheckRequest())).status == SERVING
        (tmp_path / "ready").unlink()
        assert (await watch.read()).status == NOT_SERVING
        watch.cancel()


def policies_of(pid: int) -> dict[int, int]:
    """The scheduling policy of every thread of a process."""
    threads = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
    return {thread: os.sched_getscheduler(thread) for thread in threads}


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has scheduling policies of threads")
async def test_the_threads_of_grpc_give_way_to_the_event_loop(tmp_path: Path) -> None:
    async with process(tmp_path) as service:
        await told(service.child, "listening")
        policies = policies_of(service.child.pid)
        assert policies.pop(service.child.pid) == os.SCHED_OTHER
        assert os.SCHED_BATCH in policies.values()
        service.child.send_signal(signal.SIGTERM)
        assert (await end(service.child))[0] == 0


async def test_reflection_shows_the_contract(tmp_path: Path) -> None:
    async with process(tmp_path) as service:
        await told(service.child, "ready")
        stub = ReflectionStub(service.channel)
        asked = [
            reflection_pb2.ServerReflectionRequest(list_services=""),
            reflection_pb2.ServerReflectionRequest(file_containing_symbol="maestro.llm.v1.ChatService"),
        ]
        answers = [answer async for answer in stub.ServerReflectionInfo(iter(asked))]
    names = {service.name for service in answers[0].list_services_response.service}
    assert names == {
        "maestro.llm.v1.ChatService",
        "grpc.health.v1.Health",
        "grpc.reflection.v1alpha.ServerReflection",
    }
    file = descriptor_pb2.FileDescriptorProto.FromString(answers[1].file_descriptor_response.file_descriptor_proto[0])
    assert file.name == "maestro/llm/v1/chat.proto"


async def test_a_port_in_use_is_one_line(tmp_path: Path) -> None:
    async with process(tmp_path) as first:
        await told(first.child, "ready")
        async with process(tmp_path, port=int(first.address.rpartition(":")[2])) as second:
            code, log = await end(second.child)
    assert code == 1
    assert log == f"stand: can't listen on {first.address}: Address already in use\n"


async def test_a_service_that_other_machines_reach_needs_to_know_its_peers(tmp_path: Path) -> None:
    address = f"0.0.0.0:{free_port()}"
    async with process(tmp_path, MAESTRO__GATEWAY__ADDRESS=address) as service:
        code, log = await end(service.child)
    assert code == 2
    assert log.startswith(f"mesh: {address} is open to other machines")
    assert "MAESTRO_MESH_TOKEN" in log
    assert "mesh.open" in log


@pytest.mark.parametrize("consent", [{"MAESTRO_MESH_TOKEN": "t" * 16}, {"MAESTRO__MESH__OPEN": "true"}])
async def test_a_token_or_a_word_opens_it(tmp_path: Path, consent: dict[str, Any]) -> None:
    async with process(tmp_path, MAESTRO__GATEWAY__ADDRESS=f"0.0.0.0:{free_port()}", **consent) as service:
        await told(service.child, "listening on")
        service.child.terminate()
        code, _ = await end(service.child)
    assert code == 0


async def test_a_service_with_a_token_takes_calls_of_its_mesh_alone(tmp_path: Path) -> None:
    async with process(tmp_path, MAESTRO_MESH_TOKEN="t" * 32) as service:
        await told(service.child, "ready")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await ChatStub(service.channel).Chat(REQUEST, metadata=(("x-maestro-tenant", "acme"),))
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        async with Peer(("t" * 32,)).open_channel(service.address) as channel:
            assert (await ChatStub(channel).Chat(REQUEST)).response_id == "r"
        service.child.terminate()
        code, log = await end(service.child)
    assert code == 0
    assert "t" * 16 not in log


async def test_a_wrong_configuration_ends_with_2_and_all_problems(tmp_path: Path) -> None:
    (tmp_path / "maestro.yaml").write_text("grace: soon\ndata: .\nrouter: {addres: x}\n")
    async with process(tmp_path) as service:
        code, log = await end(service.child)
    assert code == 2
    assert log.splitlines() == [
        "maestro.yaml:1: grace: 'soon' is not a duration such as 250ms, 10s, 5m, 1h or 7d",
        "maestro.yaml:3: router.addres: no such setting; did you mean address?",
    ]


class Provider:
    """A provider that makes embeddings, too."""

    name = "adapter-x"
    providers: Sequence[str] = ("x",)

    def __init__(self) -> None:
        self.closed = False

    async def stream(self, request: chat_pb2.ChatRequest) -> AsyncGenerator[Sequence[chat_pb2.ChatEvent]]:
        yield []

    async def models(self) -> Sequence[model_pb2.Model]:
        return []

    async def check(self) -> str:
        return "no key"

    async def close(self) -> None:
        self.closed = True

    async def embed(self, request: embedding_pb2.EmbedRequest) -> embedding_pb2.EmbedResponse:
        return embedding_pb2.EmbedResponse()


async def test_an_adapter_serves_the_one_that_its_environment_names(monkeypatch: pytest.MonkeyPatch) -> None:
    config = load(env={"MAESTRO__ADAPTERS": "{x: {address: 'h:1'}, y: {address: 'h:2', settings: {a: 1}}}"})
    monkeypatch.setenv("MAESTRO_ADAPTER", "y")
    given: list[Any] = []

    def build(_: Any, own: Any) -> Provider:
        given.append(own)
        return Provider()

    async with adapter("x", build)(config) as service:
        assert service.address == "h:2"
    assert given == [config.adapters["y"]]
    monkeypatch.setenv("MAESTRO_ADAPTER", "z")
    with pytest.raises(ConfigError, match=r"adapters\.z: is missing; there are: x, y"):
        async with adapter("x", build)(config):
            pass


async def test_an_adapter_serves_its_provider_and_closes_it() -> None:
    provider = Provider()
    config = load(env={"MAESTRO__ADAPTERS": "{x: {address: 'h:1', settings: {a: 1}}}"})
    given: list[Any] = []

    def build(config: Any, own: Any) -> Provider:
        given.extend((config, own))
        return provider

    async with adapter("x", build)(config) as service:
        assert service.address == "h:1"
        assert [type(servicer).__name__ for servicer in service.servicers] == [
            "ChatServicer",
            "ModelServicer",
            "StandingCallServicer",
            "EmbeddingServicer",
        ]
        assert await service.ready() == "no key"
        assert not provider.closed
    assert provider.closed
    assert given == [config, config.adapters["x"]]
    with pytest.raises(ConfigError, match=r"adapters\.y: is missing; there are: x"):
        async with adapter("y", build)(config):
            pass
