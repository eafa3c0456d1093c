"""Real servers for tests: servicers behind a gRPC socket, the aimock emulator of providers, free ports."""

from __future__ import annotations

import asyncio
import json
import shutil
import sys
import tempfile
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import aiohttp
import grpc

from maestro_sdk.service.channel import MAX_MESSAGE
from maestro_sdk.service.free_ports import find_free_ports
from maestro_sdk.service.interceptors import MeshInterceptor
from maestro_sdk.service.registration import register

_AIMOCK = Path("node_modules/@copilotkit/aimock/dist/cli.js")


@asynccontextmanager
async def serve(
    *servicers: object, interceptors: Sequence[grpc.aio.ServerInterceptor] | None = None
) -> AsyncGenerator[str]:
    """Serves generated servicers on a free loopback port; gives the address "127.0.0.1:PORT".

    Left out, `interceptors` is the one of every service: identity, validation, errors. Calls that still run at the end
    are cancelled.
    """
    options = (("grpc.max_send_message_length", MAX_MESSAGE), ("grpc.max_receive_message_length", MAX_MESSAGE))
    server = grpc.aio.server(
        interceptors=(MeshInterceptor(),) if interceptors is None else interceptors, options=options
    )
    for servicer in servicers:
        register(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(None)


def free_port() -> int:
    """A TCP port that is free on loopback now. A server that can bind port 0 itself should: nobody takes that one."""
    return find_free_ports(1)[0]


class Aimock:
    """The aimock emulator on a free port, as an async context manager. A request that no fixture matches gets a 503.

    `fixtures` are aimock's: `{"match": {"userMessage": "hello"}, "response": {"content": "Hi!"}}`, first match wins.
    """

    def __init__(
        self,
        fixtures: Sequence[Mapping[str, Any]],
        *,
        latency: float = 0.0,
        chunk: int = 20,
        script: Path | None = None,
    ) -> None:
        """`latency` in seconds between events, `chunk` in characters per event, `script` of a copy of the emulator."""
        self.url = ""
        """Base address for Anthropic; OpenAI's is `openai_url`."""
        self._script = script
        self._fixtures = [dict(fixture) for fixture in fixtures]
        self._options = ("--latency", str(round(latency * 1000)), "--chunk-size", str(chunk))
        self._process: asyncio.subprocess.Process | None = None
        self._drain: asyncio.Task[None] | None = None

    @property
    def openai_url(self) -> str:
        """Base address for OpenAI."""
        return f"{self.url}/v1"

    async def journal(self) -> list[Any]:
        """The requests so far, oldest first, as aimock records them."""
        async with aiohttp.ClientSession() as session, session.get(f"{self.url}/__aimock/journal") as response:
            entries: list[Any] = await response.json()
            return entries

    async def start(self) -> None:
        """Starts it and waits until it listens. Raises `FileNotFoundError`, or `RuntimeError` with its output."""
        with tempfile.NamedTemporaryFile("w", suffix=".json", encoding="utf-8") as file:
            json.dump({"fixtures": self._fixtures}, file)
            file.flush()
            command = (
                find_node(),
                str(self._script or find_aimock()),
                "--port",
                "0",
                "--strict",
                "--fixtures",
                file.name,
            )
            self._process = await asyncio.create_subprocess_exec(
                *command,
                *self._options,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.STDOUT,
            )
            said: list[str] = []
            async with asyncio.timeout(20):
                while not self.url:
                    line = (await self._output().readline()).decode()
                    if not line:
                        await self._process.wait()
                        raise RuntimeError(f"aimock did not start: {''.join(said)}")
                    said.append(line)
                    if "listening on " in line:
                        self.url = line.split("listening on ")[1].strip()
        self._drain = asyncio.create_task(self._swallow())

    async def stop(self) -> None:
        """Ends the emulator."""
        if self._process is None:
            return
        if self._process.returncode is None:
            self._process.terminate()
        try:
            await asyncio.wait_for(self._process.wait(), 5)
        except TimeoutError:
            self._process.kill()
            await self._process.wait()
        if self._drain is not None:
            await self._drain

    async def __aenter__(self) -> Self:
        try:
            await self.start()
        except BaseException:
            await self.stop()
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _output(self) -> asyncio.StreamReader:
        if self._process is None or self._process.stdout is None:
            raise RuntimeError("aimock is not running")
        return self._process.stdout

    async def _swallow(self) -> None:
        # Unread output would fill the pipe and stop the emulator.
        while await self._output().read(65536):
            pass


def find_node() -> str:
    """The node executable: beside this Python, from the wheel, or the system's. Raises `FileNotFoundError`."""
    beside = shutil.which("node", path=str(Path(sys.executable).parent)) or shutil.which("node")
    if beside:
        return beside
    raise FileNotFoundError("there is no node: `make setup` brings one")


def find_aimock() -> Path:
    """The emulator's script, in the tests' node packages. Raises `FileNotFoundError`."""
    for start in (Path(__file__).resolve(), Path.cwd() / "x"):
        for folder in start.parents:
            script = folder / "tests" / _AIMOCK
            if script.is_file():
                return script
    raise FileNotFoundError("aimock is not installed: `make setup` brings it into tests/node_modules")
