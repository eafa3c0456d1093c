"""Connections to backends: one channel per adapter address, kept as long as the table names it."""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import replace
from typing import Any, Protocol

import grpc

from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse, StreamChatResponse
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro_sdk.mesh.keyed import KeyedStream, KeyedWhole, StandingKeys, part_key
from maestro_sdk.mesh.table import Backend, Table
from maestro_sdk.service.peer import NOBODY, Peer
from maestro_sdk.service.validation import VALIDATED
from maestro_sdk.tracing import current_call, outgoing_metadata

_CHAT = "/maestro.llm.v1.ChatService/Chat"
_STREAM_CHAT = "/maestro.llm.v1.ChatService/StreamChat"
_EMBED = "/maestro.llm.v1.EmbeddingService/Embed"


class ChatCall(Protocol):
    """A running stream. `read` gives the next message, anything else at the end, and raises `AioRpcError`."""

    async def read(self) -> StreamChatResponse | object:
        """The next message."""
        ...

    def cancel(self) -> bool:
        """Ends the call; the adapter closes the provider's socket."""
        ...

    def done(self) -> bool:
        """Whether its status is there: `read` gives it without waiting."""
        ...


class WholeCall(Protocol):
    """A running unary call. Awaiting it gives the answer or raises `AioRpcError`; a cancelled wait cancels the call."""

    def __await__(self) -> Generator[Any, None, ChatResponse]:
        """The answer."""
        ...

    def cancel(self) -> bool:
        """Ends the call; the adapter closes the provider's socket."""
        ...


class EmbedCall(Protocol):
    """A running call for vectors; as a `WholeCall`."""

    def __await__(self) -> Generator[Any, None, EmbedResponse]:
        """The answer."""
        ...


class _Adapter:
    __slots__ = ("channel", "chat", "embed", "stream_chat")

    def __init__(self, address: str, peer: Peer) -> None:
        self.channel = peer.open_channel(address)
        self.chat = self.channel.unary_unary(_CHAT, ChatRequest.SerializeToString, ChatResponse.FromString)
        self.stream_chat = self.channel.unary_stream(
            _STREAM_CHAT, ChatRequest.SerializeToString, StreamChatResponse.FromString
        )
        self.embed = self.channel.unary_unary(_EMBED, EmbedRequest.SerializeToString, EmbedResponse.FromString)


class Backends:
    """Remote backends by address. They trust that the requests of chats were validated, as every front door does."""

    def __init__(self, peer: Peer = NOBODY) -> None:
        """`peer` is what this process shows the adapters."""
        self._peer = peer
        self._adapters: dict[str, _Adapter] = {}
        self.standing = StandingKeys(lambda backend: self.channel(backend.address))
        """Calls with a key, which would outlive this process at their adapters."""

    def chat(self, backend: Backend, request: ChatRequest, timeout: float | None) -> WholeCall:
        """A running unary call."""
        adapter = self._adapters.get(backend.address) or self._connect(backend.address)
        call = adapter.chat(request, timeout=timeout, metadata=(*outgoing_metadata(), VALIDATED))
        if (current := current_call()) is not None and current.key:
            return KeyedWhole(call, self.standing.of(backend, current))
        return call

    def stream_chat(self, backend: Backend, request: ChatRequest, timeout: float | None) -> ChatCall:
        """A running stream."""
        adapter = self._adapters.get(backend.address) or self._connect(backend.address)
        call = adapter.stream_chat(request, timeout=timeout, metadata=(*outgoing_metadata(), VALIDATED))
        if (current := current_call()) is not None and current.key:
            return KeyedStream(call, self.standing.of(backend, current))
        return call

    def channel(self, address: str) -> grpc.aio.Channel:
        """The channel to an adapter, for its other services."""
        return (self._adapters.get(address) or self._connect(address)).channel

    def embed(self, backend: Backend, request: EmbedRequest, timeout: float | None, part: int = 0) -> EmbedCall:
        """A running call for vectors: `part` of a request whose inputs go in several calls, each with its own key."""
        adapter = self._adapters.get(backend.address) or self._connect(backend.address)
        current = current_call()
        if current is None or not current.key:
            return adapter.embed(request, timeout=timeout, metadata=(*outgoing_metadata(), VALIDATED))
        keyed = replace(current, key=part_key(current.key, part))
        call = adapter.embed(request, timeout=timeout, metadata=(*keyed.metadata(), VALIDATED))
        return KeyedWhole(call, self.standing.of(backend, keyed))

    async def forget(self, table: Table) -> None:
        """Closes channels to addresses that `table` no longer names, once their calls have ended."""
        alive = {backend.address for backend in table.backends.values()}
        for address in [known for known in self._adapters if known not in alive]:
            await self._adapters.pop(address).channel.close(grace=600.0)

    async def close(self) -> None:
        """Closes all channels."""
        await self.standing.close()
        for adapter in self._adapters.values():
            await adapter.channel.close()
        self._adapters.clear()

    def _connect(self, address: str) -> _Adapter:
        adapter = self._adapters[address] = _Adapter(address, self._peer)
        return adapter
