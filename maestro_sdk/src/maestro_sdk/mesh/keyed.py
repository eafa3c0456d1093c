"""Calls of adapters that have a key: they stand there when this process dies, and end for real when it cancels them.

An adapter can't tell a caller that gives up from one that was killed: both hang up. So whoever cancels a call with a
key tells the adapter, too, unless another process shall take it up.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Generator
from dataclasses import replace
from typing import Any

import grpc

from maestro.llm.v1.chat_pb2 import StreamChatResponse
from maestro.llm.v1.standing_pb2 import (
    GetStandingCallRequest,
    GetStandingCallResponse,
    ReleaseStandingCallRequest,
    ReleaseStandingCallResponse,
)
from maestro_sdk.mesh.table import Backend
from maestro_sdk.tracing import Call

log = logging.getLogger(__name__)

_GET = "/maestro.llm.v1.StandingCallService/GetStandingCall"
_RELEASE = "/maestro.llm.v1.StandingCallService/ReleaseStandingCall"
_PATIENCE = 5.0
"""Seconds that an adapter has to answer."""

_PART = "#"
"""Stands between the key of a request and the number of its call."""

Release = Callable[[], None]
"""Tells the adapter that nobody will take up the call."""


def part_key(key: str, part: int) -> str:
    """The key of one of several calls that belong to the same request."""
    return f"{key}{_PART}{part}"


class StandingKeys:
    """What this process knows of the keys of its calls."""

    def __init__(self, channel: Callable[[Backend], grpc.aio.Channel]) -> None:
        self._channel = channel
        self._staying: set[str] = set()
        self._telling: set[asyncio.Task[None]] = set()

    def let_stand(self, key: str) -> None:
        """From now on calls with this key stay at their adapters when they are cancelled here."""
        self._staying.add(key)

    def forget(self, key: str) -> None:
        """Takes `let_stand` back."""
        self._staying.discard(key)

    def release(self, backend: Backend, call: Call) -> None:
        """Ends the call of `backend` that stands under the key of `call`. Nobody waits for that."""
        if call.key.partition(_PART)[0] in self._staying:
            return
        method = self._channel(backend).unary_unary(
            _RELEASE, ReleaseStandingCallRequest.SerializeToString, ReleaseStandingCallResponse.FromString
        )
        request = ReleaseStandingCallRequest(key=call.key, model=backend.model)
        task = asyncio.create_task(_tell(method(request, timeout=_PATIENCE, metadata=_metadata(call))))
        self._telling.add(task)
        task.add_done_callback(self._telling.discard)

    async def end(self, backend: Backend, call: Call) -> None:
        """As `release`, and waits until the adapter knows."""
        self.release(backend, call)
        if self._telling:
            await asyncio.wait(self._telling, timeout=_PATIENCE)

    async def stands(self, backend: Backend, call: Call) -> bool:
        """Whether the answer of `backend` under the key of `call` can be taken up; then it is kept for a while."""
        method = self._channel(backend).unary_unary(
            _GET, GetStandingCallRequest.SerializeToString, GetStandingCallResponse.FromString
        )
        request = GetStandingCallRequest(key=call.key, model=backend.model)
        try:
            await method(request, timeout=_PATIENCE, metadata=_metadata(call))
        except grpc.aio.AioRpcError as error:
            # An adapter that knows nothing of keys says UNIMPLEMENTED.
            log.info("%s: nothing stands at %s: %s", call.request_id, backend.id, error.code().name)
            return False
        return True

    def of(self, backend: Backend, call: Call) -> Release:
        """What releases that call."""
        return lambda: self.release(backend, call)

    async def close(self) -> None:
        """Waits until adapters were told what they have to know."""
        if self._telling:
            await asyncio.wait(self._telling, timeout=_PATIENCE)


class KeyedStream:
    """A running stream with a key; a `ChatCall`."""

    __slots__ = ("_call", "_release", "_released")

    def __init__(self, call: Any, release: Release) -> None:
        self._call = call
        self._release = release
        self._released = False

    async def read(self) -> StreamChatResponse | object:
        """The next message."""
        return await self._call.read()

    def done(self) -> bool:
        """Whether its status is there."""
        return self._call.done()

    def cancel(self) -> bool:
        """Ends the call, at the adapter too; one that is over stands there for a while."""
        # A read that was cancelled has cancelled the call by itself.
        over = self._call.done() and not self._call.cancelled()
        cancelled: bool = self._call.cancel()
        if not over and not self._released:
            self._released = True
            self._release()
        return cancelled


class KeyedWhole:
    """A running unary call with a key; a `WholeCall` or an `EmbedCall`."""

    __slots__ = ("_call", "_release")

    def __init__(self, call: Any, release: Release) -> None:
        self._call = call
        self._release = release

    def __await__(self) -> Generator[Any, None, Any]:
        waiting: Generator[Any, Any, Any] = self._call.__await__()
        try:
            answer = yield from waiting
        except asyncio.CancelledError:
            self._release()
            raise
        return answer

    def cancel(self) -> bool:
        """Ends the call, at the adapter too; one that is over stands there for a while."""
        if not self._call.cancel():
            return False
        self._release()
        return True


def _metadata(call: Call) -> tuple[tuple[str, str], ...]:
    """The call without its key: what is said of it is no call that stands."""
    return replace(call, key="").metadata()


async def _tell(call: Any) -> None:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        log.debug("an adapter was not told that a call is over: %s", error.code().name)
