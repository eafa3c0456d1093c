"""The interceptor with a real server: identity, keys, rules, and one status per call whatever happens."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from maestro.llm.v1 import chat_pb2, chat_pb2_grpc, file_pb2, file_pb2_grpc, message_pb2, model_pb2, model_pb2_grpc
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro_sdk import errors
from maestro_sdk.errors import InvalidRequest, MaestroError, RateLimited, Unauthenticated, Violation, from_rpc_error
from maestro_sdk.service.channel import open_channel
from maestro_sdk.service.interceptors import MeshInterceptor, returns_last, validate
from maestro_sdk.service.validation import VALIDATED
from maestro_sdk.tracing import Call, current_call

# The generated stubs do not tell their asynchronous kind from the other one.
ChatStub: Any = chat_pb2_grpc.ChatServiceStub
FileStub: Any = file_pb2_grpc.FileServiceStub
ModelStub: Any = model_pb2_grpc.ModelServiceStub

HELLO = message_pb2.Part(text=message_pb2.TextPart(text="hello"))
REQUEST = chat_pb2.ChatRequest(messages=[message_pb2.Message(role=message_pb2.ROLE_USER, parts=[HELLO])])
DELTA = chat_pb2.StreamChatResponse(events=[chat_pb2.ChatEvent(text=chat_pb2.TextDelta(text="x"))])


class Chats(chat_pb2_grpc.ChatServiceServicer):
    """Does what the test says: `unary` and `stream` are called with request and context."""

    def __init__(self) -> None:
        self.calls: list[Call | None] = []
        self.unary: Callable[[Any], Any] = lambda context: None
        self.stream: Callable[[Any], Any] = lambda context: None
        self.ended = asyncio.Event()

    async def Chat(self, request: chat_pb2.ChatRequest, context: Any) -> chat_pb2.ChatResponse:
        self.calls.append(current_call())
        result = self.unary(context)
        if asyncio.iscoroutine(result):
            await result
        return chat_pb2.ChatResponse(response_id="r")

    async def StreamChat(self, request: chat_pb2.ChatRequest, context: Any) -> None:
        try:
            await self.stream(context)
        finally:
            self.ended.set()

    async def CountTokens(self, request: chat_pb2.CountTokensRequest, context: Any) -> chat_pb2.CountTokensResponse:
        return chat_pb2.CountTokensResponse(input_tokens=len(request.request.messages))


class Files(file_pb2_grpc.FileServiceServicer):
    """Streams in both directions, the download as an asynchronous generator."""

    def __init__(self) -> None:
        self.closed = asyncio.Event()

    async def UploadFile(self, request_iterator: Any, context: Any) -> file_pb2.File:
        size = 0
        async for request in request_iterator:
            size += len(request.data)
        return file_pb2.File(size_bytes=size)

    async def DownloadFile(
        self, request: file_pb2.DownloadFileRequest, context: Any
    ) -> AsyncIterator[file_pb2.DownloadFileResponse]:
        try:
            yield file_pb2.DownloadFileResponse(data=b"one")
            if request.file_id == "broken":
                raise errors.StreamBroken("cut", metadata={"provider": "p"})
            yield file_pb2.DownloadFileResponse(data=b"two")
            if request.file_id == "endless":
                await asyncio.Event().wait()
        finally:
            self.closed.set()


# What it doesn't implement answers UNIMPLEMENTED, as the generated base does; the stubs call that abstract.
make_files: Any = Files


class Models(model_pb2_grpc.ModelServiceServicer):
    async def ListModels(self, request: model_pb2.ListModelsRequest, context: Any) -> model_pb2.ListModelsResponse:
        return model_pb2.ListModelsResponse()

    async def GetInfo(self, request: model_pb2.GetInfoRequest, context: Any) -> model_pb2.GetInfoResponse:
        call = current_call()
        return model_pb2.GetInfoResponse(name=call.tenant if call else "")


@asynccontextmanager
async def served(*servicers: Any, **options: Any) -> AsyncGenerator[tuple[grpc.aio.Channel, MeshInterceptor]]:
    interceptor = MeshInterceptor(**options)
    server = grpc.aio.server(interceptors=(interceptor,))
    for servicer in servicers:
        for module in (chat_pb2_grpc, file_pb2_grpc, model_pb2_grpc):
            for name in dir(module):
                if name.endswith("Servicer") and isinstance(servicer, getattr(module, name)):
                    getattr(module, f"add_{name}_to_server")(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        async with open_channel(f"127.0.0.1:{port}") as channel:
            yield channel, interceptor
    finally:
        await server.stop(None)


async def failure(call: Any) -> MaestroError:
    with pytest.raises(grpc.RpcError) as caught:
        await call
    return from_rpc_error(caught.value)


def every_error() -> list[MaestroError]:
    return [
        cls(
            f"{reason} happened",
            retry_after=1.25,
            violations=[Violation("messages[0].role", "is wrong"), Violation("stop", "too long")],
            metadata={"provider": "p", "upstream_status": "418"},
        )
        for reason, cls in errors.BY_REASON.items()
    ]


def facts(error: MaestroError) -> tuple[Any, ...]:
    verdicts = (error.retryable, error.failover, error.counts_against_health)
    return (type(error), error.message, error.retry_after, error.violations, error.metadata, verdicts)


def test_every_reason_of_the_contract_has_an_error() -> None:
    names = {value.name.removeprefix("ERROR_REASON_") for value in ErrorReason.DESCRIPTOR.values} - {"UNSPECIFIED"}
    assert names == set(errors.BY_REASON)


@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.reason)
async def test_an_error_arrives_as_it_was_raised(error: MaestroError) -> None:
    chats = Chats()

    def fail(context: Any) -> None:
        raise error

    async def fail_midway(context: Any) -> None:
        await context.write(DELTA)
        await context.write(DELTA)
        raise error

    chats.unary, chats.stream = fail, fail_midway
    async with served(chats) as (channel, _):
        stub = ChatStub(channel)
        call = stub.Chat(REQUEST)
        assert facts(await failure(call)) == facts(error)
        assert await call.code() == error.code

        stream = stub.StreamChat(REQUEST)
        assert [await stream.read(), await stream.read()] == [DELTA, DELTA]
        assert facts(await failure(stream.read())) == facts(error)


async def test_a_status_has_the_standard_details() -> None:
    chats = Chats()

    def fail(context: Any) -> None:
        context.set_trailing_metadata((("x-kept", "yes"),))
        raise RateLimited("later", retry_after=2.5, violations=[Violation("a", "b")])

    chats.unary = fail
    async with served(chats) as (channel, _):
        call = ChatStub(channel).Chat(REQUEST)
        await failure(call)
        trailing: dict[str, Any] = dict(await call.trailing_metadata())
    assert (trailing["x-kept"], trailing["retry-after"]) == ("yes", "3")
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    assert (status.code, status.message) == (8, "later")
    kinds: dict[str, Any] = {
        kind.DESCRIPTOR.full_name: kind
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo, error_details_pb2.BadRequest)
    }
    details = {detail.TypeName(): kinds[detail.TypeName()].FromString(detail.value) for detail in status.details}
    assert details["google.rpc.ErrorInfo"].reason == "RATE_LIMITED"
    assert details["google.rpc.RetryInfo"].retry_delay.ToMilliseconds() == 2500
    assert details["google.rpc.BadRequest"].field_violations[0].field == "a"


async def test_an_unexpected_error_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    chats = Chats()

    def fail(context: Any) -> None:
        raise ValueError("the password is swordfish")

    chats.unary = fail
    async with served(chats) as (channel, _):
        metadata = (("x-request-id", "req_abc"),)
        error = await failure(ChatStub(channel).Chat(REQUEST, metadata=metadata))
    assert isinstance(error, errors.Internal)
    assert error.message == "internal error; the log of the service tells more under req_abc"
    assert "swordfish" in caplog.text
    assert [record.levelno for record in caplog.records if record.name.startswith("maestro")] == [logging.ERROR]


async def test_an_error_inside_a_task_group_keeps_its_meaning() -> None:
    chats = Chats()

    async def fail(context: Any) -> None:
        async def limited() -> None:
            raise RateLimited("later", retry_after=3)

        async with asyncio.TaskGroup() as group:
            group.create_task(limited())
            group.create_task(asyncio.sleep(60))

    chats.unary = fail
    async with served(chats) as (channel, _):
        error = await failure(ChatStub(channel).Chat(REQUEST))
    assert (type(error), error.retry_after) == (RateLimited, 3)


async def test_the_error_of_a_call_further_on_is_passed_on() -> None:
    behind, front = Chats(), Chats()

    def fail(context: Any) -> None:
        raise RateLimited("later", retry_after=3, metadata={"provider": "p"})

    behind.unary = fail
    async with served(behind) as (inner, _), served(front) as (outer, _):
        front.unary = lambda context: forward(inner)
        error = await failure(ChatStub(outer).Chat(REQUEST))
    assert (type(error), error.retry_after, error.metadata) == (RateLimited, 3, {"provider": "p"})


async def forward(channel: grpc.aio.Channel) -> None:
    await ChatStub(channel).Chat(REQUEST)


async def test_a_huge_error_still_fits_into_a_status() -> None:
    chats = Chats()

    def fail(context: Any) -> None:
        violations = [Violation("f" * 500, "äöü" * 300) for _ in range(200)]
        raise InvalidRequest("ß" * 20_000, violations=violations, metadata={f"k{i}": "v" * 999 for i in range(50)})

    chats.unary = fail
    async with served(chats) as (channel, _):
        error = await failure(ChatStub(channel).Chat(REQUEST))
    assert isinstance(error, InvalidRequest)
    assert error.message == "ß" * len(error.message)
    assert error.violations


async def test_a_handlers_own_abort_passes() -> None:
    chats = Chats()

    async def fail(context: Any) -> None:
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "twice")

    chats.unary = fail
    async with served(chats) as (channel, _):
        call = ChatStub(channel).Chat(REQUEST)
        await failure(call)
        assert (await call.code(), await call.details()) == (grpc.StatusCode.ALREADY_EXISTS, "twice")


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


def authenticate(metadata: tuple[tuple[str, str | bytes], ...], method: str) -> str:
    for key, value in metadata:
        if key == "authorization" and value == "Bearer good":
            return "acme"
    raise Unauthenticated(f"no key for {method}")


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


def message(**part: Any) -> message_pb2.Message:
    return message_pb2.Message(role=message_pb2.ROLE_USER, parts=[message_pb2.Part(**part)])


@pytest.mark.parametrize(
    ("request_message", "paths"),
    [
        (chat_pb2.ChatRequest(), ["messages"]),
        (chat_pb2.ChatRequest(messages=[message_pb2.Message()]), ["messages[0].role", "messages[0].parts"]),
        (chat_pb2.ChatRequest(messages=[message(text={"text": "x"}), message()]), ["messages[1].parts[0].kind"]),
        (chat_pb2.ChatRequest(messages=[message(image={"url": ""})]), ["messages[0].parts[0].image.url"]),
        (chat_pb2.ChatRequest(messages=[message(text={})], temperature=3), ["temperature"]),
        (chat_pb2.ChatRequest(messages=[message(text={})], metadata={"k": "v" * 600}), ['metadata["k"]']),
        (chat_pb2.ChatRequest(messages=[message(text={})], stop=["a", ""]), ["stop[1]"]),
        (chat_pb2.CountTokensRequest(request=chat_pb2.ChatRequest()), ["request.messages"]),
    ],
)
def test_a_broken_rule_is_told_with_its_path(request_message: Any, paths: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate(request_message)
    assert [violation.field for violation in caught.value.violations] == paths
    assert all(violation.message for violation in caught.value.violations)
    assert caught.value.message.startswith(f"{paths[0]}: ")


async def test_a_request_that_breaks_a_rule_reaches_no_handler() -> None:
    chats = Chats()
    async with served(chats, make_files()) as (channel, _):
        stub = ChatStub(channel)
        for call in (stub.Chat(chat_pb2.ChatRequest()), stub.StreamChat(chat_pb2.ChatRequest()).read()):
            error = await failure(call)
            assert isinstance(error, InvalidRequest)
            assert [violation.field for violation in error.violations] == ["messages"]
        upload = FileStub(channel).UploadFile(iter([file_pb2.UploadFileRequest()]))
        assert isinstance(await failure(upload), InvalidRequest)
    assert chats.calls == []
    assert not chats.ended.is_set()


async def test_what_a_service_validated_is_not_validated_again() -> None:
    chats = Chats()
    broken = chat_pb2.ChatRequest()
    async with served(chats) as (channel, _):
        assert (await ChatStub(channel).Chat(broken, metadata=[VALIDATED])).response_id == "r"
        assert isinstance(await failure(ChatStub(channel).Chat(broken)), InvalidRequest)
    # Where callers come from outside, nobody is believed.
    async with served(chats, authenticate=authenticate) as (channel, _):
        call = ChatStub(channel).Chat(broken, metadata=[VALIDATED, ("authorization", "Bearer good")])
        assert isinstance(await failure(call), InvalidRequest)
    assert len(chats.calls) == 1


async def test_bytes_that_are_no_message_are_the_callers_fault(caplog: pytest.LogCaptureFixture) -> None:
    chats = Chats()
    async with served(chats) as (channel, _):
        for data in (b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0b" * 100_000):
            error = await failure(channel.unary_unary("/maestro.llm.v1.ChatService/Chat")(data))
            assert isinstance(error, InvalidRequest)
            assert "maestro.llm.v1.ChatRequest" in error.message
    assert chats.calls == []
    assert not caplog.records


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


# What it doesn't implement answers UNIMPLEMENTED, as with the files above.
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
