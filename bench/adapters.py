"""What each adapter costs alone: CPU time per unary call and per streamed chunk, against canned answers.

Two figures each. `provider` is the adapter's own work, in this process: translate, one HTTP call, translate back.
`process` is the whole adapter as it runs in a mesh, with its gRPC server; the kernel's accounting, the caller and the
fake provider left out.

    python bench/adapters.py [ADAPTER …] [--seconds 3]
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import contextlib
import importlib
import json
import operator
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import uvloop
import yaml

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.message_pb2 import Role
from maestro_sdk.service.settings import Config, load
from maestro_sdk.testing.faults import Seen, Send, SendJson, Sse, Step
from maestro_sdk.testing.servers import free_port
from maestro_sdk.testing.wire import Answer, Wire

if TYPE_CHECKING:
    from maestro.llm.v1.chat_pb2_grpc import ChatServiceAsyncStub

HERE = Path(__file__).resolve().parent
TICKS = os.sysconf("SC_CLK_TCK")
CHUNKS = 64
PROMPT = "Say hello to the far end. " * 8
CALLERS = 8
_LAST_CORE = (os.cpu_count() or 1) - 1


@dataclass(frozen=True)
class Subject:
    """An adapter: its wire in the tests, the ends of the paths it calls, and the settings that lead to `url`."""

    name: str
    model: str
    wire: str
    paths: tuple[str, str]
    """Ends of the paths of a unary and of a streaming call."""
    settings: Callable[[str], Mapping[str, Any]]
    build: str
    """What makes the provider, in the adapter's module `provider`."""
    content_type: str = "text/event-stream"
    answers: Mapping[str, Any] = field(default_factory=dict[str, Any])
    """What else the adapter asks for, by path."""


KEY = {"env": "BENCH_PROVIDER_KEY"}
SUBJECTS = (
    Subject(
        "claude",
        "anthropic/claude-sonnet-5",
        "anthropic_messages",
        ("/v1/messages", "/v1/messages"),
        lambda url: {"base_url": url, "api_key": KEY},
        "ClaudeProvider.from_config",
    ),
    Subject(
        "openai",
        "openai/gpt-4.1",
        "openai_chat",
        ("/chat/completions", "/chat/completions"),
        lambda url: {"base_url": f"{url}/v1", "api_key": KEY},
        "from_config",
    ),
    Subject(
        "vertex",
        "vertex/gemini-2.5-flash",
        "gemini_content",
        (":generateContent", ":streamGenerateContent"),
        lambda url: {"base_url": url, "project": "bench", "access_token": KEY},
        "VertexProvider.from_config",
    ),
    Subject(
        "bedrock",
        "bedrock/amazon.nova-pro-v1:0",
        "bedrock_converse",
        ("/converse", "/converse-stream"),
        lambda url: {"base_url": url, "region": "us-east-1", "access_key_id": KEY, "secret_access_key": KEY},
        "BedrockProvider.from_config",
        "application/vnd.amazon.eventstream",
    ),
    Subject(
        "local",
        "local/bench",
        "ollama_chat",
        ("/api/chat", "/api/chat"),
        lambda url: {"servers": [{"name": "ollama", "api": "ollama", "base_url": url}]},
        "LocalProvider.from_config",
        "application/x-ndjson",
        {
            "/api/tags": {"models": [{"name": "bench", "model": "bench"}]},
            "/api/show": {"capabilities": ["completion"], "model_info": {"llama.context_length": 8192}},
        },
    ),
)


def canned(subject: Subject) -> list[dict[str, Any]]:
    """The answers of the subject's wire for `canned.py`."""
    wire: Wire = importlib.import_module(f"maestro_sdk.testing.{subject.wire}").WIRE
    answer = Answer(pieces=["token "] * CHUNKS)
    body = json.dumps({"model": subject.model.partition("/")[2], "messages": [], "stream": True}).encode()
    asked = Seen("POST", f"/model{subject.paths[1]}", "", {}, body)
    groups = wire.content(answer, asked)
    steps = [*wire.opening(answer, asked), *(step for group in groups for step in group), *wire.closing(answer, asked)]
    document = json.dumps(wire.document(Answer(pieces=["Hello from the far end. "] * 8), asked)).encode()
    documents = {
        subject.paths[0]: document,
        **{path: json.dumps(found).encode() for path, found in subject.answers.items()},
    }
    pieces = [base64.b64encode(data).decode() for step in steps if (data := render(step))]
    return [
        {"suffix": subject.paths[1], "streams": True, "content_type": subject.content_type, "pieces": pieces},
        *(
            {
                "suffix": path,
                "streams": False,
                "content_type": "application/json",
                "document": base64.b64encode(found).decode(),
            }
            for path, found in documents.items()
        ),
    ]


def render(step: Step) -> bytes:
    """The bytes of one step of a stream."""
    match step:
        case Send(data):
            return data
        case SendJson(value):
            return json.dumps(value).encode()
        case Sse(event, data):
            text = data if isinstance(data, str) else json.dumps(data)
            return (f"event: {event}\n" if event else "").encode() + f"data: {text}\n\n".encode()
        case _:
            return b""


@contextlib.contextmanager
def upstream(subjects: Sequence[Subject], folder: Path) -> Any:
    """The fake provider on the last core; gives its address."""
    file = folder / "canned.json"
    file.write_text(json.dumps([entry for subject in subjects for entry in canned(subject)]))
    process = subprocess.Popen([sys.executable, str(HERE / "canned.py"), str(file)], stdout=subprocess.PIPE, text=True)
    os.sched_setaffinity(process.pid, {_LAST_CORE})
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.terminate()
        process.wait()


def request_of(subject: Subject) -> ChatRequest:
    """The request of the load."""
    request = ChatRequest(model=subject.model, system="Answer in one sentence.", max_tokens=256)
    request.messages.add(role=Role.ROLE_USER).parts.add().text.text = PROMPT
    return request


async def measure_provider(subject: Subject, config: Config, seconds: float) -> tuple[float, float]:
    """CPU seconds of this process per unary call and per chunk, `CALLERS` calls at once."""
    module = importlib.import_module(f"maestro_adapter_{subject.name}.provider")
    provider: Any = operator.attrgetter(subject.build)(module)(config, config.adapters[subject.name])
    request = request_of(subject)

    async def unary() -> int:
        await provider.complete(request)
        return 1

    async def stream() -> int:
        async for _ in provider.stream(request):
            pass
        return CHUNKS

    try:
        return await _cpu(unary, seconds, time.process_time), await _cpu(stream, seconds, time.process_time)
    finally:
        await provider.close()


async def measure_process(subject: Subject, config: Config, file: Path, seconds: float) -> tuple[float, float]:
    """CPU seconds of the adapter's process per unary call and per chunk, `CALLERS` calls at once."""
    environment = {**os.environ, "AWS_EC2_METADATA_DISABLED": "true", "MAESTRO_CONFIG": str(file)}
    address = config.adapters[subject.name].address
    async with (
        _process(f"maestro_adapter_{subject.name}", environment) as pid,
        grpc.aio.insecure_channel(address) as channel,
    ):
        stub: ChatServiceAsyncStub = ChatServiceStub(channel)
        request = request_of(subject)

        async def unary() -> int:
            await stub.Chat(request, wait_for_ready=True, timeout=30)
            return 1

        async def stream() -> int:
            async for _ in stub.StreamChat(request, timeout=30):
                pass
            return CHUNKS

        await unary()
        _pin(pid)
        return await _cpu(unary, seconds, lambda: _cpu_of(pid)), await _cpu(stream, seconds, lambda: _cpu_of(pid))


@contextlib.asynccontextmanager
async def _process(module: str, environment: Mapping[str, str]) -> AsyncGenerator[int]:
    # What `maestro up` and the images set for every service.
    grpc_settings = {"GRPC_EXPERIMENTS": "-event_engine_client,-event_engine_listener", "GRPC_ENABLE_FORK_SUPPORT": "0"}
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", module, env={**grpc_settings, **environment}, stderr=asyncio.subprocess.DEVNULL
    )
    try:
        yield process.pid
    finally:
        process.terminate()
        await process.wait()


async def _cpu(call: Callable[[], Any], seconds: float, clock: Callable[[], float]) -> float:
    """What `clock` counts per unit that `call` returns."""
    await _load(call, seconds / 4)
    before = clock()
    units = await _load(call, seconds)
    return (clock() - before) / max(1, units)


async def _load(call: Callable[[], Any], seconds: float) -> int:
    end = time.monotonic() + seconds

    async def work() -> int:
        units = 0
        while time.monotonic() < end:
            units += await call()
        return units

    return sum(await asyncio.gather(*(work() for _ in range(CALLERS))))


def _pin(pid: int) -> None:
    """Keeps all threads of a process on the first core."""
    for thread in Path(f"/proc/{pid}/task").iterdir():
        os.sched_setaffinity(int(thread.name), {0})


def _cpu_of(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / TICKS


async def run(subjects: Sequence[Subject], seconds: float) -> None:
    """Prints a row per adapter."""
    print(f"{'':10}{'provider':>24}{'process':>28}")
    print(f"{'':10}{'ms/call':>12}{'µs/chunk':>12}{'ms/call':>16}{'µs/chunk':>12}")
    with tempfile.TemporaryDirectory() as name, upstream(subjects, Path(name)) as url:
        os.environ["BENCH_PROVIDER_KEY"] = "sk-bench"
        adapters = {
            subject.name: {"address": f"127.0.0.1:{free_port()}", "settings": dict(subject.settings(url))}
            for subject in subjects
        }
        file = Path(name) / "maestro.yaml"
        file.write_text(yaml.safe_dump({"adapters": adapters, "routes": {}, "aliases": {}}))
        config = load(file)
        for subject in subjects:
            os.sched_setaffinity(0, {0})
            call, chunk = await measure_provider(subject, config, seconds)
            os.sched_setaffinity(0, {_LAST_CORE})
            own_call, own_chunk = await measure_process(subject, config, file, seconds)
            own = f"{own_call * 1e3:>16.3f}{own_chunk * 1e6:>12.1f}"
            print(f"{subject.name:<10}{call * 1e3:>12.3f}{chunk * 1e6:>12.1f}{own}")


def main() -> None:
    """The whole program."""
    parser = argparse.ArgumentParser(description="Measure the CPU cost of each adapter alone.")
    parser.add_argument("adapters", nargs="*", metavar="ADAPTER", help="default: all")
    parser.add_argument("--seconds", type=float, default=3.0, help="length of one load (default 3)")
    given = parser.parse_args()
    chosen = [subject for subject in SUBJECTS if not given.adapters or subject.name in given.adapters]
    uvloop.run(run(chosen, given.seconds))


if __name__ == "__main__":
    main()
