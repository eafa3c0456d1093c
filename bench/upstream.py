"""A fake OpenAI-compatible server, as cheap as Python allows: the load's far end, never part of what is measured.

Run as a process: `python bench/upstream.py` prints its port. Streams come as fast as they can, or with 20 ms between
two events when the request holds the word "paced".
"""

from __future__ import annotations

import asyncio
import json
from typing import cast

import uvloop

EVENTS = 64
PACE = 0.02

_UNARY = json.dumps(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "bench",
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "Hello from the far end. " * 8},
                "finish_reason": "stop",
            }
        ],
        "usage": {"prompt_tokens": 20, "completion_tokens": 40, "total_tokens": 60},
    }
).encode()
_UNARY_REPLY = (
    b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n" % len(_UNARY)
) + _UNARY
_STREAM_HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\ntransfer-encoding: chunked\r\n\r\n"


def _chunk(body: object) -> bytes:
    data = b"data: " + (body if isinstance(body, bytes) else json.dumps(body).encode()) + b"\n\n"
    return b"%x\r\n%s\r\n" % (len(data), data)


def _delta(delta: dict[str, str], finish: str | None = None) -> bytes:
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": "bench"}
    return _chunk({**base, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]})


_FIRST = _delta({"role": "assistant", "content": ""})
_TOKEN = _delta({"content": "token "})
_LAST = _delta({}, "stop")
_USAGE = _chunk(
    {
        "id": "chatcmpl-1",
        "object": "chat.completion.chunk",
        "created": 1,
        "model": "bench",
        "choices": [],
        "usage": {"prompt_tokens": 20, "completion_tokens": EVENTS, "total_tokens": 20 + EVENTS},
    }
)
_DONE = _chunk(b"[DONE]") + b"0\r\n\r\n"


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self._buffer = b""
        self._transport: asyncio.WriteTransport | None = None
        self._task: asyncio.Task[None] | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def connection_lost(self, exc: Exception | None) -> None:
        if self._task is not None:
            self._task.cancel()

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end].lower()
            at = head.find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            self._answer(body)

    def _answer(self, body: bytes) -> None:
        transport = self._transport
        if transport is None:
            return
        if b'"stream":true' not in body.replace(b": ", b":"):
            transport.write(_UNARY_REPLY)
        elif b"paced" in body:
            self._task = asyncio.get_running_loop().create_task(self._stream_paced(transport))
        else:
            transport.write(_STREAM_HEAD + _FIRST)
            for _ in range(EVENTS):
                transport.write(_TOKEN)
            transport.write(_LAST + _USAGE + _DONE)

    async def _stream_paced(self, transport: asyncio.WriteTransport) -> None:
        transport.write(_STREAM_HEAD + _FIRST)
        for _ in range(EVENTS):
            await asyncio.sleep(PACE)
            transport.write(_TOKEN)
        transport.write(_LAST + _USAGE + _DONE)


async def _main() -> None:
    server = await asyncio.get_running_loop().create_server(_Connection, "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_main())
