"""Attempts under way: a call, and what is known of its answer so far."""

from __future__ import annotations

import asyncio

import grpc

from maestro.llm.v1.chat_pb2 import ChatResponse, StreamChatResponse
from maestro_sdk.errors import MaestroError, Timeout, from_rpc_error
from maestro_sdk.mesh.backends import ChatCall, WholeCall
from maestro_sdk.mesh.course import NO_REASON, Course, broken
from maestro_sdk.mesh.silence import Silence
from maestro_sdk.mesh.table import Policy
from maestro_sdk.mesh.trail import Attempt


class StreamLeg:
    """An attempt whose answer comes piece by piece."""

    __slots__ = ("attempt", "call", "course", "silence")

    def __init__(self, attempt: Attempt, call: ChatCall, policy: Policy) -> None:
        self.attempt, self.call = attempt, call
        self.course = Course(attempt)
        self.silence = Silence(call, policy.first_event_timeout, policy.idle_timeout)

    async def head(self) -> StreamChatResponse:
        """All events up to the first content."""
        while isinstance(message := await self.call.read(), StreamChatResponse):
            if message.events and (batch := self.course.begin(message, self.silence.touch())) is not None:
                return batch
        raise self.course.end()

    def cancel(self) -> None:
        """Ends the call."""
        self.silence.stop()
        self.call.cancel()

    def verdict(self, error: BaseException) -> MaestroError:
        """What ended the attempt. Raises `error` when it was the caller who left."""
        try:
            return _judge(error, self.silence.timeout())
        finally:
            # Its traceback holds this frame: what holds each other waits for a collection, with all that hangs on it.
            del error


class WholeLeg:
    """An attempt whose answer comes as a whole."""

    __slots__ = ("attempt", "call")

    def __init__(self, attempt: Attempt, call: WholeCall) -> None:
        self.attempt, self.call = attempt, call

    async def head(self) -> ChatResponse:
        """The answer."""
        response = await self.call
        if not response.finish_reason:
            raise broken(NO_REASON)
        return response

    def cancel(self) -> None:
        """Ends the call."""
        self.call.cancel()

    def verdict(self, error: BaseException) -> MaestroError:
        """What ended the attempt. Raises `error` when it was the caller who left."""
        try:
            return _judge(error, None)
        finally:
            del error  # as above


def _judge(error: BaseException, timeout: Timeout | None) -> MaestroError:
    if timeout is not None:
        task = asyncio.current_task()
        if task is None or not task.cancelling():
            return timeout
    if isinstance(error, grpc.aio.AioRpcError):
        return from_rpc_error(error)
    if isinstance(error, MaestroError):
        return error
    try:
        # A call that this side cancelled reads like a cancelled task; without a timeout it is the task that was.
        raise error
    finally:
        del error  # as above
