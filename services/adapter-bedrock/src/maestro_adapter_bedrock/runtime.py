"""Bedrock's runtime in one region: signed POSTs, as one document or as a stream."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any, TypeVar
from uuid import uuid4

import orjson

from maestro_adapter_bedrock.access import Access
from maestro_adapter_bedrock.failure import refuses_keys, to_error
from maestro_adapter_bedrock.settings import BedrockSettings
from maestro_sdk.adapter.http import HttpWire
from maestro_sdk.errors import ProviderAuth

REQUEST_ID = "x-amzn-requestid"

Answer = TypeVar("Answer")


class Heard:
    """The headers of an answer, by lower-case names."""

    __slots__ = ("headers",)

    def __init__(self) -> None:
        self.headers: Mapping[str, str] = {}

    def hear(self, headers: Mapping[str, str]) -> None:
        """Takes them."""
        self.headers = {name.lower(): value for name, value in headers.items()}

    @property
    def response_id(self) -> str:
        """The answer's identifier, which AWS's support asks for; one of our own where a server gives none."""
        return self.headers.get(REQUEST_ID) or uuid4().hex


class Runtime:
    """Connections to the runtime's endpoint. Errors are those of the contract."""

    def __init__(self, base_url: str, access: Access, settings: BedrockSettings) -> None:
        self.wire = HttpWire(
            base_url,
            {"user-agent": "maestro-adapter-bedrock"},
            to_error,
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
        )
        self._base_url = base_url
        self._access = access

    @asynccontextmanager
    async def open(self, path: str, body: bytes, heard: Heard) -> AsyncGenerator[AsyncIterator[bytes]]:
        """The answer's bytes as they come; see `HttpWire.stream`."""
        async with AsyncExitStack() as stack:
            yield await self._try(
                path,
                body,
                lambda headers: stack.enter_async_context(self.wire.stream(path, body, headers, heard.hear)),
            )

    async def post(self, path: str, value: Any, heard: Heard | None = None) -> bytes:
        """The answer to `value` as JSON; fragments of orjson may be in it."""
        body = orjson.dumps(value)
        hear = heard.hear if heard else None
        return await self._try(path, body, lambda headers: self.wire.post(path, body, headers, hear))

    async def _try(self, path: str, body: bytes, call: Callable[[Mapping[str, str]], Awaitable[Answer]]) -> Answer:
        """Calls, and once more when the keys are refused and there are others by now."""
        url = self._base_url + path
        headers = await self._access.headers(url, body)
        try:
            return await call(headers)
        except ProviderAuth as error:
            if not refuses_keys(error) or not await self._access.renew(headers):
                raise
        return await call(await self._access.headers(url, body))
