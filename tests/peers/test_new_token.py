"""A mesh with passwords everywhere, an adapter that joined it, and a new token of the mesh under load."""

import asyncio
import json
import os
import re
import signal
import sys
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self

import grpc
import pytest

from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro_sdk.service.peer import Peer
from maestro_sdk.testing.callers import Caller, question
from maestro_sdk.testing.chaos.load import Load
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.nats import NatsServer
from maestro_sdk.testing.redis import RedisServer, find_redis
from maestro_sdk.testing.servers import free_port

from .conftest import GATEWAYS, KEY, asked, until_whole

PAGE = Path(__file__).parents[2] / "docs" / "write-an-adapter.md"
MODEL, ECHO, ROUTE = "local/offline", "echo/echo", "default"
OLD, NEW, WORD = "old-token-0123456789", "new-token-0123456789", "word-0123456789"


class Tokens:
    """Two files of tokens: the first one is sent, both are taken by who reads them when it starts."""

    def __init__(self, folder: Path) -> None:
        self._files = folder / "first-token", folder / "second-token"
        self.section = {"tokens": [{"file": str(file)} for file in self._files]}

    def write(self, sent: str, taken: str) -> None:
        for file, token in zip(self._files, (sent, taken), strict=True):
            file.write_text(f"{token}\n")


@asynccontextmanager
async def passwords(folder: Path) -> AsyncGenerator[tuple[dict[str, Any], dict[str, Any]]]:
    """NATS and a store that want passwords: their sections of the configuration."""
    bus = NatsServer(folder / "nats", "--user", "maestro", "--pass", WORD)
    await bus.start()
    try:
        async with RedisServer("--requirepass", WORD) as store:
            word = {"password": {"env": "WORD"}}
            yield {"url": bus.url, "user": "maestro", **word}, {"url": store.url, "timeout": "5s", **word}
    finally:
        await bus.kill()


class Echo:
    """The adapter of the documentation as a process of its own, which announces itself; an async context manager."""

    def __init__(self, folder: Path, sections: dict[str, Any]) -> None:
        """`sections` of its configuration tell how it joins."""
        folder.mkdir()
        source = re.search(r"```python\n(# echo\.py\n.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
        assert source is not None
        (folder / "echo.py").write_text(source[1])
        self.address = f"127.0.0.1:{free_port()}"
        adapters = {"echo": {"address": self.address, "announce": True}}
        (folder / "maestro.yaml").write_text(json.dumps({"version": 1, "adapters": adapters, **sections}))
        self._folder = folder
        self._process: asyncio.subprocess.Process | None = None

    async def __aenter__(self) -> Self:
        mine = {name: value for name, value in os.environ.items() if not name.startswith("MAESTRO")}
        self._process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "echo"), cwd=self._folder, env={**mine, "WORD": WORD}
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        if (process := self._process) is not None:
            process.send_signal(signal.SIGTERM)
            assert await process.wait() == 0

    async def restart(self) -> None:
        """Ends it in peace, and starts it anew."""
        await self.__aexit__()
        await self.__aenter__()


async def refuses(address: str, token: str) -> bool:
    """Whether an adapter refuses who shows `token`."""
    async with Peer((token,)).open_channel(address) as channel:
        try:
            await ChatServiceStub(channel).Chat(asked(MODEL), timeout=10)
        except grpc.aio.AioRpcError as error:
            return error.code() == grpc.StatusCode.UNAUTHENTICATED
    return False


@pytest.mark.skipif(find_redis() is None, reason="neither redis-server nor valkey-server is installed")
async def test_a_new_token_under_load(tmp_path: Path, figures: list[str]) -> None:
    tokens = Tokens(tmp_path)
    tokens.write(OLD, OLD)
    async with passwords(tmp_path) as (nats, store):
        config: dict[str, Any] = {
            "version": 1,
            "gateway": {"replicas": 2, "keys": [{"tenant": "alpha", "key": {"env": "MAESTRO_KEY"}}]},
            "router": {"replicas": 2, "admission": "announced"},
            "mesh": tokens.section,
            "nats": nats,
            "store": store,
            "limits": {"on_store_failure": "deny", "every_tenant": {"requests": 1_000_000}},
            "adapters": {"local": {"module": "maestro_adapter_local", "address": "127.0.0.1:50065"}},
            "routes": {ROUTE: {"targets": [MODEL, ECHO]}},
            "aliases": {},
            "grace": "5s",
        }
        variables = {"MAESTRO_KEY": KEY, "WORD": WORD}
        async with MeshProcess(tmp_path / "mesh", config, variables) as mesh, Caller(mesh.url, KEY) as caller:
            assert not (mesh.data / "mesh-token").exists()
            assert "nats" not in mesh.members()
            async with Echo(tmp_path / "echo", {"nats": nats, "mesh": tokens.section}) as echo:
                await until_whole(mesh, KEY, (MODEL, ECHO))
                answer = await caller.chat(question("hello there", model=ECHO))
                assert (answer.status, answer.json()["text"]) == (200, "hello there")
                adapters = mesh.address("adapter-local"), echo.address
                assert [await refuses(address, NEW) for address in adapters] == [True, True]
                async with Load(mesh.url, KEY, ROUTE, 8, pause=0.05) as load:
                    for sent, taken in ((OLD, NEW), (NEW, OLD), (NEW, NEW)):
                        tokens.write(sent, taken)
                        for name in (*GATEWAYS, "router", "router-2", "adapter-local"):
                            await mesh.wait_restarted(mesh.kill(name, signal.SIGTERM))
                            await until_whole(mesh, KEY, (MODEL, ECHO))
                            await load.answers(10)
                        await echo.restart()
                        await until_whole(mesh, KEY, (MODEL, ECHO))
                assert [shown for shown in load.shown if not shown.answered] == []
                assert [await refuses(address, OLD) for address in adapters] == [True, True]
                answer = await caller.chat(question("hello again", model=ECHO))
                assert (answer.status, answer.json()["text"]) == (200, "hello again")
            for log in (mesh.data / "log").glob("*.log"):
                text = log.read_text(errors="replace")
                assert not any(secret in text for secret in (OLD, NEW, WORD)), log
    figures.append(f"a new token by 18 restarts under 8 clients: {len(load.shown)} calls, 0 turned away, 0 failed")
