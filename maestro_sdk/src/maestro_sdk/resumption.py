"""Takes up a resumable stream whose connection, or whose gateway, is lost."""

from __future__ import annotations

import asyncio
import time
from typing import Any

import grpc

from maestro.gateway.v1.stream_pb2 import ResumeChatRequest
from maestro.llm.v1.chat_pb2 import ChatRequest, StreamChatResponse
from maestro_sdk.connection import Connection
from maestro_sdk.errors import MaestroError, NotFound

_RESUME = "/maestro.gateway.v1.StreamService/ResumeChat"
_STREAM_CHAT = "/maestro.llm.v1.ChatService/StreamChat"
_FIRST, _LONGEST = 0.05, 1.0
"""Seconds between two tries: doubled from one to the next."""
_PATIENCE = 30.0
"""Seconds without an event after which nothing is tried any more: no gateway keeps it longer without a reader."""


class Resumption:
    """What one client has of one stream, and how it gets the rest."""

    def __init__(self, connection: Connection, request: ChatRequest, timeout: float | None, request_id: str) -> None:
        """`request_id` is that of the call that began it, and the name of the stream."""
        self._connection = connection
        self._request = ChatRequest()
        self._request.CopyFrom(request)
        self._timeout = timeout
        self._request_id = request_id
        self._count = 0
        self._pause = _FIRST
        self._heard = time.monotonic()

    def note(self, message: StreamChatResponse) -> None:
        """Events arrived."""
        self._count += len(message.events)
        self._pause, self._heard = _FIRST, time.monotonic()

    async def go_on(self, failure: MaestroError) -> Any | None:
        """A call with the rest of the stream; None when the stream itself ended, or nothing can be done."""
        if failure.metadata.get("stream") == "over" or time.monotonic() - self._heard > _PATIENCE:
            return None
        path, request = _RESUME, ResumeChatRequest(stream=self._request_id, after=self._count)
        if isinstance(failure, NotFound) and not self._count:
            # It was lost before it began. Should it have begun after all, the same id finds it.
            path, request = _STREAM_CHAT, self._request
        elif failure.code is not grpc.StatusCode.UNAVAILABLE:
            return None
        await asyncio.sleep(self._pause)
        self._pause = min(_LONGEST, 2 * self._pause)
        call, _ = self._connection.open(
            path, request, StreamChatResponse, timeout=self._timeout, request_id=self._request_id
        )
        return call
