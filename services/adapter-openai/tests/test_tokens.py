"""Token providers that misbehave: they cost one call its answer, and nobody else anything."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import threading
import types
from pathlib import Path

import grpc
import pytest

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import Role
from maestro_adapter_openai.tokens import TokenProvider, load_source
from maestro_sdk.errors import ProviderAuth
from maestro_sdk.testing.servers import free_port


async def test_one_that_hangs_is_given_up_and_asked_anew() -> None:
    hold = threading.Event()
    asked: list[str] = []

    def source() -> str:
        asked.append("")
        if len(asked) == 1:
            hold.wait(30)
        return "token"

    tokens = TokenProvider(source, patience=0.05)
    try:
        with pytest.raises(ProviderAuth, match=r"within 0\.05 s"):
            await tokens.token()
        assert await TokenProvider(source, patience=5).token() == "token"
    finally:
        hold.set()


async def test_calls_at_once_ask_once_and_who_leaves_harms_nobody() -> None:
    hold = threading.Event()
    asked: list[str] = []

    def source() -> str:
        asked.append("")
        hold.wait(30)
        return f"token-{len(asked)}"

    tokens = TokenProvider(source)
    calls = [asyncio.create_task(tokens.token()) for _ in range(20)]
    await asyncio.sleep(0)
    # The pool's threads are free all the while.
    assert await asyncio.wait_for(asyncio.to_thread(int, "7"), 5) == 7
    calls[0].cancel()
    await asyncio.wait([calls[0]])
    hold.set()
    assert set(await asyncio.gather(*calls[1:])) == {"token-1"}
    assert await tokens.token() == "token-2"


async def test_an_async_one_that_hangs_is_given_up() -> None:
    async def source() -> str:
        await asyncio.Event().wait()
        return ""

    with pytest.raises(ProviderAuth, match="within"):
        await TokenProvider(source, patience=0.05).token()


@pytest.mark.parametrize("failure", [SystemExit(3), StopIteration(), KeyError("secret"), TimeoutError()])
async def test_whatever_it_raises_ends_one_call(failure: BaseException) -> None:
    def source() -> str:
        raise failure

    with pytest.raises(ProviderAuth, match=r"failed with \w+$") as caught:
        await TokenProvider(source).token()
    assert "secret" not in caught.value.message


@pytest.mark.parametrize("token", ["two words", "a\nb", "a\x00b", "clé", "  \n", "\ud800"])
async def test_what_no_header_can_carry_is_no_token(token: str) -> None:
    with pytest.raises(ProviderAuth, match="token provider gave"):
        await TokenProvider(lambda: token).token()


async def test_the_line_break_of_a_file_is_no_part_of_the_token() -> None:
    assert await TokenProvider(lambda: "token\n").token() == "token"


@pytest.mark.parametrize("failure", [RuntimeError("secret"), SystemExit(1)])
def test_a_module_that_fails_can_not_be_loaded(monkeypatch: pytest.MonkeyPatch, failure: BaseException) -> None:
    class Failing(types.ModuleType):
        def __getattr__(self, name: str) -> object:
            raise failure

    monkeypatch.setitem(sys.modules, "acme_failing", Failing("acme_failing"))
    with pytest.raises(ValueError, match="acme_failing:token can't be loaded") as caught:
        load_source("acme_failing:token")
    assert "secret" not in str(caught.value)


def test_a_module_with_a_mistake_can_not_be_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "acme_mistaken.py").write_text("def token(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ValueError, match="SyntaxError"):
        load_source("acme_mistaken:token")


async def test_one_that_hangs_holds_up_no_end_of_the_process(tmp_path: Path) -> None:
    (tmp_path / "acme_hanging.py").write_text(
        "import pathlib, time\n\ndef token():\n    pathlib.Path('asked').touch()\n    time.sleep(600)\n"
    )
    port = free_port()
    azure = {"endpoint": "http://127.0.0.1:9", "token_provider": "acme_hanging:token", "deployments": {"gpt-4.1": "d"}}
    settings = {"address": f"127.0.0.1:{port}", "settings": {"azure": azure}}
    config = tmp_path / "maestro.yaml"
    config.write_text(json.dumps({"version": 1, "adapters": {"openai": settings}, "grace": "200ms"}))
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "maestro_adapter_openai",
        cwd=tmp_path,
        env={**os.environ, "MAESTRO_CONFIG": str(config), "PYTHONPATH": str(tmp_path)},
    )
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            request = ChatRequest(model="azure/gpt-4.1")
            request.messages.add(role=Role.ROLE_USER).parts.add().text.text = "hello"
            call = ChatServiceStub(channel).Chat(request, wait_for_ready=True)
            async with asyncio.timeout(20):
                while not (tmp_path / "asked").exists():
                    await asyncio.sleep(0.02)
            process.send_signal(signal.SIGTERM)
            async with asyncio.timeout(10):
                assert await process.wait() == 0
            assert await call.code() == grpc.StatusCode.UNAVAILABLE
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
