"""The interceptor with a real server: identity, keys, and streams however they end."""

from __future__ import annotations

import asyncio
from typing import Any

import grpc
import pytest

from maestro.llm.v1 import chat_pb2, chat_pb2_grpc, file_pb2, model_pb2
from maestro_sdk import errors
from maestro_sdk.errors import InvalidRequest, MaestroError, RateLimited, Unauthenticated, Violation
from maestro_sdk.service.interceptors import returns_last
from maestro_sdk.tracing import Call

from .servicers import (
    DELTA,
    REQUEST,
    Chats,
    ChatStub,
    FileStub,
    Models,
    ModelStub,
    authenticate,
    failure,
    make_files,
    served,
)


async def test_the_call_is_known_to_the_handler() -> None:
    chats = Chats()
    traceparent = f"00-{'a' * 32}-{'b' * 16}-01"
    metadata = (("x-request-id", "req_1"), ("x-maestro-tenant", "acme"), ("traceparent", traceparent))
    async with served(chats) as (channel, _):
        stub = ChatStub(channel)
        await stub.Chat(REQUEST, metadata=metadata)
        await stub.Chat(REQUEST, metadata=(("x-request-id", "not valid!"), ("traceparent", "nor this")))
    first, second = chats.calls
    assert first == Call("req_1", "acme", traceparent)
    assert second is not None
    assert second.request_id.startswith("req_")
    assert len(second.trace_id) == 32
    assert second.tenant == ""


async def test_a_key_decides_the_tenant() -> None:
    chats = Chats()
    async with served(chats, Models(), make_files(), authenticate=authenticate) as (channel, _):
        stub = ChatStub(channel)
        forged = (("x-maestro-tenant", "other"),)
        error = await failure(stub.Chat(REQUEST, metadata=forged))
        assert (type(error), error.message) == (Unauthenticated, "no key for /maestro.llm.v1.ChatService/Chat")
        assert isinstance(await failure(stub.StreamChat(REQUEST).read()), Unauthenticated)
        # Neither is a request read before the key is known: this one would be invalid.
        assert isinstance(await failure(stub.Chat(chat_pb2.ChatRequest())), Unauthenticated)
        upload = FileStub(channel).UploadFile(iter([file_pb2.UploadFileRequest(data=b"x")]))
        assert isinstance(await failure(upload), Unauthenticated)

        info = await ModelStub(channel).GetInfo(
            model_pb2.GetInfoRequest(), metadata=(("authorization", "Bearer good"), *forged)
        )
    assert info.name == "acme"
    assert chats.calls == []


async def test_a_broken_authentication_lets_nobody_in(caplog: pytest.LogCaptureFixture) -> None:
    def broken(metadata: Any, method: str) -> str:
        raise RuntimeError("the key file is gone")

    async with served(Chats(), authenticate=broken) as (channel, _):
        error = await failure(ChatStub(channel).Chat(REQUEST))
    assert isinstance(error, errors.Internal)
    assert "the key file is gone" in caplog.text


async def test_generators_and_request_streams_are_served() -> None:
    files = make_files()
    async with served(files) as (channel, _):
        stub = FileStub(channel)
        whole = [response.data async for response in stub.DownloadFile(file_pb2.DownloadFileRequest(file_id="x"))]
        assert whole == [b"one", b"two"]

        stream = stub.DownloadFile(file_pb2.DownloadFileRequest(file_id="broken"))
        assert (await stream.read()).data == b"one"
        error = await failure(stream.read())
        assert (type(error), error.metadata) == (errors.StreamBroken, {"provider": "p"})

        uploaded = await stub.UploadFile(iter([file_pb2.UploadFileRequest(data=b"abc")] * 3))
        assert uploaded.size_bytes == 9


class Returning(chat_pb2_grpc.ChatServiceServicer):
    """Writes a number of messages and returns one more, unless it has an error to raise."""

    def __init__(self, written: int, error: MaestroError | None = None) -> None:
        self._written = written
        self._error = error

    @returns_last
    async def StreamChat(self, request: chat_pb2.ChatRequest, context: Any) -> chat_pb2.StreamChatResponse:
        for _ in range(self._written):
            await context.write(DELTA.SerializeToString())
        if self._error is not None:
            raise self._error
        return LAST


# What it doesn't implement answers UNIMPLEMENTED, as with `make_files`.
make_returning: Any = Returning
LAST = chat_pb2.StreamChatResponse(events=[chat_pb2.ChatEvent(text=chat_pb2.TextDelta(text="last"))])


@pytest.mark.parametrize("written", [0, 1, 3])
async def test_a_last_message_may_be_returned(written: int) -> None:
    async with served(make_returning(written)) as (channel, _):
        # More than once, since the status comes together with the message and must never overtake it.
        for _ in range(20):
            call = ChatStub(channel).StreamChat(REQUEST)
            assert [message async for message in call] == [DELTA] * written + [LAST]
            assert await call.code() is grpc.StatusCode.OK


async def test_an_error_replaces_the_message_that_would_be_returned() -> None:
    async with served(make_returning(1, RateLimited("slow down", retry_after=2.0))) as (channel, _):
        call = ChatStub(channel).StreamChat(REQUEST)
        assert await call.read() == DELTA
        error = await failure(call.read())
        assert (type(error), error.retry_after) == (RateLimited, 2.0)
        refused = await failure(ChatStub(channel).StreamChat(chat_pb2.ChatRequest()).read())
        assert isinstance(refused, InvalidRequest)


async def test_a_provider_that_quotes_its_key_is_not_repeated() -> None:
    key = "sk-proj-0123456789abcdef"
    said = InvalidRequest(
        f"no such key: {key}",
        violations=[Violation("model", f"{key} has none")],
        metadata={"upstream_code": f"bad {key}", "filtered": key, "model": "skywork-13b-chat-latest"},
    )
    async with served(make_returning(0, said)) as (channel, _):
        error = await failure(ChatStub(channel).StreamChat(REQUEST).read())
    assert (error.message, error.violations) == ("no such key: ***", (Violation("model", "*** has none"),))
    # Our own words stay, whatever they look like.
    assert error.metadata == {"upstream_code": "bad ***", "filtered": "***", "model": "skywork-13b-chat-latest"}


async def test_a_caller_who_goes_away_closes_the_handler_at_once() -> None:
    chats, files = Chats(), make_files()

    async def write_for_ever(context: Any) -> None:
        await context.write(DELTA)
        await asyncio.Event().wait()

    chats.stream = write_for_ever
    async with served(chats, files) as (channel, _):
        stream = ChatStub(channel).StreamChat(REQUEST)
        assert await stream.read() == DELTA
        stream.cancel()
        await asyncio.wait_for(chats.ended.wait(), 2)

        download = FileStub(channel).DownloadFile(file_pb2.DownloadFileRequest(file_id="endless"))
        assert (await download.read()).data == b"one"
        download.cancel()
        await asyncio.wait_for(files.closed.wait(), 2)


async def test_a_write_to_a_caller_who_has_just_gone_is_no_error_of_ours(caplog: pytest.LogCaptureFixture) -> None:
    # What gRPC raises when the connection breaks between the start of a write and the news of its end.
    too_late = next(kind for kind in grpc.aio.InternalError.__subclasses__() if kind.__name__ == "ExecuteBatchError")

    async def write(context: Any) -> None:
        raise too_late("Failed grpc_call_start_batch")

    chats = Chats()
    chats.stream = write
    async with served(chats) as (channel, _):
        stream = ChatStub(channel).StreamChat(REQUEST, timeout=0.2)
        with pytest.raises(grpc.RpcError):
            await stream.read()
    assert caplog.records == []


async def test_a_drain_ends_endless_streams_only() -> None:
    chats, files = Chats(), make_files()
    release = asyncio.Event()

    async def wait(context: Any) -> None:
        await context.write(DELTA)
        await release.wait()
        await context.write(DELTA)

    chats.stream = wait
    endless = ["/maestro.llm.v1.FileService/DownloadFile"]
    async with served(chats, files, endless=endless) as (channel, interceptor):
        stream = ChatStub(channel).StreamChat(REQUEST)
        await stream.read()
        stub = FileStub(channel)
        download = stub.DownloadFile(file_pb2.DownloadFileRequest(file_id="endless"))
        assert [(await download.read()).data, (await download.read()).data] == [b"one", b"two"]

        interceptor.end_endless()
        error = await failure(download.read())
        assert (type(error), error.message) == (errors.UpstreamError, "the server is shutting down")
        late = await failure(stub.DownloadFile(file_pb2.DownloadFileRequest(file_id="endless")).read())
        assert isinstance(late, errors.UpstreamError)
        release.set()
        assert await stream.read() == DELTA
        assert await stream.read() is grpc.aio.EOF


async def test_an_unknown_method_stays_unimplemented() -> None:
    async with served(Models()) as (channel, _):
        error = await failure(ChatStub(channel).Chat(REQUEST))
    assert isinstance(error, errors.Unimplemented)
