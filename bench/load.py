"""A load of one kind on one address, from this process: raw HTTP/1.1 on keep-alive connections.

`python bench/load.py '{"url": …}'` prints one JSON line: calls, events, errors, seconds and latencies.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from typing import Any
from urllib.parse import urlsplit

import uvloop


class Load:
    """`connections` workers, each sending its next request when the last answer is whole, for `seconds`."""

    def __init__(self, plan: dict[str, Any]) -> None:
        """`plan`: url, headers, body (object), connections, seconds, marker (text that each event of a stream has)."""
        address = urlsplit(plan["url"])
        self.host, self.port = address.hostname, address.port
        body = json.dumps(plan["body"]).encode()
        headers = {"host": address.netloc, "content-type": "application/json", "content-length": str(len(body))} | plan[
            "headers"
        ]
        lines = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        self.request = f"POST {address.path} HTTP/1.1\r\n{lines}\r\n".encode() + body
        self.connections, self.seconds = plan["connections"], plan["seconds"]
        self.marker = plan["marker"].encode()
        self.latencies: list[float] = []
        self.events = 0
        self.errors: dict[str, int] = {}
        self.end = 0.0

    async def run(self) -> dict[str, Any]:
        begun = time.monotonic()
        self.end = begun + self.seconds
        await asyncio.gather(*(self._work() for _ in range(self.connections)))
        elapsed = time.monotonic() - begun
        ordered = sorted(self.latencies)
        quantile = lambda share: ordered[min(len(ordered) - 1, int(len(ordered) * share))] if ordered else 0.0  # noqa: E731
        return {
            "calls": len(ordered),
            "events": self.events,
            "errors": self.errors,
            "seconds": elapsed,
            "p50": quantile(0.5),
            "p99": quantile(0.99),
        }

    async def _work(self) -> None:
        reader: asyncio.StreamReader | None = None
        writer: asyncio.StreamWriter | None = None
        while time.monotonic() < self.end:
            if reader is None or writer is None:
                reader, writer = await asyncio.open_connection(self.host, self.port)
            begun = time.monotonic()
            writer.write(self.request)
            try:
                status, events = await self._read(reader)
            except (OSError, asyncio.IncompleteReadError, ValueError) as error:
                self._count(type(error).__name__)
                writer.close()
                reader = writer = None
                continue
            if status != b"200":
                self._count(status.decode())
                continue
            self.latencies.append(time.monotonic() - begun)
            self.events += events
        if writer is not None:
            writer.close()

    async def _read(self, reader: asyncio.StreamReader) -> tuple[bytes, int]:
        head = await reader.readuntil(b"\r\n\r\n")
        status, lower = head[9:12], head.lower()
        events = 0
        if (at := lower.find(b"content-length:")) >= 0:
            await reader.readexactly(int(lower[at + 15 :].split(b"\r\n", 1)[0]))
            return status, events
        while True:
            size = int(await reader.readuntil(b"\r\n"), 16)
            data = await reader.readexactly(size + 2)
            if size == 0:
                return status, events
            events += data.count(self.marker)

    def _count(self, what: str) -> None:
        self.errors[what] = self.errors.get(what, 0) + 1


if __name__ == "__main__":
    print(json.dumps(uvloop.run(Load(json.loads(sys.argv[1])).run())))
