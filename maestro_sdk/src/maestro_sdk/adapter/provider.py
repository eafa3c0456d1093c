"""The small interface that an adapter implements, and the optional ones that it may add."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from typing import Protocol, runtime_checkable

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro.llm.v1.model_pb2 import Model


class Provider(Protocol):
    """A source of answers: `name` of the adapter ("adapter-openai"), `providers` it speaks to ("openai", "azure")."""

    name: str
    providers: Sequence[str]

    def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        """Answers `request`: yields all events that one read from the provider brought, at once.

        The first event is `started`, the last one `finish`; `request.model` is "provider/name" of one of `models()`.
        Errors are raised as `maestro_sdk.errors.MaestroError`. Closing the iterator closes the provider's connection.
        """
        ...

    async def models(self) -> Sequence[Model]:
        """The models on offer now, with features and prices. Raises a `MaestroError` when it is out of reach."""
        ...

    async def check(self) -> str:
        """Why requests can't be answered now and what to do about it; empty when they can."""
        ...

    async def close(self) -> None:
        """Releases connections; called once, after the last request."""
        ...


@runtime_checkable
class Completer(Protocol):
    """A provider with a unary endpoint: cheaper than folding a stream."""

    async def complete(self, request: ChatRequest) -> Sequence[ChatEvent]:
        """Answers `request` with the same events that `stream` would yield, all at once."""
        ...


@runtime_checkable
class TokenCounter(Protocol):
    """A provider that counts tokens itself."""

    async def count_tokens(self, request: ChatRequest) -> int:
        """The input tokens of `request`, as the provider counts them."""
        ...
