"""The process: starts from a configuration file, answers, ends on SIGTERM; a wrong script keeps it from starting."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from pathlib import Path

import grpc

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro_sdk.testing.servers import free_port


async def start(folder: Path, script: str) -> tuple[asyncio.subprocess.Process, int]:
    """The adapter's process with a script, and its port."""
    port = free_port()
    (folder / "script.yaml").write_text(script)
    (folder / "maestro.yaml").write_text(
        "adapters:\n"
        "  local:\n"
        f"    address: 127.0.0.1:{port}\n"
        "    settings: {offline: {script: script.yaml}}\n"
    )  # fmt: skip
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "maestro_adapter_local",
        cwd=folder,
        env={**os.environ, "MAESTRO_CONFIG": str(folder / "maestro.yaml")},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    return process, port


async def test_it_answers_and_stops(tmp_path: Path) -> None:
    process, port = await start(tmp_path, "rules: [{match: hello, reply: from the script}]")
    try:
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            turn = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="hello"))])
            request = ChatRequest(model="local/offline", messages=[turn])
            response = await ChatServiceStub(channel).Chat(request, timeout=30, wait_for_ready=True)
        assert response.parts[0].text.text == "from the script"
        process.send_signal(signal.SIGTERM)
        async with asyncio.timeout(10):
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
        await process.communicate()


async def test_a_wrong_script_is_told_and_nothing_starts(tmp_path: Path) -> None:
    process, _ = await start(tmp_path, "rules:\n  - match: hello\n  - replay: x\n")
    async with asyncio.timeout(30):
        _, said = await process.communicate()
    assert process.returncode == 2
    lines = said.decode().splitlines()
    assert lines[0] == "script.yaml:2: rules[0]: give reply, json, tool_calls or error"
    assert "script.yaml:3: rules[1].replay: no such setting" in lines[1]
