"""A real NATS server per test, which can be killed and started again on its data."""

from __future__ import annotations

import asyncio
import shutil
import sys
from collections.abc import AsyncGenerator
from pathlib import Path

import pytest

from maestro_sdk.testing.servers import free_port


class NatsServer:
    """The nats-server of this environment with JetStream on a folder of the test."""

    def __init__(self, folder: Path) -> None:
        self.port = free_port()
        self.url = f"nats://127.0.0.1:{self.port}"
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def start(self) -> None:
        binary = shutil.which("nats-server", path=str(Path(sys.executable).parent)) or "nats-server"
        self._process = await asyncio.create_subprocess_exec(
            *(binary, "--jetstream", "--store_dir", str(self._folder), "--addr", "127.0.0.1", "--port", str(self.port)),
            stderr=asyncio.subprocess.DEVNULL,
        )

    async def kill(self) -> None:
        """The way a machine takes it: without a last word."""
        if self._process is not None:
            self._process.kill()
            await self._process.wait()
            self._process = None


@pytest.fixture
async def nats_server(tmp_path: Path) -> AsyncGenerator[NatsServer]:
    server = NatsServer(tmp_path / "nats")
    await server.start()
    yield server
    await server.kill()
