"""The server under test: its stubs, the model that is asked, and exchanges with it that never raise."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Awaitable, Collection, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import grpc
from google.rpc import error_details_pb2, status_pb2

from maestro.llm.v1.batch_pb2_grpc import BatchServiceStub
from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, ChatResponse, CountTokensRequest, CountTokensResponse
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.embedding_pb2_grpc import EmbeddingServiceStub
from maestro.llm.v1.file_pb2_grpc import FileServiceStub
from maestro.llm.v1.message_pb2 import Part
from maestro.llm.v1.model_pb2 import Feature, GetInfoRequest, GetInfoResponse, ListModelsRequest, Model, Support
from maestro.llm.v1.model_pb2_grpc import ModelServiceStub
from maestro_sdk.adapter.fold import fold
from maestro_sdk.conformance.outcome import Broken, expect
from maestro_sdk.errors import STATUS_DETAILS_KEY, MaestroError, Violation
from maestro_sdk.service.peer import NOBODY, Peer

if TYPE_CHECKING:
    from maestro.llm.v1.batch_pb2_grpc import BatchServiceAsyncStub
    from maestro.llm.v1.chat_pb2_grpc import ChatServiceAsyncStub
    from maestro.llm.v1.embedding_pb2_grpc import EmbeddingServiceAsyncStub
    from maestro.llm.v1.file_pb2_grpc import FileServiceAsyncStub
    from maestro.llm.v1.model_pb2_grpc import ModelServiceAsyncStub

Answer = TypeVar("Answer")

TIMEOUT = 60.0
"""Seconds that one answer may take, unless told otherwise."""
_PAUSES = (0.01, 0.1, 0.5)
"""Seconds between two messages that are sent, at each attempt."""
_PATIENCE = 10.0
"""Seconds for connecting, and for what a server tells without a model."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """The status of a call that failed, with its details as they travelled."""

    code: grpc.StatusCode
    message: str
    info: error_details_pb2.ErrorInfo | None
    violations: Sequence[Violation]
    retry_after: float | None = None
    """Seconds of `RetryInfo`; None without one."""

    def __str__(self) -> str:
        reason = f" {self.info.reason}" if self.info else " without ErrorInfo"
        return f"{self.code.name}{reason}: {self.message[:200]}"


@dataclass(slots=True)
class Exchange:
    """One streamed answer as it came: `messages` of events, and the `refusal` that ended it, None for OK."""

    label: str
    request: ChatRequest
    messages: list[list[ChatEvent]] = field(default_factory=list[list[ChatEvent]])
    refusal: Refusal | None = None

    @property
    def events(self) -> list[ChatEvent]:
        """All events in order."""
        return [event for message in self.messages for event in message]

    @property
    def kinds(self) -> list[str]:
        """The kind of each event."""
        return [event.WhichOneof("kind") or "nothing" for event in self.events]

    def answer(self) -> ChatResponse:
        """The folded answer. Raises `Broken` when there is none."""
        if self.refusal is not None:
            raise Broken(f"the call ended with {self.refusal}", self.label)
        try:
            return fold(self.events)
        except MaestroError as error:
            raise Broken(f"the events make no answer: {error.message}", self.label) from error

    def at(self, number: int) -> str:
        """The place of an event, counted from 1."""
        return f"{self.label}, event {number + 1} ({self.kinds[number]})"


class Target:
    """An address and one of its models. Made by `open_target`."""

    def __init__(self, address: str, channel: grpc.aio.Channel, timeout: float, key: str = "") -> None:
        self.address = address
        self.channel = channel
        self.timeout = timeout
        self.metadata: tuple[tuple[str, str], ...] = (("authorization", f"Bearer {key}"),) if key else ()
        self.chat: ChatServiceAsyncStub = ChatServiceStub(channel)
        self.models: ModelServiceAsyncStub = ModelServiceStub(channel)
        self.embeddings: EmbeddingServiceAsyncStub = EmbeddingServiceStub(channel)
        self.files: FileServiceAsyncStub = FileServiceStub(channel)
        self.batches: BatchServiceAsyncStub = BatchServiceStub(channel)
        self.model: Model | None = None
        """The model that is asked; None when the server tells none."""
        self.info: GetInfoResponse | None = None
        self.reachable = False
        """Whether anything listens at the address."""
        self.trouble = ""
        """Why there is no model."""
        self._exchanges: dict[str, asyncio.Task[Exchange]] = {}

    @property
    def asked(self) -> Model:
        """The model that is asked. Raises `Broken` without one."""
        if self.model is None:
            raise Broken(self.trouble or "the server has no model", "ListModels")
        return self.model

    def support(self, kind: Feature.ValueType) -> Support.ValueType:
        """How the model claims to meet a feature."""
        for entry in self.model.features if self.model is not None else ():
            if entry.feature == kind:
                return entry.support or Support.SUPPORT_NONE
        return Support.SUPPORT_NONE

    def claims(self, kind: Feature.ValueType) -> bool:
        """Whether the model claims a feature, natively or by a polyfill."""
        return self.support(kind) in {Support.SUPPORT_NATIVE, Support.SUPPORT_POLYFILLED}

    def expect_marked(self, kind: Feature.ValueType, parts: Sequence[Part], where: str) -> None:
        """Raises `Broken` unless the parts say truly whether a polyfill made them."""
        polyfilled = self.support(kind) == Support.SUPPORT_POLYFILLED
        for part in parts:
            if part.polyfilled != polyfilled:
                claim = Support.Name(self.support(kind))
                raise Broken(f"the feature is {claim}, its part says polyfilled={part.polyfilled}", where)

    async def stream(self, request: ChatRequest, label: str) -> Exchange:
        """Asks by StreamChat; the exchange ends at the latest after the target's timeout."""
        exchange = Exchange(f"StreamChat “{label}”", self._addressed(request))
        try:
            async for message in self.chat.StreamChat(exchange.request, timeout=self.timeout, metadata=self.metadata):
                exchange.messages.append(list(message.events))
        except grpc.aio.AioRpcError as error:
            exchange.refusal = refusal_of(error)
        return exchange

    async def recorded(self, label: str, request: ChatRequest) -> Exchange:
        """The exchange of that label: asked for once, however many cases look at it."""
        task = self._exchanges.get(label)
        if task is None:
            task = self._exchanges[label] = asyncio.ensure_future(self.stream(request, label))
        return await asyncio.shield(task)

    async def ask(self, request: ChatRequest, label: str) -> ChatResponse:
        """The folded answer of a stream. Raises `Broken`."""
        return (await self.stream(request, label)).answer()

    async def whole(self, request: ChatRequest, timeout: float | None = None) -> ChatResponse | Refusal:
        """Asks by Chat."""
        try:
            return await self.chat.Chat(
                self._addressed(request), timeout=timeout or self.timeout, metadata=self.metadata
            )
        except grpc.aio.AioRpcError as error:
            return refusal_of(error)

    async def count(self, request: ChatRequest) -> CountTokensResponse | Refusal:
        """Asks by CountTokens."""
        try:
            asked = CountTokensRequest(request=self._addressed(request))
            return await self.chat.CountTokens(asked, timeout=self.timeout, metadata=self.metadata)
        except grpc.aio.AioRpcError as error:
            return refusal_of(error)

    async def attempt(self, call: Awaitable[Answer]) -> Answer | Refusal:
        """The answer of a unary call that was made with this target's `timeout` and `metadata`."""
        try:
            return await call
        except grpc.aio.AioRpcError as error:
            return refusal_of(error)

    async def send(self, method: Any, requests: Sequence[Any]) -> Any:
        """The answer of a call that sends several messages, or its `Refusal`."""
        found: Any = None
        for pause in _PAUSES:
            found, interrupted = await self._write(method, requests, pause)
            if not interrupted:
                break
        return found

    async def _write(self, method: Any, requests: Sequence[Any], pause: float) -> tuple[Any, bool]:
        """The answer or `Refusal`, and whether the call ended inside a write, where gRPC forgets the server's status.

        Written by hand and with pauses, so that a refusal of an early message is seen before the next one goes out.
        """
        call = method(timeout=self.timeout, metadata=self.metadata)
        try:
            with suppress(asyncio.InvalidStateError):
                for number, request in enumerate(requests):
                    if number:
                        await asyncio.sleep(pause)
                    await call.write(request)
                await call.done_writing()
        except grpc.aio.AioRpcError as error:
            return refusal_of(error), error.code() == grpc.StatusCode.INTERNAL
        return await self.attempt(call), False

    async def receive(self, method: Any, request: Any) -> tuple[list[Any], Refusal | None]:
        """All messages of a call that answers with several, and the refusal that ended it, None for OK."""
        messages: list[Any] = []
        try:
            async for message in method(request, timeout=self.timeout, metadata=self.metadata):
                messages.append(message)  # noqa: PERF401 - a comprehension would lose what came before a failure
        except grpc.aio.AioRpcError as error:
            return messages, refusal_of(error)
        return messages, None

    async def end(self) -> None:
        """Ends exchanges that nobody waits for any more."""
        for task in self._exchanges.values():
            task.cancel()
        await asyncio.gather(*self._exchanges.values(), return_exceptions=True)

    def _addressed(self, request: ChatRequest) -> ChatRequest:
        """The request for the model under test, unless it names its own."""
        copy = ChatRequest()
        copy.CopyFrom(request)
        copy.model = copy.model or self.asked.id
        return copy


@asynccontextmanager
async def open_target(
    address: str, *, model: str = "", timeout: float = TIMEOUT, key: str = "", peer: Peer = NOBODY
) -> AsyncGenerator[Target]:
    """Connects to "host:port" and chooses the model: the named one, else the one that chats with most features.

    Where none chats it is the one with most features.

    A server that can't be reached or has no such model gives a target without one: every case then says so. `timeout`
    in seconds per answer, `key` for a server that wants one (the gateway), `peer` for one that answers only its mesh.
    """
    async with peer.open_channel(address) as channel:
        target = Target(address, channel, timeout, key)
        try:
            async with asyncio.timeout(min(timeout, _PATIENCE)):
                await channel.channel_ready()
            target.reachable = True
        except TimeoutError:
            target.trouble = f"nothing answers at {address}"
        if target.reachable:
            await _look_around(target, model)
        try:
            yield target
        finally:
            await target.end()


async def _look_around(target: Target, model: str) -> None:
    """Asks the server for itself and its models. What goes wrong is for the cases to tell."""
    with suppress(grpc.aio.AioRpcError):
        target.info = await target.models.GetInfo(GetInfoRequest(), timeout=_PATIENCE, metadata=target.metadata)
    try:
        listed = await target.models.ListModels(ListModelsRequest(), timeout=_PATIENCE, metadata=target.metadata)
    except grpc.aio.AioRpcError as error:
        target.trouble = f"ListModels ended with {refusal_of(error)}"
        return
    target.model = _choose(listed.models, model)
    if target.model is None:
        known = ", ".join(found.id for found in listed.models) or "none"
        target.trouble = f"there is no model {model!r}; there are: {known}" if model else "the server has no model"


def _choose(models: Sequence[Model], wanted: str) -> Model | None:
    if wanted:
        return next((model for model in models if wanted in {model.id, model.name}), None)
    chatting = [model for model in models if any(entry.feature == Feature.FEATURE_CHAT for entry in model.features)]
    return max(chatting or models, key=lambda model: len(model.features), default=None)


def refusal_of(error: grpc.aio.AioRpcError) -> Refusal:
    """The status behind a failed call, read without any guess."""
    info: error_details_pb2.ErrorInfo | None = None
    violations: list[Violation] = []
    retry_after: float | None = None
    for name, value in error.trailing_metadata() or ():
        if name != STATUS_DETAILS_KEY or not isinstance(value, bytes):
            continue
        for detail in status_pb2.Status.FromString(value).details:
            if detail.Unpack(found := error_details_pb2.ErrorInfo()):
                info = found
            elif detail.Unpack(bad := error_details_pb2.BadRequest()):
                violations += [Violation(entry.field, entry.description) for entry in bad.field_violations]
            elif detail.Unpack(retry := error_details_pb2.RetryInfo()):
                retry_after = retry.retry_delay.ToNanoseconds() / 1e9
    return Refusal(error.code(), error.details() or "", info, violations, retry_after)


def expect_refused(
    found: object,
    where: str,
    codes: Collection[grpc.StatusCode],
    *,
    reasons: Collection[str] = (),
    path: str = "",
) -> Refusal:
    """Raises `Broken` unless the call was refused so: a status, a reason of `ErrorInfo` and the path of a field."""
    if not isinstance(found, Refusal):
        raise Broken("it succeeded", where)
    expect(found.code in codes, str(found), where)
    if reasons:
        expect(found.info is not None and found.info.reason in reasons, str(found), where)
    if path:
        fields = [violation.field for violation in found.violations]
        expect(path in fields, f"field_violations name {', '.join(fields) or 'nothing'}, not {path}", where)
    return found
