"""Adapters that no configuration names: processes started anywhere, which find the mesh over its NATS."""

import asyncio
import os
import signal
import sys
import time
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from maestro.router.v1.router_pb2 import AdapterAnnouncement
from maestro_sdk.adapter.announce import announcing
from maestro_sdk.testing.callers import Caller, question
from maestro_sdk.testing.flawed_servicer import serve_flawed
from maestro_sdk.testing.flaws import Flaw
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.servers import free_port

KEY = "mk-alpha-0123456789"
CONFIG: dict[str, Any] = {
    "gateway": {"keys": [{"tenant": "alpha", "key": {"env": "MAESTRO_KEY"}}]},
    "router": {"admission": "verified"},
    "adapters": {"local": {"module": "maestro_adapter_local", "address": "127.0.0.1:50065"}},
    "routes": {"default": {"targets": ["local/offline"]}},
    "aliases": {},
}
SOURCE = """\
from maestro_sdk.adapter.service import adapter
from maestro_sdk.service.run import run
from maestro_sdk.testing.obliging import ObligingProvider

if __name__ == "__main__":
    run("adapter-obliging", adapter("obliging", lambda config, entry: ObligingProvider()))
"""
MODEL = "obliging/model"


@asynccontextmanager
async def started(folder: Path, address: str, nats: str) -> AsyncGenerator[asyncio.subprocess.Process]:
    """The adapter as a process of its own; nothing but the environment tells it of the mesh."""
    (folder / "obliging_adapter.py").write_text(SOURCE, encoding="utf-8")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "obliging_adapter"),
        cwd=folder,
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("MAESTRO")},
            "MAESTRO__ADAPTERS__OBLIGING__ADDRESS": address,
            "MAESTRO__ADAPTERS__OBLIGING__ANNOUNCE": "true",
            "MAESTRO__NATS__URL": f"nats://{nats}",
        },
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()


async def adapter(caller: Caller, name: str) -> dict[str, Any]:
    """What the router tells of an adapter; empty for nothing."""
    told = (await caller.get("/v1/router/backends")).json()["adapters"] or ()  # none while the router can't be asked
    return next((found for found in told if found["name"] == name), {})


async def until_state(caller: Caller, name: str, state: str) -> float:
    """Waits until an adapter has a state, "" for none; the seconds that it took."""
    begun = time.monotonic()
    async with asyncio.timeout(30):
        while (await adapter(caller, name)).get("state", "") != state:
            await asyncio.sleep(0.02)
    return time.monotonic() - begun


async def listens(address: str) -> None:
    host, _, port = address.rpartition(":")
    async with asyncio.timeout(30):
        while True:
            try:
                _, writer = await asyncio.open_connection(host, int(port))
            except OSError:
                await asyncio.sleep(0.02)
            else:
                writer.close()
                await writer.wait_closed()
                return


async def test_an_adapter_that_nobody_configured_answers_and_goes(tmp_path: Path, figures: list[str]):
    took: dict[str, float] = {}
    async with MeshProcess(tmp_path, CONFIG, {"MAESTRO_KEY": KEY}) as mesh, Caller(mesh.url, KEY) as caller:
        nats, address = mesh.address("nats"), f"127.0.0.1:{free_port()}"
        assert (await caller.chat(question(model=MODEL))).status == 404
        async with started(tmp_path, address, nats) as process:
            await listens(address)
            took["listening to admitted, core proven"] = await until_state(caller, "obliging", "serving")
            told = await adapter(caller, "obliging")
            assert (told["announced"], told["address"], told["providers"]) == (True, address, ["obliging"])
            answer = await caller.chat(question("Reply with exactly: marigold", model=MODEL))
            assert (answer.status, answer.json()["provider"]) == (200, "obliging")
            process.send_signal(signal.SIGTERM)
            took["SIGTERM to gone"] = await until_state(caller, "obliging", "")
            assert await process.wait() == 0
        async with started(tmp_path, address, nats) as process:
            await listens(address)
            took["listening to admitted, proven before"] = await until_state(caller, "obliging", "serving")
            before = mesh.kill("router")
            begun = time.monotonic()
            await mesh.wait_restarted(before)
            took["router killed to up again"] = time.monotonic() - begun
            took["router up to admitted"] = await until_state(caller, "obliging", "serving")
            process.kill()
            killed = time.monotonic()
            took["kill -9 to down"] = await until_state(caller, "obliging", "down")
        async with serve_flawed(Flaw.TWO_FINISHES) as flawed:
            announcement = AdapterAnnouncement(name="flawed", address=flawed, instance="one")
            async with announcing(announcement, f"nats://{nats}"):
                await until_state(caller, "flawed", "refused")
                assert "finish_last (`finish` came 2 times)" in (await adapter(caller, "flawed"))["reason"]
                refused = (await caller.chat(question(model=MODEL))).json()["error"]
                assert refused["reason"] in {"NO_BACKEND", "NOT_FOUND"}
            await until_state(caller, "flawed", "")
        await until_state(caller, "obliging", "")
        took["kill -9 to forgotten"] = time.monotonic() - killed
        assert (await caller.chat(question())).status == 200
    assert took["listening to admitted, core proven"] < 10
    assert took["SIGTERM to gone"] < 2
    assert took["router up to admitted"] < 2
    assert took["kill -9 to down"] < 2
    assert took["kill -9 to forgotten"] < 10
    figures += [f"announced adapter, {name}: {seconds:.2f} s" for name, seconds in took.items()]
