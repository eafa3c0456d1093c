"""A client that takes up its stream whenever its connection breaks, as a careful program would."""

import asyncio
import json
import time
from dataclasses import dataclass, field
from typing import Any

import aiohttp

from maestro_sdk.tracing import new_request_id

PATIENCE = 30.0
_PAUSE = 0.05
_SILENCE = 8.0
"""Seconds without a byte after which a connection counts as dead; the mesh sends a sign of life every second."""


@dataclass
class Seen:
    """What one client saw of its stream."""

    mark: str
    request_id: str
    numbers: list[int] = field(default_factory=list[int])
    kinds: list[str] = field(default_factory=list[str])
    text: str = ""
    finish: dict[str, Any] = field(default_factory=dict[str, Any])
    error: dict[str, Any] = field(default_factory=dict[str, Any])
    connections: int = 0
    refused: list[str] = field(default_factory=list[str])
    """What it was told when it could not take the stream up at once."""
    longest_pause: float = 0.0

    @property
    def last(self) -> int:
        """The number of the last event that arrived."""
        return self.numbers[-1] if self.numbers else 0


class Reader:
    """Reads one stream to its end. `cut` breaks its connection, however often."""

    def __init__(self, url: str, key: str, mark: str) -> None:
        self.seen = Seen(mark, new_request_id())
        self._url, self._key = url, key
        self._connection: asyncio.Task[None] | None = None

    def cut(self) -> None:
        """Breaks the connection without a word, if there is one."""
        if self._connection is not None:
            self._connection.cancel()

    async def read(self) -> Seen:
        """What it saw by the end; where none came in time, that is its error."""
        seen = self.seen
        try:
            await self._read()
        except TimeoutError:
            seen.error = {"reason": "left hanging", "refused": seen.refused}
        return seen

    async def _read(self) -> None:
        seen = self.seen
        async with asyncio.timeout(PATIENCE):
            while not seen.finish and not seen.error:
                begun = time.monotonic()
                self._connection = asyncio.create_task(self._connect())
                try:
                    await asyncio.wait((self._connection,))
                except asyncio.CancelledError:
                    self._connection.cancel()
                    raise
                try:
                    if not self._connection.cancelled():
                        await self._connection
                except (aiohttp.ClientError, OSError) as error:
                    seen.refused.append(type(error).__name__)
                if not seen.finish and not seen.error and time.monotonic() - begun < _PAUSE:
                    await asyncio.sleep(_PAUSE)

    async def _connect(self) -> None:
        """One connection: begins the stream, or takes it up behind what arrived."""
        seen = self.seen
        seen.connections += 1
        headers = {"authorization": f"Bearer {self._key}", "x-request-id": seen.request_id}
        connector, timeout = (
            aiohttp.TCPConnector(force_close=True),
            aiohttp.ClientTimeout(total=None, sock_read=_SILENCE),
        )
        async with aiohttp.ClientSession(self._url, connector=connector, headers=headers, timeout=timeout) as session:
            if seen.connections > 1:
                path = f"/v1/chat/{seen.request_id}/events"
                async with session.get(path, headers={"last-event-id": str(seen.last)}) as answer:
                    if answer.status != 404:
                        await self._take(answer)
                        return
                    seen.refused.append("404")
                    if seen.numbers:
                        raise AssertionError(f"{seen.mark}: a stream that was read is unknown")
            body = {
                "messages": [{"role": "user", "content": f"[{seen.mark}]"}],
                "stream": True,
                "resumable": True,
            }
            async with session.post("/v1/chat", json=body) as answer:
                await self._take(answer)

    async def _take(self, answer: aiohttp.ClientResponse) -> None:
        seen = self.seen
        if answer.status != 200:
            error = (await answer.json())["error"]
            seen.refused.append(f"{answer.status} {error['message']}")
            if not error["retryable"]:
                seen.error = error
            return
        pending = b""
        last = time.monotonic()
        async for data in answer.content.iter_any():
            pending += data
            while b"\n\n" in pending:
                frame, pending = pending.split(b"\n\n", 1)
                self._note(frame.decode())
            seen.longest_pause = max(seen.longest_pause, time.monotonic() - last)
            last = time.monotonic()

    def _note(self, frame: str) -> None:
        fields = dict(line.split(": ", 1) for line in frame.splitlines() if not line.startswith(":"))
        if fields.get("data") == "[DONE]" or not fields:
            return
        seen, data = self.seen, json.loads(fields["data"])
        kind = fields["event"]
        if kind == "error" and "id" not in fields:
            # This connection is over, the stream is not.
            seen.refused.append(data["error"]["message"])
            return
        seen.numbers.append(int(fields["id"]))
        seen.kinds.append(kind)
        match kind:
            case "text":
                seen.text += data["text"]
            case "finish":
                seen.finish = data
            case "error":
                seen.error = data["error"]
            case _:
                pass
