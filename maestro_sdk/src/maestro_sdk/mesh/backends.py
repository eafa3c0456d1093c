"""Connections to backends: one channel per adapter address, kept as long as the table names it."""

from __future__ import annotations

from typing import Protocol

import grpc

from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse, StreamChatResponse
from maestro_sdk.mesh.table import Backend, Table
from maestro_sdk.service.channel import open_channel
from maestro_sdk.service.validation import VALIDATED
from maestro_sdk.tracing import outgoing_metadata

_CHAT = "/maestro.llm.v1.ChatService/Chat"
_STREAM_CHAT = "/maestro.llm.v1.ChatService/StreamChat"


class ChatCall(Protocol):
    """A running stream. `read` gives the next message, anything else at the end, and raises `AioRpcError`."""

    async def read(self) -> StreamChatResponse | object:
        """The next message."""
        ...

    def cancel(self) -> bool:
        """Ends the call; the adapter closes the provider's socket."""
        ...


class _Adapter:
    __slots__ = ("channel", "chat", "stream_chat")

    def __init__(self, address: str) -> None:
        self.channel = open_channel(address)
        self.chat = self.channel.unary_unary(_CHAT, ChatRequest.SerializeToString, ChatResponse.FromString)
        self.stream_chat = self.channel.unary_stream(
            _STREAM_CHAT, ChatRequest.SerializeToString, StreamChatResponse.FromString
        )


class Backends:
    """Remote backends by address. They trust that the requests of chats were validated, as every front door does."""

    def __init__(self) -> None:
        self._adapters: dict[str, _Adapter] = {}

    async def chat(self, backend: Backend, request: ChatRequest, timeout: float | None) -> ChatResponse:
        """The whole answer. Raises `grpc.aio.AioRpcError`; cancelling the awaiting task cancels the call."""
        adapter = self._adapters.get(backend.address) or self._connect(backend.address)
        return await adapter.chat(request, timeout=timeout, metadata=(*outgoing_metadata(), VALIDATED))

    def stream_chat(self, backend: Backend, request: ChatRequest, timeout: float | None) -> ChatCall:
        """A running stream."""
        adapter = self._adapters.get(backend.address) or self._connect(backend.address)
        return adapter.stream_chat(request, timeout=timeout, metadata=(*outgoing_metadata(), VALIDATED))

    def channel(self, address: str) -> grpc.aio.Channel:
        """The channel to an adapter, for its other services."""
        return (self._adapters.get(address) or self._connect(address)).channel

    async def forget(self, table: Table) -> None:
        """Closes channels to addresses that `table` no longer names, once their calls have ended."""
        alive = {backend.address for backend in table.backends.values()}
        for address in [known for known in self._adapters if known not in alive]:
            await self._adapters.pop(address).channel.close(grace=600.0)

    async def close(self) -> None:
        """Closes all channels."""
        for adapter in self._adapters.values():
            await adapter.channel.close()
        self._adapters.clear()

    def _connect(self, address: str) -> _Adapter:
        adapter = self._adapters[address] = _Adapter(address)
        return adapter
