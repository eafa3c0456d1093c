"""The examples of docs/write-an-adapter.md run as they stand: as processes, with the files that the guide shows."""

import asyncio
import os
import re
import signal
import sys
from pathlib import Path

from maestro_sdk.adapter.models import load_models
from maestro_sdk.llm_client import LLMClient
from maestro_sdk.service.channel import open_channel
from maestro_sdk.service.settings import load
from maestro_sdk.testing.servers import free_port
from maestro_sdk.types import finish_of, text_of

GUIDE = Path(__file__).parents[3] / "docs" / "write-an-adapter.md"
EXAMPLES = re.findall(r"```(?:python|yaml)\n# (\S+)\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)
FILES: dict[str, str] = dict(EXAMPLES)


def write(folder: Path, *names: str) -> None:
    for name in names:
        (folder / name).write_text(FILES[name], encoding="utf-8")


async def test_the_first_example_serves_and_stops(tmp_path: Path):
    write(tmp_path, "echo.py", "maestro.yaml")
    address = f"127.0.0.1:{free_port()}"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-W", "error", "-m", "echo"),
        cwd=tmp_path,
        env={**os.environ, "MAESTRO_CONFIG": "maestro.yaml", "MAESTRO__ADAPTERS__ECHO__ADDRESS": address},
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with open_channel(address) as channel, asyncio.timeout(30):
            await channel.channel_ready()
        async with LLMClient(address, model="echo/echo") as client:
            whole = await client.chat("hello there")
            async with client.stream("hello there") as stream:
                pieces = [piece async for piece in stream.text()]
            assert (text_of(whole), finish_of(whole), whole.usage.output_tokens) == ("hello there", "stop", 2)
            assert pieces == ["hello", " there"]
            assert await stream.response() == whole
            assert [model.id for model in await client.models()] == ["echo/echo"]
    finally:
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(20):
            _, said = await process.communicate()
    assert process.returncode == 0, said.decode()


def test_its_configuration_is_good(tmp_path: Path):
    write(tmp_path, "maestro.yaml")
    config = load(tmp_path / "maestro.yaml", {})
    assert list(config.enabled_adapters({})) == ["local", "echo"]
    assert [target.model for target in config.routes["default"].targets] == ["echo/echo"]


def test_its_model_file_is_good(tmp_path: Path):
    write(tmp_path, "models.yaml")
    (model,) = load_models(tmp_path / "models.yaml", "acme")
    assert (model.id, model.price.input, model.context_window) == ("acme/acme-large", "2.00", 128_000)


async def test_its_tests_pass(tmp_path: Path):
    write(tmp_path, "acme.py", "models.yaml", "test_acme.py")
    options = ("-o", "asyncio_mode=auto", "-o", "asyncio_default_fixture_loop_scope=function")
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-W", "error", *options),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        stdout=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(50):
        out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    assert "3 passed" in out.decode()
