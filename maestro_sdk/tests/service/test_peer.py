"""Who belongs to the mesh: by a token on every call."""

from __future__ import annotations

import itertools
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.message import Message
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from maestro.llm.v1 import chat_pb2, chat_pb2_grpc, file_pb2, file_pb2_grpc, message_pb2
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.connection import Connection
from maestro_sdk.errors import Unauthenticated, from_rpc_error
from maestro_sdk.service.channel import open_channel
from maestro_sdk.service.config_file import ConfigError
from maestro_sdk.service.interceptors import MeshInterceptor
from maestro_sdk.service.meshes import MeshConfig
from maestro_sdk.service.peer import TOKEN_KEY, Peer
from maestro_sdk.service.settings import load
from maestro_sdk.service.validation import VALIDATED
from maestro_sdk.testing.scripted import ScriptedProvider
from maestro_sdk.testing.servers import serve
from maestro_sdk.tracing import TENANT_KEY

ChatStub: Any = chat_pb2_grpc.ChatServiceStub
FileStub: Any = file_pb2_grpc.FileServiceStub
HealthStub: Any = health_pb2_grpc.HealthStub
grpc_health: Any = health  # its asyncio half has no types
OLD, NEW = "old-0123456789abcdef", "new-0123456789abcdef"
HELLO = message_pb2.Part(text=message_pb2.TextPart(text="hello"))
REQUEST = chat_pb2.ChatRequest(
    model="scripted/model", messages=[message_pb2.Message(role=message_pb2.ROLE_USER, parts=[HELLO])]
)
FORGED = ((TENANT_KEY, "acme"), ("x-maestro-call-key", "k"), VALIDATED)


@asynccontextmanager
async def asking(tokens: Sequence[str], provider: ScriptedProvider) -> AsyncGenerator[str]:
    """An adapter that takes these tokens."""
    interceptors = [MeshInterceptor(admit=Peer(tokens).admit)]
    async with serve(ChatServicer(provider), ModelServicer(provider), interceptors=interceptors) as address:
        yield address


async def refusal(call: Any) -> Unauthenticated:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    found = from_rpc_error(caught.value)
    assert isinstance(found, Unauthenticated)
    return found


@pytest.mark.parametrize(
    ("sent", "word"),
    [
        ((), "has no x-maestro-mesh-token"),
        (((TOKEN_KEY, ""),), "is none of this mesh"),
        (((TOKEN_KEY, OLD[:-1]),), "is none of this mesh"),
        (((TOKEN_KEY, NEW), (TOKEN_KEY, "x" * 5000)), "is none of this mesh"),
    ],
)
async def test_a_stranger_is_refused_before_anything_is_asked(sent: tuple[tuple[str, str], ...], word: str) -> None:
    provider = ScriptedProvider()
    async with asking([OLD], provider) as address, open_channel(address) as channel:
        stub = ChatStub(channel)
        error = await refusal(stub.Chat(REQUEST, metadata=(*FORGED, *sent)))
        assert word in error.message
        assert "MAESTRO_MESH_TOKEN" in error.message
        assert OLD not in error.message
        assert (error.failover, error.counts_against_health) == (True, True), "another adapter may take the call"
        await refusal(stub.StreamChat(REQUEST, metadata=(*FORGED, *sent)).read())
        # Not even that these bytes are no message is found out.
        raw = channel.unary_unary("/maestro.llm.v1.ChatService/Chat")
        await refusal(raw(b"\xff\xff\xff", metadata=(*FORGED, *sent)))
    assert provider.requests == []


async def test_every_kind_of_call_shows_the_token() -> None:
    class Files(file_pb2_grpc.FileServiceServicer):
        async def UploadFile(self, request_iterator: Any, context: Any) -> file_pb2.File:
            return file_pb2.File(size_bytes=sum([len(request.data) async for request in request_iterator]))

        async def DownloadFile(self, request: Message, context: Any) -> Any:
            yield file_pb2.DownloadFileResponse(data=b"one")

    made: Any = Files
    peer, provider = Peer([OLD]), ScriptedProvider()
    async with (
        serve(made(), ChatServicer(provider), interceptors=[MeshInterceptor(admit=peer.admit)]) as address,
        peer.open_channel(address) as channel,
    ):
        assert (await ChatStub(channel).Chat(REQUEST, metadata=FORGED[:1], timeout=5)).parts
        upload = FileStub(channel).UploadFile(iter([file_pb2.UploadFileRequest(data=b"four")]))
        assert (await upload).size_bytes == 4
        call = FileStub(channel).DownloadFile(file_pb2.DownloadFileRequest(file_id="f"))
        assert [piece.data async for piece in call] == [b"one"]
    assert len(provider.requests) == 1


async def test_tokens_are_changed_without_a_pause() -> None:
    """First everybody takes the new one too, then it is sent, then the old one is forgotten."""
    steps = ([OLD], [OLD, NEW], [NEW, OLD], [NEW])
    provider, calls = ScriptedProvider(), 0
    for before, after in itertools.pairwise(steps):
        for server in (before, after):
            async with asking(server, provider) as address:
                for caller in (before, after):
                    async with Peer(caller).open_channel(address) as channel:
                        assert (await ChatStub(channel).Chat(REQUEST, timeout=5)).parts
                        calls += 1
    assert len(provider.requests) == calls == 12
    async with asking([NEW], provider) as address, Peer([OLD]).open_channel(address) as channel:
        await refusal(ChatStub(channel).Chat(REQUEST))


async def test_health_needs_no_token() -> None:
    admitted = MeshInterceptor(admit=Peer([OLD]).admit)
    async with (
        serve(grpc_health.aio.HealthServicer(), interceptors=[admitted]) as address,
        open_channel(address) as channel,
    ):
        answer = await HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=5)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_a_public_client_shows_no_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MAESTRO_MESH_TOKEN", OLD)
    provider = ScriptedProvider()
    async with asking([OLD], provider) as address:
        connection = Connection(address, key="mk-1", timeout=5)
        with pytest.raises(Unauthenticated, match="has no x-maestro-mesh-token"):
            await connection.call("/maestro.llm.v1.ChatService/Chat", REQUEST, chat_pb2.ChatResponse)
        await connection.close()
    assert provider.requests == []


def test_where_tokens_come_from(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MAESTRO_MESH_TOKEN", raising=False)
    assert MeshConfig().read_tokens() == ()
    monkeypatch.setenv("MAESTRO_MESH_TOKEN", OLD)
    assert MeshConfig().read_tokens() == (OLD,)
    (tmp_path / "token").write_text(f"{NEW}\n")
    (tmp_path / "maestro.yaml").write_text("mesh: {tokens: [{file: token}, {env: MAESTRO_MESH_TOKEN}]}\n")
    config = load(tmp_path / "maestro.yaml", {})
    assert config.mesh.read_tokens() == (NEW, OLD)
    assert Peer.from_config(config).asks_token
    assert OLD not in config.to_yaml()
    assert NEW not in config.to_yaml()


@pytest.mark.parametrize(
    ("section", "token", "problem"),
    [
        ("{tokens: [{env: MINE}]}", None, "mesh.tokens[0]: there is no token in the variable MINE"),
        ("{tokens: [{file: none}]}", None, "mesh.tokens[0]: there is no token in "),
        ("{tokens: [{env: MINE}]}", "short", "mesh.tokens[0]: the token can't be used: it needs 16 or more"),
        ("{tokens: [{env: MINE}]}", "with spaces in between", "mesh.tokens[0]: the token can't be used"),
        ("{tokens: [{env: MINE}]}", "schlüssel-0123456789", "mesh.tokens[0]: the token can't be used"),
        ("{tokens: [plain-0123456789abcdef]}", None, "mesh.tokens[0]: keys never stand in the file"),
        ("{tls: {certificate: c, key: k, authority: a}}", None, "c can't be read: No such file"),
        (
            "{tls: {certificate: maestro.yaml, key: maestro.yaml, authority: maestro.yaml}}",
            None,
            "mesh.tls.authority: ",
        ),
        ("{tls: {certificate: c}}", None, "mesh.tls.key: "),
    ],
)
def test_a_token_that_cannot_be_used_is_told_without_it(
    section: str, token: str | None, problem: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if token is not None:
        monkeypatch.setenv("MINE", token)
    (tmp_path / "maestro.yaml").write_text(f"mesh: {section}\n")
    with pytest.raises(ConfigError) as caught:
        Peer.from_config(load(tmp_path / "maestro.yaml", {}))
    assert problem in str(caught.value)
    assert token is None or token not in str(caught.value)
