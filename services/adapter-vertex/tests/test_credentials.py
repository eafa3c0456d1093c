"""Tokens: from real credentials files, fetched over real HTTP from a token endpoint of the test."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from base64 import urlsafe_b64decode as b64decode
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from maestro_adapter_vertex import credentials
from maestro_adapter_vertex.credentials import EARLY, Token
from maestro_adapter_vertex.provider import VertexProvider
from maestro_adapter_vertex.settings import VertexSettings
from maestro_sdk.errors import ProviderAuth, UpstreamError
from maestro_sdk.testing import gemini_content as wire
from maestro_sdk.testing.faults import FaultServer, Headers, Seen, SendJson, Stall, Wait

_KEY = (
    rsa.generate_private_key(public_exponent=65537, key_size=2048)
    .private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    .decode()
)


def account_file(url: str) -> dict[str, str]:
    """A service account's file; the only kind that names its own token endpoint."""
    return {
        "type": "service_account",
        "project_id": "p1",
        "private_key_id": "k",
        "private_key": _KEY,
        "client_email": "a@p1.iam.gserviceaccount.com",
        "token_uri": f"{url}/token",
    }


def person_file() -> dict[str, str]:
    """A person's credentials, as gcloud writes them."""
    return {
        "type": "authorized_user",
        "client_id": "c",
        "client_secret": "s",
        "refresh_token": "r",
        "quota_project_id": "payer",
    }


class Tokens:
    """A token endpoint: t1, t2, … with a time to live."""

    def __init__(self, server: FaultServer, seconds: int = 3600, pause: float = 0.0) -> None:
        self.given = 0
        self._seconds = seconds
        self._pause = pause
        server.on("POST", "/token", self._reply)

    def _reply(self, seen: Seen) -> Any:
        self.given += 1
        answer = {"access_token": f"t{self.given}", "expires_in": self._seconds, "token_type": "Bearer"}
        return (Wait(self._pause), SendJson(answer))


def provider_with(tmp_path: Path, url: str, content: Any, *, inline: bool = False) -> VertexProvider:
    file = tmp_path / "credentials.json"
    file.write_text(content if isinstance(content, str) else json.dumps(content))
    pointer = tmp_path / "pointer"
    pointer.write_text(file.read_text() if inline else str(file))
    fields = {"project": "p1", "base_url": url, "credentials": {"file": str(pointer)}}
    return VertexProvider(VertexSettings.model_validate(fields))


def tokens_of(server: FaultServer) -> list[str]:
    return [seen.headers["authorization"] for seen in server.requests if seen.path != "/token"]


@pytest.mark.parametrize("inline", [False, True], ids=["path", "json"])
async def test_a_token_is_fetched_once_for_many(inline: bool, ask: Any, tmp_path: Path) -> None:
    async with FaultServer() as server:
        endpoint = Tokens(server, pause=0.05)
        server.on("POST", wire.PATH, wire.text())
        provider = provider_with(tmp_path, server.url, account_file(server.url), inline=inline)
        assert await provider.check() == ""
        assert endpoint.given == 0, "readiness asks nobody"
        await asyncio.gather(*(provider.complete(ask()) for _ in range(8)))
        await provider.complete(ask())
        await provider.close()
        assert endpoint.given == 1
        assert set(tokens_of(server)) == {"Bearer t1"}
        assert b"jwt-bearer" in server.requests[0].body


async def test_whoever_leaves_does_not_stop_the_fetching(ask: Any, tmp_path: Path) -> None:
    async with FaultServer() as server:
        endpoint = Tokens(server, pause=0.1)
        server.on("POST", wire.PATH, wire.text())
        provider = provider_with(tmp_path, server.url, account_file(server.url))
        leaving, staying = (asyncio.create_task(provider.complete(ask())) for _ in range(2))
        await server.request()
        leaving.cancel()
        with pytest.raises(asyncio.CancelledError):
            await leaving
        assert (await staying)[-1].HasField("finish")
        await provider.close()
        assert endpoint.given == 1


async def test_a_token_that_ends_soon_is_replaced(ask: Any, tmp_path: Path) -> None:
    async with FaultServer() as server:
        endpoint = Tokens(server, seconds=60)
        server.on("POST", wire.PATH, wire.text())
        provider = provider_with(tmp_path, server.url, account_file(server.url))
        for _ in range(2):
            await provider.complete(ask())
        await provider.close()
        assert endpoint.given == 2
        assert tokens_of(server) == ["Bearer t1", "Bearer t2"]
    now = time.time()
    assert Token("t", now + EARLY + 1).fresh(now)
    assert not Token("t", now + EARLY - 1).fresh(now)
    assert Token("t").fresh(now)


def test_a_project_that_pays_is_named() -> None:
    assert Token("t").headers() == {"authorization": "Bearer t"}
    assert Token("t", pays="payer").headers()["x-goog-user-project"] == "payer"


@pytest.mark.parametrize("way", ["stream", "complete"])
async def test_a_refused_token_is_replaced_once(way: str, ask: Any, tmp_path: Path) -> None:
    async with FaultServer() as server:
        endpoint = Tokens(server)
        server.on("POST", wire.PATH, wire.error(401))
        server.on("POST", wire.PATH, wire.text())
        server.on("POST", wire.PATH, wire.error(401))
        provider = provider_with(tmp_path, server.url, account_file(server.url))

        async def call() -> list[Any]:
            if way == "complete":
                return list(await provider.complete(ask()))
            return [event async for events in provider.stream(ask()) for event in events]

        assert (await call())[-1].HasField("finish")
        assert tokens_of(server) == ["Bearer t1", "Bearer t2"]
        # It is not the token then.
        with pytest.raises(ProviderAuth):
            await call()
        await provider.close()
        assert tokens_of(server) == ["Bearer t1", "Bearer t2", "Bearer t2", "Bearer t3"]
        assert endpoint.given == 3


async def test_a_fixed_token_is_never_replaced(ask: Any, provider_at: Any) -> None:
    async with FaultServer() as server, provider_at(server.url) as provider:
        server.on("POST", wire.PATH, wire.error(401))
        with pytest.raises(ProviderAuth):
            await provider.complete(ask())
        assert len(server.requests) == 1
        assert await provider.check() == ""


@pytest.mark.parametrize(
    ("status", "answer", "expected"),
    [
        (400, {"error": "invalid_grant", "error_description": "Token has been revoked."}, ProviderAuth),
        (503, {"error": "internal_failure"}, UpstreamError),
    ],
)
async def test_no_token_is_an_error_of_its_own(
    status: int, answer: Any, expected: type[Exception], ask: Any, tmp_path: Path
) -> None:
    async with FaultServer() as server:
        server.on("POST", "/token", Headers(status), SendJson(answer))
        provider = provider_with(tmp_path, server.url, account_file(server.url))
        with pytest.raises(expected) as caught:
            await provider.complete(ask())
        await provider.close()
    assert type(caught.value) is expected


async def test_nobody_gives_tokens(ask: Any, tmp_path: Path) -> None:
    async with FaultServer() as server:
        url = server.url
    provider = provider_with(tmp_path, url, account_file(url))
    with pytest.raises(UpstreamError, match="can't be asked"):
        await provider.complete(ask())
    await provider.close()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        ('{"type": "authorized_user", "client_secret": "hush', "not a credentials file"),
        ({"type": "service_account", "private_key": "hush-hush"}, "service account"),
        ({"type": "authorized_user", "client_secret": "hush"}, "not a credentials file"),
        ({"type": "nonsense"}, "none of google's"),
    ],
)
@pytest.mark.parametrize("inline", [False, True], ids=["path", "json"])
async def test_unusable_credentials_say_why_and_keep_their_secret(
    content: Any, why: str, inline: bool, ask: Any, tmp_path: Path
) -> None:
    provider = provider_with(tmp_path, "http://127.0.0.1:9", content, inline=inline)
    told = await provider.check()
    assert "no usable Google credentials" in told
    assert why in told.lower()
    assert "hush" not in told
    with pytest.raises(ProviderAuth, match="no usable Google credentials"):
        await provider.complete(ask())
    await provider.close()


async def test_without_credentials_it_says_what_to_do(
    ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("GOOGLE_APPLICATION_CREDENTIALS", "GCE_METADATA_HOST"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NO_GCE_CHECK", "true")
    monkeypatch.setenv("CLOUDSDK_CONFIG", str(tmp_path))
    fields = {"project": "p1", "credentials": {"env": "GOOGLE_APPLICATION_CREDENTIALS"}}
    provider = VertexProvider(VertexSettings.model_validate(fields))
    assert "set GOOGLE_APPLICATION_CREDENTIALS" in await provider.check()
    with pytest.raises(ProviderAuth, match="set GOOGLE_APPLICATION_CREDENTIALS"):
        await provider.complete(ask())
    # Google's default credentials: what gcloud keeps.
    (tmp_path / "application_default_credentials.json").write_text(json.dumps(person_file()))
    again = VertexProvider(VertexSettings(project="p1"))
    assert await again.check() == ""
    await provider.close()
    await again.close()


async def test_credentials_that_were_replaced_are_read_anew(ask: Any, tmp_path: Path) -> None:
    """A key is rotated: the file has another one, and the old one is deleted."""
    async with FaultServer() as server:

        def reply(seen: Seen) -> Any:
            if b"old" in b64decode(seen.body.split(b".")[1] + b"=="):
                return Headers(400), SendJson({"error": "invalid_grant", "error_description": "Invalid JWT Signature."})
            return (SendJson({"access_token": "new", "expires_in": 3600, "token_type": "Bearer"}),)

        server.on("POST", "/token", reply)
        server.on("POST", wire.PATH, wire.text())
        account = account_file(server.url)
        provider = provider_with(tmp_path, server.url, {**account, "client_email": "old@p1.iam.gserviceaccount.com"})
        assert await provider.check() == ""
        with pytest.raises(ProviderAuth, match="Invalid JWT Signature"):
            await provider.complete(ask())
        assert await provider.check() == ""
        (tmp_path / "credentials.json").write_text(json.dumps(account))
        assert (await provider.complete(ask()))[-1].HasField("finish")
        await provider.close()
        assert tokens_of(server) == ["Bearer new"]


async def test_a_token_that_is_good_still_is_used_while_another_one_is_fetched(ask: Any, tmp_path: Path) -> None:
    async with FaultServer() as server:
        server.on("POST", "/token", SendJson({"access_token": "t1", "expires_in": EARLY - 5, "token_type": "Bearer"}))
        server.on("POST", "/token", Stall())
        server.on("POST", wire.PATH, wire.text())
        provider = provider_with(tmp_path, server.url, account_file(server.url))
        for _ in range(3):
            await asyncio.wait_for(provider.complete(ask()), 5)
        assert tokens_of(server) == ["Bearer t1"] * 3
        await server.request(4)
        await asyncio.wait_for(provider.close(), 1)
        assert sum(seen.path == "/token" for seen in server.requests) == 2


async def test_nobody_waits_for_ever_for_a_token(ask: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(credentials, "PATIENCE", 0.3)
    async with FaultServer() as server:
        server.on("POST", "/token", Stall())
        provider = provider_with(tmp_path, server.url, account_file(server.url))
        with pytest.raises(UpstreamError, match=r"no answer within 0\.3 seconds|can't be asked"):
            await asyncio.wait_for(provider.complete(ask()), 5)
        await provider.close()


async def test_a_process_ends_while_a_token_is_under_way(tmp_path: Path) -> None:
    """The thread that fetches it can't be stopped; the interpreter does not wait for it."""
    async with FaultServer() as server:
        server.on("POST", "/token", Stall())
        provider_with(tmp_path, server.url, account_file(server.url))
        code = f"""
import asyncio
from maestro_adapter_vertex import credentials
from maestro_adapter_vertex.credentials import TokenSource
from maestro_adapter_vertex.settings import VertexSettings

async def main():
    settings = {{"project": "p1", "credentials": {{"file": {str(tmp_path / "pointer")!r}}}}}
    source = TokenSource(VertexSettings.model_validate(settings))
    fetching = asyncio.ensure_future(source.get())
    print(await asyncio.to_thread(input))
    await source.close()
    fetching.cancel()

asyncio.run(main())
"""
        pipe = asyncio.subprocess.PIPE
        process = await asyncio.create_subprocess_exec(sys.executable, "-c", code, stdin=pipe, stdout=pipe)
        await server.request(timeout=20)
        begun = time.monotonic()
        told, _ = await asyncio.wait_for(process.communicate(b"go\n"), 20)
        assert (told, process.returncode) == (b"go\n", 0)
        assert time.monotonic() - begun < 5


async def test_a_file_that_is_no_text_holds_no_key(tmp_path: Path) -> None:
    pointer = tmp_path / "pointer"
    pointer.write_bytes(b"\xff\xfe\x00")
    fields = {"project": "p1", "credentials": {"file": str(pointer)}, "access_token": {"file": str(pointer)}}
    settings = VertexSettings.model_validate(fields)
    assert settings.access_token is not None
    assert settings.access_token.get() is None
