"""Calls of Google's APIs with a token: one that is refused is replaced once, since it may have been revoked."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import TypeVar

from maestro_adapter_vertex.credentials import Token, TokenSource
from maestro_sdk.adapter.http import HttpWire
from maestro_sdk.errors import ProviderAuth

Answer = TypeVar("Answer")


class Api:
    """One address of Google's, and the tokens for it."""

    def __init__(self, wire: HttpWire, tokens: TokenSource) -> None:
        self._wire = wire
        self._tokens = tokens

    async def post(self, path: str, data: bytes) -> bytes:
        """The answer's body; see `HttpWire.post`."""
        return await self._try(lambda headers: self._wire.post(path, data, headers))

    async def get(self, path: str) -> bytes:
        """The answer's body; see `HttpWire.get`."""
        return await self._try(lambda headers: self._wire.get(path, headers))

    @asynccontextmanager
    async def open(self, path: str, data: bytes) -> AsyncGenerator[AsyncIterator[bytes]]:
        """The answer's bytes as they come; see `HttpWire.stream`."""
        async with AsyncExitStack() as stack:
            yield await self._try(
                lambda headers: stack.enter_async_context(self._wire.stream(path, data, headers)),
            )

    async def close(self) -> None:
        """Closes all connections."""
        await self._wire.close()

    async def _try(self, call: Callable[[Mapping[str, str]], Awaitable[Answer]]) -> Answer:
        token = await self._tokens.get()
        try:
            return await call(token.headers())
        except ProviderAuth as error:
            again = await self._renew(token, error)
        return await call(again.headers())

    async def _renew(self, token: Token, error: ProviderAuth) -> Token:
        """Another token after one was refused. Raises `error` when that can't be the cause."""
        if error.metadata.get("upstream_status") != "401" or not self._tokens.renewable:
            raise error
        self._tokens.drop(token)
        return await self._tokens.get()
