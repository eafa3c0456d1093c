"""Readers that open a stream and then take nothing from it: what a phone without a network looks like."""

from __future__ import annotations

import asyncio
import base64
import os
import socket
import struct
from types import TracebackType
from typing import Self

import orjson

_SMALL = 4096
_TEXT, _MASKED = 0x81, 0x80
_PING, _PONG = b"\x89\x00", b"\x8a\x80\x00\x00\x00\x00"


class StuckReader:
    """One connection to `target`, "host:port", over HTTP/1.1, with the smallest buffer that the system gives.

    An async context manager; leaving it drops the connection.
    """

    def __init__(self, target: str, key: str) -> None:
        host, _, port = target.rpartition(":")
        self._target = (host, int(port))
        self._key = key
        self._socket = socket.socket()
        self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL)
        self._socket.setblocking(False)
        self._found = b""

    async def request(self, method: str, path: str, body: object = None, *, until: bytes = b"\r\n\r\n") -> None:
        """Sends a request, and reads until `until` has come; nothing more."""
        data = b"" if body is None else orjson.dumps(body)
        await self._begin(method, path, b"content-type: application/json\r\ncontent-length: %d\r\n" % len(data), data)
        await self._read(b"200 OK", until)

    async def upgrade(self, path: str, frame: object = None, *, until: bytes = b"\r\n\r\n") -> None:
        """Opens a WebSocket, sends one frame of JSON, and reads until `until` has come; nothing more."""
        nonce = base64.b64encode(os.urandom(16))
        head = b"upgrade: websocket\r\nconnection: upgrade\r\nsec-websocket-version: 13\r\nsec-websocket-key: %b\r\n"
        await self._begin("GET", path, head % nonce, b"")
        await self._read(b"101 Switching", b"\r\n\r\n")
        if frame is not None:
            data = orjson.dumps(frame)
            # A mask of zeros leaves the text as it is.
            await asyncio.get_running_loop().sock_sendall(
                self._socket, struct.pack(">BBH4x", _TEXT, _MASKED | 126, len(data)) + data
            )
        await self._read(b"101 Switching", until)

    async def __aenter__(self) -> Self:
        await asyncio.get_running_loop().sock_connect(self._socket, self._target)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._socket.close()

    async def _begin(self, method: str, path: str, headers: bytes, data: bytes) -> None:
        head = f"{method} {path} HTTP/1.1\r\nhost: mesh\r\nauthorization: Bearer {self._key}\r\n".encode()
        await asyncio.get_running_loop().sock_sendall(self._socket, head + headers + b"\r\n" + data)

    async def _read(self, status: bytes, until: bytes) -> None:
        async with asyncio.timeout(60):
            while until not in self._found:
                piece = await asyncio.get_running_loop().sock_recv(self._socket, 512)
                self._found += piece
                if _PING in piece:
                    await asyncio.get_running_loop().sock_sendall(self._socket, _PONG)
                if not piece or (b"\r\n" in self._found and status not in self._found):
                    raise AssertionError(f"no stream: {self._found!r}")
