"""Whole answers of providers as bytes, ready to be sent: `python bench/canned.py FILE` serves them and prints its port.

FILE is JSON: a list of {suffix, streams, content_type, document, pieces}. The first entry whose `suffix` ends the path
of the request, and which streams when the request does, answers it; bytes are base64. It is as cheap as Python allows,
and never part of what is measured.
"""

from __future__ import annotations

import asyncio
import base64
import json
import sys
from pathlib import Path
from typing import Any, cast

import uvloop


class Canned:
    """The answers of one file."""

    def __init__(self, path: Path) -> None:
        self._entries = [
            (entry["suffix"].encode(), bool(entry["streams"]), _reply(entry)) for entry in json.loads(path.read_text())
        ]

    def find(self, target: bytes, body: bytes) -> list[bytes]:
        """The writes that answer a request. Raises `LookupError` for one that is not in the file."""
        asked = b'"stream":true' in body.replace(b": ", b":") or b"stream" in target.rsplit(b"/", 1)[-1].lower()
        path = target.partition(b"?")[0].replace(b"%3A", b":")
        for suffix, streams, writes in self._entries:
            if path.endswith(suffix) and streams is asked:
                return writes
        raise LookupError(f"no answer for {target!r}, stream {asked}")


def _reply(entry: dict[str, Any]) -> list[bytes]:
    kind = entry["content_type"]
    if not entry["streams"]:
        body = base64.b64decode(entry["document"])
        return [f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ncontent-length: {len(body)}\r\n\r\n".encode() + body]
    head = f"HTTP/1.1 200 OK\r\ncontent-type: {kind}\r\ntransfer-encoding: chunked\r\n\r\n".encode()
    pieces = [base64.b64decode(piece) for piece in entry["pieces"]]
    return [head, *(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces), b"0\r\n\r\n"]


class _Connection(asyncio.Protocol):
    def __init__(self, canned: Canned) -> None:
        self._canned = canned
        self._buffer = b""
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast("asyncio.WriteTransport", transport)

    def data_received(self, data: bytes) -> None:
        self._buffer += data
        while (end := self._buffer.find(b"\r\n\r\n")) >= 0:
            head = self._buffer[:end]
            at = head.lower().find(b"content-length:")
            length = int(head[at + 15 :].split(b"\r\n", 1)[0]) if at >= 0 else 0
            if len(self._buffer) < end + 4 + length:
                return
            body = self._buffer[end + 4 : end + 4 + length]
            self._buffer = self._buffer[end + 4 + length :]
            target = head.split(b" ", 2)[1]
            if self._transport is not None:
                for write in self._canned.find(target, body):
                    self._transport.write(write)


async def _main() -> None:
    canned = Canned(Path(sys.argv[1]))
    server = await asyncio.get_running_loop().create_server(lambda: _Connection(canned), "127.0.0.1", 0, backlog=1024)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    uvloop.run(_main())
