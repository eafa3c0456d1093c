"""Passwords, tokens and TLS at real servers: NATS and the store."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from maestro_sdk.service.bus import Link
from maestro_sdk.service.buses import remember_login
from maestro_sdk.service.config_file import ConfigError
from maestro_sdk.service.settings import Config, load
from maestro_sdk.service.store import Claim, Kind
from maestro_sdk.service.store.shared import SharedStore
from maestro_sdk.testing.authority import Authority
from maestro_sdk.testing.nats import NatsServer
from maestro_sdk.testing.redis import RedisServer, find_redis

WORD = "word-0123456789"


def configured(folder: Path, **sections: Any) -> Config:
    (folder / "maestro.yaml").write_text(json.dumps(sections))
    return load(folder / "maestro.yaml", {})


def files(authority: Authority, name: str) -> dict[str, str]:
    issued = authority.issue(name)
    return {"authority": issued["authority"], "certificate": issued["certificate"], "key": issued["key"]}


@asynccontextmanager
async def nats(folder: Path, *options: str) -> AsyncGenerator[NatsServer]:
    server = NatsServer(folder / "nats", *options)
    await server.start()
    try:
        yield server
    finally:
        await server.kill()


async def reached(config: Config) -> str:
    """What a connection with this configuration comes to: "" when NATS answers on it, else its trouble."""
    told = asyncio.Event()

    async def prepare(client: Any) -> None:
        await client.flush()

    remember_login(config.nats)
    link = Link(config.nats.url, "test", told.set)
    task = asyncio.create_task(link.keep(prepare))
    try:
        async with asyncio.timeout(10):
            await told.wait()
        return link.trouble
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


@pytest.mark.parametrize(
    ("options", "login"),
    [
        (("--user", "maestro", "--pass", WORD), {"user": "maestro", "password": {"env": "NATS_WORD"}}),
        (("--auth", WORD), {"token": {"env": "NATS_WORD"}}),
    ],
)
async def test_nats_with_a_password_or_a_token(
    options: Sequence[str], login: Mapping[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nats(tmp_path, *options) as server:
        monkeypatch.setenv("NATS_WORD", WORD)
        config = configured(tmp_path, nats={"url": server.url, **login})
        assert await reached(config) == ""
        assert WORD not in config.to_yaml()
        monkeypatch.setenv("NATS_WORD", "another")
        assert "Authorization Violation" in await reached(config)
        assert "Authorization Violation" in await reached(configured(tmp_path, nats={"url": server.url}))
        # A password in the address works as ever.
        address = server.url.replace("//", f"//{':'.join(options[1::2])}@")
        assert await reached(configured(tmp_path, nats={"url": address})) == ""


async def test_nats_with_certificates(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    own = files(ours, "nats")
    options = ("--tlsverify", "--tlscert", own["certificate"], "--tlskey", own["key"], "--tlscacert", own["authority"])
    async with nats(tmp_path, *options) as server:
        good = configured(tmp_path, nats={"url": server.url, "tls": files(ours, "gateway")})
        assert await reached(good) == ""
        for wrong in (files(theirs, "gateway"), {"authority": own["authority"]}):
            assert await reached(configured(tmp_path, nats={"url": server.url, "tls": wrong})) != ""
        missing = configured(tmp_path, nats={"url": server.url, "tls": {"authority": "none.pem"}})
        assert "No such file" in await reached(missing)


@pytest.mark.skipif(find_redis() is None, reason="neither redis-server nor valkey-server is installed")
async def test_a_store_with_a_user_a_password_and_certificates(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STORE_WORD", WORD)
    ours = Authority(tmp_path, "ours")
    own = files(ours, "store")
    options = ("--port", "0", "--tls-port", "PORT", "--requirepass", WORD, "--tls-cert-file", own["certificate"])
    async with RedisServer(*options, "--tls-key-file", own["key"], "--tls-ca-cert-file", own["authority"]) as server:
        url = f"rediss://default@127.0.0.1:{server.port}/0"
        settings = {"url": url, "password": {"env": "STORE_WORD"}, "tls": files(ours, "gateway"), "timeout": "5s"}
        config = configured(tmp_path, store=settings)
        assert WORD not in config.to_yaml()
        async with SharedStore(config.store) as store:
            assert store.up, store.trouble
            assert (await store.take("a", (Claim("{t}:r", Kind.EACH, 100, 60.0),))).left == (99,)
        for change in ({"password": None}, {"tls": {"authority": own["authority"]}}, {"tls": None}):
            async with SharedStore(configured(tmp_path, store=settings | change).store) as store:
                assert not store.up
                assert WORD not in store.trouble


@pytest.mark.parametrize(
    ("section", "value", "problem"),
    [
        ("nats", {"user": "a"}, "nats: give both user and password, or neither"),
        ("nats", {"user": "a", "password": {"env": "A"}, "token": {"env": "B"}}, "nats: give either user and password"),
        ("nats", {"token": WORD}, "nats.token: keys never stand in the file"),
        ("nats", {"tls": {"key": "k"}}, "nats.tls: give both certificate and key, or neither"),
        ("store", {"url": "redis://h", "tls": {"authority": "a"}}, "store: tls is for an address that begins with"),
        ("store", {"url": f"redis://:{WORD}@h"}, "store.url: a password never stands in the file"),
    ],
)
def test_what_is_wrong_is_told(section: str, value: Any, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        configured(tmp_path, **{section: value})
    assert problem in str(caught.value)
    assert WORD not in str(caught.value)
