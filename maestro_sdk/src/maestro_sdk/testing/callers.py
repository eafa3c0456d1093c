"""A caller of the mesh as the world sees it: plain HTTP, server-sent events, WebSocket, with a key.

async with Caller(mesh.url, "mk-test") as caller:
    answer = await caller.chat("hello", model="local/offline")
    async with caller.stream(question("hello")) as events:
        async for event in events: ...
"""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

import aiohttp
import orjson


@dataclass(frozen=True, slots=True)
class Answered:
    """An HTTP answer; header names are lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """The body as JSON."""
        return orjson.loads(self.body)

    @property
    def error(self) -> dict[str, Any]:
        """The error of a refusal."""
        found: dict[str, Any] = self.json()["error"]
        return found


@dataclass(frozen=True, slots=True)
class Arrived:
    """One server-sent event: `data` as text, `at` is `time.monotonic()` of the read that completed it."""

    name: str
    data: str
    number: str = ""
    at: float = field(default_factory=time.monotonic)

    def json(self) -> Any:
        """The data as JSON."""
        return orjson.loads(self.data)


class Caller:
    """One client with its own connections; `key` may be None. An async context manager."""

    def __init__(self, url: str, key: str | None) -> None:
        self.url = url
        self.key = key
        self._session: aiohttp.ClientSession | None = None

    @property
    def session(self) -> aiohttp.ClientSession:
        """The HTTP session, which carries the key."""
        if self._session is None:
            headers = {"authorization": f"Bearer {self.key}"} if self.key else {}
            timeout = aiohttp.ClientTimeout(total=None, sock_read=30)
            self._session = aiohttp.ClientSession(self.url, headers=headers, timeout=timeout)
        return self._session

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """gRPC metadata with the key."""
        return (("authorization", f"Bearer {self.key}"),) if self.key else ()

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> Answered:
        """A GET."""
        return await self._send("GET", path, None, headers)

    async def post(self, path: str, body: Any, headers: Mapping[str, str] | None = None) -> Answered:
        """A POST of bytes as they are, of anything else as JSON."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        return await self._send("POST", path, data, headers)

    async def chat(self, body: Any) -> Answered:
        """One `POST /v1/chat`."""
        return await self.post("/v1/chat", body)

    @asynccontextmanager
    async def stream(self, body: Mapping[str, Any]) -> AsyncGenerator[AsyncIterator[Arrived]]:
        """The events of a streamed chat as they arrive, `[DONE]` included. Leaving early drops the connection.

        Raises `AssertionError` when the answer is no event stream.
        """
        data = orjson.dumps({**body, "stream": True})
        async with self.session.post("/v1/chat", data=data, headers=_JSON) as response:
            if response.content_type != "text/event-stream":
                raise AssertionError(f"no event stream: {response.status} {await response.text()}")
            try:
                yield _events(response)
            finally:
                # Not `release`: what was not read would keep the connection, and with it the answer, alive.
                response.close()

    async def collect(self, body: Mapping[str, Any]) -> list[Arrived]:
        """All events of a streamed chat."""
        async with self.stream(body) as events:
            return [event async for event in events]

    @asynccontextmanager
    async def socket(self, path: str = "/v1/chat/stream") -> AsyncGenerator[aiohttp.ClientWebSocketResponse]:
        """A WebSocket. Leaving it drops the connection."""
        async with self.session.ws_connect(path, max_msg_size=0) as socket:
            yield socket

    async def close(self) -> None:
        """Drops all connections; the next request opens a new one."""
        if self._session is not None:
            session, self._session = self._session, None
            await session.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def _send(self, method: str, path: str, data: bytes | None, headers: Mapping[str, str] | None) -> Answered:
        sent = {**(_JSON if data is not None else {}), **(headers or {})}
        async with self.session.request(method, path, data=data, headers=sent) as response:
            plain = {name.lower(): value for name, value in response.headers.items()}
            return Answered(response.status, plain, await response.read())


_JSON = {"content-type": "application/json"}


def question(text: str = "hello", **fields: Any) -> dict[str, Any]:
    """The body of a chat request with one message."""
    return {"messages": [{"role": "user", "content": text}], **fields}


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[Arrived]:
    """Reads events with their numbers, which the kit's parser drops."""
    buffer = b""
    while chunk := await response.content.readany():
        at = time.monotonic()
        *blocks, buffer = (buffer + chunk).split(b"\n\n")
        for block in blocks:
            fields: dict[str, str] = {}
            for line in block.decode().split("\n"):
                name, _, value = line.partition(": ")
                if name:
                    fields[name] = value
            if fields:
                yield Arrived(fields.get("event", ""), fields["data"], fields.get("id", ""), at)
    if buffer:
        raise AssertionError(f"the stream ended inside an event: {buffer!r}")
