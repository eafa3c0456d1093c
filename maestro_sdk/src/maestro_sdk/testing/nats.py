"""A real NATS server for tests, which can be killed, stopped where it stands, and started again on its data."""

from __future__ import annotations

import asyncio
import shutil
import signal
import sys
from pathlib import Path

from maestro_sdk.testing.servers import free_port


class NatsServer:
    """The nats-server of this environment with JetStream on a folder of the test; it keeps its address."""

    def __init__(self, folder: Path, *options: str) -> None:
        """`options` of the command line stand behind ours."""
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self.folder = folder
        """Where its streams lie."""
        self._options = options
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        """Starts it, and waits until it listens."""
        binary = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or "nats-server"
        self._process = await asyncio.create_subprocess_exec(
            *(binary, "--jetstream", "--store_dir", str(self.folder), "--addr", "127.0.0.1", "--port", str(self.port)),
            *self._options,
            stderr=asyncio.subprocess.DEVNULL,
        )
        async with asyncio.timeout(20):
            while True:
                try:
                    _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                except OSError:
                    await asyncio.sleep(0.01)
                else:
                    writer.close()
                    await writer.wait_closed()
                    return

    async def kill(self) -> None:
        """The way a machine takes it: without a last word."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None

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
