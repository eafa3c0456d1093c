"""A streamed answer as the caller sees it: events until the contract's last one, an error otherwise, closed whenever he
likes.
"""

from __future__ import annotations

import asyncio
import contextlib
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Any, Generic, NoReturn, Self, TypeVar

import grpc.aio
from google.protobuf.message import Message

from maestro_sdk.connection import Connection, being_cancelled
from maestro_sdk.errors import Cancelled, MaestroError, StreamBroken

EventT = TypeVar("EventT")


class EventStream(ABC, Generic[EventT]):
    """An asynchronous iterator of events, and a context manager that cancels what is left.

    It ends by itself only after the answer's last event; any other end raises a `MaestroError`, again on every further
    read. Cancelling a read cancels the call. Dropping the stream cancels the call too.
    """

    def __init__(
        self,
        connection: Connection,
        path: str,
        request: Message,
        message: type[Message],
        *,
        timeout: float | None,
        request_id: str,
    ) -> None:
        self._connection = connection
        self._loop = asyncio.get_running_loop()
        self._call, self.request_id = connection.open(path, request, message, timeout=timeout, request_id=request_id)
        self._waiting: deque[EventT] = deque()
        self._over = False
        self._cancelled = False
        self._failure: MaestroError | None = None

    _call: Any = None

    @abstractmethod
    def _take(self, message: Any) -> Sequence[EventT]:
        """The events of a message, noted down. Raises `StreamBroken` for what the contract forbids."""

    async def _go_on(self, failure: MaestroError) -> Any | None:
        """The call that goes on with the stream after `failure`; None when none does."""
        del failure
        return None

    @property
    @abstractmethod
    def complete(self) -> bool:
        """Whether the last event was received."""

    async def read(self) -> Sequence[EventT]:
        """The events that arrived together, as soon as there are any; empty after the end. Iterating gives them one by
        one.
        """
        if self._failure is not None:
            raise self._failure
        while not self._over:
            try:
                message = await self._call.read()
            except grpc.aio.AioRpcError as error:
                failure = self._connection.meaning(error, self.request_id)
                if (call := await self._go_on(failure)) is not None:
                    self._call = call
                    continue
                self._failure = failure
                raise failure from error
            except asyncio.CancelledError:
                ours = self._cancelled or self._connection.closed
                self.cancel()
                if not ours or being_cancelled():
                    raise
                self._failure = Cancelled("the stream was closed", metadata={"request_id": self.request_id})
                raise self._failure from None
            if message is grpc.aio.EOF:
                self._over = True
                if not self.complete:
                    self._fail(StreamBroken("the answer ended without its last event"))
                break
            try:
                events = self._take(message)
            except StreamBroken as error:
                self._fail(error)
            if events:
                return events
        return ()

    def cancel(self) -> None:
        """Ends the call at once, unless it has ended. Further reads raise `Cancelled`."""
        if not self._over:
            self._cancelled = True
            self._waiting.clear()
            self._call.cancel()

    async def aclose(self) -> None:
        """`cancel`, under the name that `contextlib.aclosing` knows."""
        self.cancel()

    def __del__(self) -> None:
        # gRPC itself lets a dropped stream run on. Whoever collects it may be in another thread, or after the loop.
        if self._call is not None and not self._over:
            with contextlib.suppress(RuntimeError):
                self._loop.call_soon_threadsafe(self._call.cancel)

    async def _drain(self) -> None:
        self._waiting.clear()
        while await self.read():
            pass

    def _fail(self, error: MaestroError) -> NoReturn:
        self.cancel()
        error.metadata.setdefault("request_id", self.request_id)
        self._failure = error
        raise error

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> EventT:
        if not self._waiting:
            self._waiting.extend(await self.read())
            if not self._waiting:
                raise StopAsyncIteration
        return self._waiting.popleft()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
