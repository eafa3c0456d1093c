"""A whole mesh for tests: the real Envoy, NATS and services on free ports, with a data folder of its own.

async with MeshProcess(folder, config, {"MAESTRO_KEY": "mk-test"}) as mesh:
    ...                                   # mesh.url, mesh.address("gateway"), mesh.pid("adapter-openai")
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import yaml

from maestro_sdk.cli.folder import MESH_TOKEN
from maestro_sdk.service.peer import Peer

_FOREIGN = ("MAESTRO", "ANTHROPIC_", "OPENAI_", "AZURE_", "AWS_", "GOOGLE_", "OTEL_")
"""Starts of variables of the caller's environment that a test mesh must not see: real keys above all."""


@dataclass(frozen=True, slots=True)
class MeshMember:
    """One process of the mesh, as `maestro status` tells it. `pid` is None while it is not running."""

    name: str
    pid: int | None
    state: str
    address: str
    restarts: int


class MeshProcess:
    """Runs `maestro up --detach` on free ports, and `maestro down` at the end; an async context manager."""

    def __init__(self, folder: Path, config: Mapping[str, Any], environment: Mapping[str, str]) -> None:
        """`folder` gets configuration and data; `environment` is added to the caller's, without its keys."""
        self.url = ""
        """Envoy's address, for every protocol: "http://127.0.0.1:PORT"."""
        self.ready_after = 0.0
        """Seconds that the start took."""
        self.data = folder / "data"
        self._file = folder / "maestro.yaml"
        self._config = config
        self._environment = {
            **{name: value for name, value in os.environ.items() if not name.startswith(_FOREIGN)},
            **environment,
            "NO_COLOR": "1",
        }

    @property
    def peer(self) -> Peer:
        """A process of this mesh: what its router and adapters let in."""
        return Peer.showing((self.data / MESH_TOKEN).read_text())

    @property
    def target(self) -> str:
        """Envoy's address for gRPC: "127.0.0.1:PORT"."""
        return self.url.removeprefix("http://")

    async def run(self, *arguments: str, stdin: str = "", timeout: float = 60.0) -> tuple[int, str, str]:
        """Runs the `maestro` command in the environment of this mesh: exit code, output, error output."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-m",
            "maestro_sdk.cli",
            *arguments,
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env=self._environment,
        )
        try:
            async with asyncio.timeout(timeout):
                out, err = await process.communicate(stdin.encode())
        except BaseException:
            process.kill()
            await process.wait()
            raise
        return process.returncode or 0, out.decode(), err.decode()

    async def start(self) -> None:
        """Starts the mesh and waits until it answers. Raises `RuntimeError` with its output and logs."""
        self._file.parent.mkdir(parents=True, exist_ok=True)
        self._file.write_text(yaml.safe_dump(dict(self._config), sort_keys=False), encoding="utf-8")
        begun = time.monotonic()
        places = ("--data", str(self.data), "--config", str(self._file))
        code, out, err = await self.run("up", "--detach", "--free-ports", "--port", "0", *places, timeout=120)
        self.ready_after = time.monotonic() - begun
        if code:
            raise RuntimeError(f"the mesh did not start:\n{out}{err}{self.logs()}")
        self.url = self._state()["url"]

    async def stop(self) -> None:
        """Stops the mesh; kills its supervisor, and with it every process, when that takes too long."""
        try:
            await self.run("down", "--data", str(self.data), timeout=45)
        except TimeoutError:
            os.kill(int(self._state()["pid"]), signal.SIGKILL)
            raise

    def members(self) -> dict[str, MeshMember]:
        """The processes by name: gateway, router, envoy, nats, adapter-claude, …"""
        names = ("name", "pid", "state", "address", "restarts")
        return {each["name"]: MeshMember(*(each[name] for name in names)) for each in self._state()["processes"]}

    def address(self, name: str) -> str:
        """The address "host:port" of a process."""
        return self.members()[name].address

    def kill(self, name: str, number: signal.Signals = signal.SIGKILL) -> MeshMember:
        """Sends a signal to a process, SIGKILL unless told; returns what it was before."""
        member = self.members()[name]
        if member.pid is None:
            raise ProcessLookupError(f"{name} is not running")
        os.kill(member.pid, number)
        return member

    async def wait_restarted(self, before: MeshMember, timeout: float = 30.0) -> MeshMember:
        """The process that replaced `before`, once its address is open. Raises `TimeoutError`."""
        async with asyncio.timeout(timeout):
            while True:
                member = self.members()[before.name]
                if member.restarts > before.restarts and member.state == "ready":
                    return member
                await asyncio.sleep(0.02)

    def logs(self, lines: int = 15) -> str:
        """The ends of all logs."""
        found: list[str] = []
        for path in sorted((self.data / "log").glob("*.log")):
            tail = path.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:]
            found.append("\n".join([f"--- {path.name}", *tail]))
        return "\n".join(found)

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    def _state(self) -> Any:
        return json.loads((self.data / "run" / "state.json").read_text(encoding="utf-8"))
