"""An adapter that sends what it is told, whether the contract allows it or not."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    ChatRequest,
    ChatResponse,
    CountTokensRequest,
    CountTokensResponse,
    StreamChatResponse,
)
from maestro.llm.v1.chat_pb2_grpc import ChatServiceServicer
from maestro.llm.v1.model_pb2 import Model
from maestro_sdk.errors import Unimplemented
from maestro_sdk.testing.tables import model


class RawServicer(ChatServiceServicer):
    """An adapter without the kit's care: it sends `messages` as they are, then does what `then` does.

    `answer` is what it gives to a unary call.
    """

    def __init__(
        self,
        *messages: Sequence[ChatEvent],
        then: Callable[[], Any] | None = None,
        answer: ChatResponse | None = None,
        described: Model | None = None,
    ) -> None:
        self.messages, self.then, self.answer = messages, then, answer or ChatResponse()
        self.described = described or model("p1/m")
        self.requests: list[ChatRequest] = []
        self.abandoned = asyncio.Event()

    async def Chat(self, request: ChatRequest, context: Any) -> ChatResponse:
        self.requests.append(request)
        await self._end()
        return self.answer

    async def StreamChat(self, request: ChatRequest, context: Any) -> None:
        self.requests.append(request)
        for events in self.messages:
            await context.write(StreamChatResponse(events=events))
        await self._end()

    async def CountTokens(self, request: CountTokensRequest, context: Any) -> CountTokensResponse:
        raise Unimplemented("it can't count tokens")

    async def _end(self) -> None:
        try:
            if self.then is not None:
                await self.then()
        except asyncio.CancelledError:
            self.abandoned.set()
            raise
