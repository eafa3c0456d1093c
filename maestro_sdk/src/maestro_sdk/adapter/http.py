"""The one HTTP call of an adapter's hot path: a POST and, for streams, its bytes as they arrive, on aiohttp.

SDKs of the providers own credentials and auxiliary calls; their per-call overhead alone would exceed the budget of the
mesh. Transport failures become errors of the contract here, statuses through the adapter's pure `to_error`.
"""

from __future__ import annotations

import asyncio
import datetime
import email.utils
import math
import time
import urllib.request
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Mapping
from contextlib import aclosing, asynccontextmanager, suppress
from typing import cast

import aiohttp
from yarl import URL

from maestro_sdk.errors import MaestroError, StreamBroken, Timeout, UpstreamError

ToError = Callable[[int, bytes, Mapping[str, str]], MaestroError]
"""Maps a refused call: status, body, headers (lower-case names)."""
Hear = Callable[[Mapping[str, str]], None]
"""Takes the headers of an answer that was given; names in any case."""

_MOST_URLS = 1024
LINGER = 0.05
"""Seconds that a connection gets to end by itself after the answer has."""
_FAILURES = (TimeoutError, aiohttp.ClientError, OSError)
"""What the transport raises."""


class HttpWire:
    """Connections to one provider endpoint. One instance per provider, closed with it."""

    def __init__(
        self,
        base_url: str,
        headers: Mapping[str, str],
        to_error: ToError,
        *,
        connect_timeout: float = 5.0,
        read_timeout: float = 600.0,
    ) -> None:
        """`connect_timeout` and `read_timeout` (between two reads) in seconds; the caller's deadline bounds all."""
        self._base_url = base_url.rstrip("/")
        self._urls: dict[str, URL] = {}
        self._headers = dict(headers)
        self._to_error = to_error
        self._timeout = aiohttp.ClientTimeout(total=None, sock_connect=connect_timeout, sock_read=read_timeout)
        self._session: aiohttp.ClientSession | None = None

    async def post(
        self, path: str, body: bytes, headers: Mapping[str, str] | None = None, hear: Hear | None = None
    ) -> bytes:
        """The answer's body. Raises what `to_error` says for a status of 300 or more, or a transport error."""
        try:
            async with self._open().post(
                self._url(path), data=body, headers=headers, allow_redirects=False
            ) as response:
                content = await self._content(response)
                if hear is not None:
                    hear(response.headers)
                return content
        except _FAILURES as error:
            raise self._meaning(error) from error

    async def get(self, path: str, headers: Mapping[str, str] | None = None) -> bytes:
        """The answer's body of a GET, with the errors of `post`."""
        try:
            async with self._open().get(self._url(path), headers=headers, allow_redirects=False) as response:
                return await self._content(response)
        except _FAILURES as error:
            raise self._meaning(error) from error

    @asynccontextmanager
    async def stream(
        self, path: str, body: bytes, headers: Mapping[str, str] | None = None, hear: Hear | None = None
    ) -> AsyncGenerator[AsyncIterator[bytes]]:
        """The answer's bytes, each read as it comes. Leaving the context before the end closes the provider's socket.

        A stream that is cut or stalls raises `StreamBroken` or `Timeout` from the iterator.
        """
        try:
            async with self._open().post(
                self._url(path), data=body, headers=headers, allow_redirects=False
            ) as response:
                if response.status >= 300:
                    await self._content(response)
                if hear is not None:
                    hear(response.headers)
                # Closed here and not by the garbage collector: leaving early leaves nothing behind.
                async with aclosing(self._read(response)) as chunks:
                    yield chunks
        except _FAILURES as error:
            raise self._meaning(error) from error

    async def close(self) -> None:
        """Closes all connections."""
        if self._session is not None:
            await self._session.close()

    async def _content(self, response: aiohttp.ClientResponse) -> bytes:
        content = await response.read()
        # Nothing is followed: keys and prompts go where the configuration says, and nowhere else.
        if response.status >= 300:
            raise self._to_error(response.status, content, _plain(response.headers))
        return content

    def _meaning(self, error: Exception) -> MaestroError:
        """What a failure of the transport means in the contract."""
        match error:
            case TimeoutError():
                return Timeout(f"the provider at {self._base_url} did not answer in time")
            case aiohttp.ClientPayloadError():
                return StreamBroken("the provider's answer was cut")
            case _:
                return UpstreamError(f"the provider at {self._base_url} can't be reached: {_say(error)}")

    @staticmethod
    async def _read(response: aiohttp.ClientResponse) -> AsyncGenerator[bytes]:
        content = response.content
        try:
            while chunk := await content.readany():
                yield chunk
        except TimeoutError as error:
            raise Timeout("the provider's stream stalled") from error
        except (aiohttp.ClientError, OSError) as error:
            if unread := _unread(content):
                yield unread
            raise StreamBroken(f"the provider's stream was cut: {_say(error)}") from error

    def _open(self) -> aiohttp.ClientSession:
        # Made on first use: a session belongs to the loop that runs it.
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0, ttl_dns_cache=60, keepalive_timeout=60)
            self._session = aiohttp.ClientSession(
                connector=connector,
                headers={"content-type": "application/json", **self._headers},
                timeout=self._timeout,
                auto_decompress=True,
                skip_auto_headers=("User-Agent", "Accept-Encoding"),
                cookie_jar=aiohttp.DummyCookieJar(),
                proxy=_proxy(self._base_url),
            )
        return self._session

    def _url(self, path: str) -> URL:
        url = self._urls.get(path)
        if url is None:
            if len(self._urls) >= _MOST_URLS:
                self._urls.clear()  # Paths may hold identifiers: those of yesterday's batches are not asked for again.
            # What is percent-encoded stays so, letter by letter: a signature may cover it.
            url = self._urls[path] = URL(self._base_url + path, encoded="%" in path)
        return url


async def drain(chunks: AsyncIterator[bytes], linger: float = LINGER) -> None:
    """Reads a finished stream to its end, so that its connection is used again; a server may leave it open."""
    with suppress(TimeoutError, MaestroError):
        async with asyncio.timeout(linger):
            async for _ in chunks:
                pass


def _unread(content: aiohttp.StreamReader) -> bytes:
    """What arrived before a cut and was not read: words that the provider said, which the caller must not miss.

    aiohttp keeps these bytes, but its reader raises the cut first, also to one that was busy when both arrived.
    """
    content.set_exception(cast("BaseException", None))  # None is what a reader has before a failure.
    return content.read_nowait()


def _proxy(base_url: str) -> str | None:
    """The proxy that the environment names for `base_url`.

    aiohttp's own `trust_env` asks anew for each request, in a thread, and would let a netrc file replace our key.
    """
    url = URL(base_url)
    if urllib.request.proxy_bypass(url.host or ""):
        return None
    return urllib.request.getproxies().get(url.scheme)


def retry_after(headers: Mapping[str, str], now: float | None = None) -> float | None:
    """Seconds that a provider asks to wait: `retry-after-ms`, `x-ms-retry-after-ms`, `retry-after` (seconds or date).

    None when it doesn't say, or says something that is none of these. `now` is Unix time, for tests.
    """
    for name in ("retry-after-ms", "x-ms-retry-after-ms"):
        milliseconds = _seconds(headers.get(name, ""))
        if milliseconds is not None:
            return milliseconds / 1000
    value = headers.get("retry-after", "")
    seconds = _seconds(value)
    if seconds is not None or not value:
        return seconds
    try:
        moment = email.utils.parsedate_to_datetime(value)
    except ValueError:
        return None
    if moment.tzinfo is None:
        # "-0000" says UTC without a zone.
        moment = moment.replace(tzinfo=datetime.UTC)
    return max(0.0, moment.timestamp() - (time.time() if now is None else now))


def _seconds(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return max(0.0, value) if math.isfinite(value) else None


def _plain(headers: Mapping[str, str]) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}


def _say(error: BaseException) -> str:
    return str(error) or type(error).__name__
