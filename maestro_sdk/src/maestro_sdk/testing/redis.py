"""A real Redis-compatible server for tests, which can be killed, stopped where it stands, and started again."""

from __future__ import annotations

import asyncio
import os
import shutil
import signal
from types import TracebackType
from typing import Self

from maestro_sdk.testing.servers import free_port


def find_redis() -> str | None:
    """The server of this machine: Redis, else Valkey; None when it has none."""
    beside = os.pathsep.join((os.environ.get("PATH", ""), "/usr/sbin", "/usr/local/bin"))
    return shutil.which("redis-server", path=beside) or shutil.which("valkey-server", path=beside)


class RedisServer:
    """A server between the start and the end of its block; it keeps its address, and on the disk only what it `save`s.

    Then it needs the options "--dir" and a folder.
    """

    def __init__(self, *options: str) -> None:
        """`options` of the command line stand behind ours; PORT in them is the port that it shall have."""
        self.port = free_port()
        self.url = f"redis://127.0.0.1:{self.port}"
        self._options = [str(self.port) if option == "PORT" else option for option in options]
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.kill()

    async def start(self) -> None:
        """Starts it, and waits until it takes connections."""
        binary = find_redis()
        if binary is None:
            raise FileNotFoundError("neither redis-server nor valkey-server is installed")
        self._process = await asyncio.create_subprocess_exec(
            *(binary, "--port", str(self.port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no"),
            *self._options,
            stdout=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(10):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.01)
                    continue
                writer.close()
                return

    async def kill(self) -> None:
        """SIGKILL: it loses all that it knew, but what it saved."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None

    async def save(self) -> None:
        """Writes what it knows to the disk: it knows that again when it is started the next time."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port)
        writer.write(b"SAVE\r\n")
        told = await reader.readline()
        writer.close()
        if told != b"+OK\r\n":
            raise RuntimeError(f"it was not saved: {told!r}")

    def freeze(self) -> None:
        """Stops it where it stands: connections stay, answers don't come."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Lets it go on."""
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        if self._process is None:
            raise RuntimeError("the server does not run")
        self._process.send_signal(number)
