"""The synchronous clients: in scripts, in threads, inside a running loop, and at the end of the program."""

import asyncio
import contextvars
import gc
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro_sdk.adapter.servicer import ChatServicer, ModelServicer
from maestro_sdk.errors import Cancelled, Overloaded, Timeout
from maestro_sdk.llm_client import LLMClient
from maestro_sdk.sync import SyncLLMClient
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer
from maestro_sdk.testing.servers import serve
from maestro_sdk.types import text_of, tool

MODEL = "scripted/model"
Serving = Callable[..., str]


class Watched(ScriptedProvider):
    """Tells other threads what `ScriptedProvider` tells its loop."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.left = threading.Event()

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        whole = False
        try:
            async for events in super().stream(request):
                yield events
            whole = True
        finally:
            if not whole:
                self.left.set()

    async def count_tokens(self, request: ChatRequest) -> int:
        return 7


def test_calls_answers_and_errors_are_those_of_the_asynchronous_client(threaded: Serving):
    provider = Watched(answer("Hello", " there"))
    with SyncLLMClient(threaded(ChatServicer(provider), ModelServicer(provider)), model=MODEL) as client:
        whole = client.chat("Hi")
        with client.stream("Hi") as stream:
            kinds = [event.WhichOneof("kind") for event in stream]
            assert stream.response() == whole
        assert list(client.stream("Hi").text()) == ["Hello", " there"]
        assert client.stream("Hi").response() == whole
        assert client.count_tokens("Hi").input_tokens == 7
        assert [model.id for model in client.models()] == [MODEL]
        provider.fault = Fault.ERROR_BEFORE_CONTENT
        with pytest.raises(Overloaded) as failed:
            client.chat("Hi", request_id="mine")
        assert failed.value.metadata["request_id"] == "mine"
        provider.fault = Fault.STALL_BEFORE_CONTENT
        with pytest.raises(Timeout):
            client.chat("Hi", timeout=0.1)
    assert kinds == ["started", "text", "text", "finish"]
    with pytest.raises(RuntimeError, match="the client is closed"):
        client.chat("Hi")


async def test_inside_a_running_loop_beside_the_asynchronous_client(threaded: Serving):
    """Both in one thread, and the loop of the caller is left as it was."""
    address = threaded(ChatServicer(ScriptedProvider(answer("a", "b"))))
    async with LLMClient(address, model=MODEL) as fellow:
        with SyncLLMClient(address, model=MODEL) as client:
            for _ in range(20):
                busy = asyncio.create_task(fellow.chat("Hi"))
                assert text_of(client.chat("Hi")) == "ab"
                assert list(client.stream("Hi").text()) == ["a", "b"]
                assert text_of(await busy) == "ab"


def test_many_threads_share_a_client(threaded: Serving):
    provider = ScriptedProvider(answer(*"abcdef"))
    with SyncLLMClient(threaded(ChatServicer(provider)), model=MODEL) as client, ThreadPoolExecutor(8) as pool:

        def ask(number: int) -> str:
            if number % 2:
                return text_of(client.chat(f"{number}"))
            return "".join(client.stream(f"{number}").text())

        answers = list(pool.map(ask, range(100)))
    assert answers == ["abcdef"] * 100
    assert len(provider.requests) == 100
    assert [thread.name for thread in threading.enumerate()].count("maestro-sdk") == 1


@pytest.mark.parametrize("way", ["context", "close", "drop", "text"])
def test_closing_a_stream_early_cancels_the_call(threaded: Serving, way: str):
    provider = Watched(answer("a", "b"), fault=Fault.STALL_AFTER_CONTENT)
    with SyncLLMClient(threaded(ChatServicer(provider)), model=MODEL) as client:
        match way:
            case "context":
                with client.stream("Hi") as stream:
                    next(stream)
                with pytest.raises(Cancelled):
                    next(stream)
            case "close":
                stream = client.stream("Hi")
                next(stream)
                stream.close()
                with pytest.raises(Cancelled):
                    stream.response()
            case "drop":
                for _ in client.stream("Hi").text():
                    break
                gc.collect()
            case _:
                pieces = client.stream("Hi").text()
                assert next(pieces) == "a"
                pieces.close()
        assert provider.left.wait(0.5)


def test_another_thread_may_close_a_stream_that_waits(threaded: Serving):
    provider = Watched(answer("a", "b"), fault=Fault.STALL_AFTER_CONTENT)
    with SyncLLMClient(threaded(ChatServicer(provider)), model=MODEL) as client, ThreadPoolExecutor(1) as pool:
        stream = client.stream("Hi")
        assert next(stream.text()) == "a"
        waiting = pool.submit(stream.response)
        stream.close()
        with pytest.raises(Cancelled, match="the stream was closed"):
            waiting.result(5)


def test_tools_run_in_threads_and_may_ask_themselves(threaded: Serving):
    provider = ScriptedProvider(answer(calls=[("c1", "ask", '{"what":"x"}')]))
    caller = contextvars.ContextVar("caller", default="")
    caller.set("me")
    with SyncLLMClient(threaded(ChatServicer(provider)), model=MODEL) as client:

        def ask(what: str) -> str:
            provider.events = answer("inner")
            return f"{caller.get()} {what} {text_of(client.chat(what))}"

        run = client.run_tools("Go", {"ask": ask}, tools=[tool("ask")])
    assert text_of(run.response) == "inner"
    assert run.messages[2].parts[0].tool_result.parts[0].text.text == "me x inner"


def test_an_asynchronous_function_cannot_block_the_loop_it_runs_in(threaded: Serving):
    provider = ScriptedProvider(answer(calls=[("c1", "ask", "{}")]))
    with SyncLLMClient(threaded(ChatServicer(provider)), model=MODEL) as client:

        async def ask() -> str:
            provider.events = answer("done")
            return text_of(client.chat("deadlock?"))

        run = client.run_tools("Go", {"ask": ask}, tools=[tool("ask")])
    told = run.messages[2].parts[0].tool_result
    assert told.is_error
    assert "can't serve its own event loop" in told.parts[0].text.text


# What a program does at its end can only be seen from outside.
_SCRIPT = """
import os, signal, sys, threading
from maestro_sdk import SyncLLMClient, text_of
# What runs in the background of a shell is born deaf to Ctrl-C, and so is what it starts.
signal.signal(signal.SIGINT, signal.default_int_handler)
client = SyncLLMClient(model="scripted/model")
"""


async def run_script(address: str, body: str, *, interrupt_at: str = "") -> tuple[int, str, str]:
    """Runs a program whose every warning is an error; sends Ctrl-C once it has printed `interrupt_at`."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-X", "dev", "-W", "error", "-c", _SCRIPT + body),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "MAESTRO_URL": f"http://{address}", "GRPC_VERBOSITY": "NONE"},
    )
    try:
        assert process.stdout is not None
        said = ""
        if interrupt_at:
            async with asyncio.timeout(20):
                while interrupt_at not in said:
                    line = (await process.stdout.readline()).decode()
                    assert line, (await process.stderr.read()).decode() if process.stderr else ""
                    said += line
            process.send_signal(signal.SIGINT)
        async with asyncio.timeout(20):
            out, errors = await process.communicate()
        return await process.wait(), said + out.decode(), errors.decode()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize(
    "body",
    [
        "print(text_of(client.chat('Hi')))",
        "with client: print(text_of(client.chat('Hi')))",
        "print(''.join(client.stream('Hi').text()))",
        "s = client.stream('Hi'); next(s); print('Hello')",
        # A worker that was forked before the first call has a connection of its own.
        "if os.fork() == 0: print(text_of(client.chat('Hi')))\nelse: os.wait()",
        "import asyncio\nasync def main(): return text_of(client.chat('Hi'))\nprint(asyncio.run(main()))",
    ],
)
async def test_a_program_ends_without_a_word(body: str):
    async with serve(ChatServicer(ScriptedProvider(answer("Hello")))) as address:
        code, out, errors = await run_script(address, body + "\nsys.stdout.flush()")
    assert (code, out.strip(), errors) == (0, "Hello", "")


async def test_a_program_may_end_while_a_thread_still_asks():
    provider = ScriptedProvider(answer("a"), fault=Fault.STALL_BEFORE_CONTENT)
    body = """
def ask():
    try: client.chat("Hi")
    except Exception as error: print(type(error).__name__, flush=True)
threading.Thread(target=ask, daemon=True).start()
stream = client.stream("Hi")
next(stream)
"""
    async with serve(ChatServicer(provider)) as address:
        began = time.monotonic()
        code, _, errors = await run_script(address, body)
        assert (code, errors) == (0, "")
        assert time.monotonic() - began < 10
        async with asyncio.timeout(2):
            await provider.abandoned.wait()


async def test_a_fork_after_the_first_call_is_an_error_instead_of_a_crash():
    body = """
client.chat("Hi")
child = os.fork()
try: print(text_of(client.chat("Hi")), flush=True)
except RuntimeError as error: print(error, flush=True)
if child: print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    async with serve(ChatServicer(ScriptedProvider(answer("Hello")))) as address:
        code, out, errors = await run_script(address, body)
    refused = "gRPC does not survive a fork: start workers with `spawn`, or fork before the first call"
    assert (code, sorted(out.splitlines()), errors) == (0, ["0", "Hello", refused], "")


class Stalling(ScriptedProvider):
    """Never ends its first answer; gives the next one when the caller has left the first."""

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        if not self.requests:
            async for events in super().stream(request):
                yield events
        else:
            await asyncio.wait_for(self.abandoned.wait(), 5)
            yield answer("cancelled")


@pytest.mark.parametrize("call", ["client.chat('Hi')", "list(client.stream('Hi'))", "client.stream('Hi').response()"])
async def test_an_interrupted_wait_cancels_the_call(call: str):
    """What Ctrl-C does, from a timer: only so the signal surely comes while the program waits."""
    body = f"""
signal.signal(signal.SIGALRM, signal.default_int_handler)
signal.setitimer(signal.ITIMER_REAL, 0.5)
try: {call}
except KeyboardInterrupt: print(text_of(client.chat('Hi')))
"""
    provider = Stalling(answer("a", "b"), fault=Fault.STALL_AFTER_CONTENT)
    async with serve(ChatServicer(provider)) as address:
        code, out, errors = await run_script(address, body)
    assert (code, out.strip(), errors) == (0, "cancelled", "")


async def test_ctrl_c_ends_the_program_and_its_calls():
    provider = ScriptedProvider(answer("a"), fault=Fault.STALL_BEFORE_CONTENT)
    body = """
stream = client.stream("Hi")
next(stream)
print("ready", flush=True)
stream.response()
"""
    async with serve(ChatServicer(provider)) as address:
        code, _, errors = await run_script(address, body, interrupt_at="ready")
        async with asyncio.timeout(2):
            await provider.abandoned.wait()
    assert code in {-signal.SIGINT, 130}
    assert errors.strip().endswith("KeyboardInterrupt")
    assert "Exception ignored" not in errors


def test_importing_the_package_costs_next_to_nothing():
    code = """
import sys, time
began = time.perf_counter()
import maestro_sdk
assert "grpc" not in sys.modules
maestro_sdk.SyncLLMClient, maestro_sdk.user, maestro_sdk.text_of, maestro_sdk.EmbeddingClient
took = time.perf_counter() - began
heavy = {"aiohttp", "jsonschema", "nats", "opentelemetry", "orjson", "protovalidate", "pydantic", "uvloop", "yaml"}
print(sorted(heavy & set(sys.modules)), took < 3.0)
assert set(maestro_sdk.__all__) <= set(dir(maestro_sdk))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=30)
    # The bound in seconds is for a machine that is busy with other tests; it takes a tenth of it.
    assert done.stdout.strip() == "[] True"


def test_every_exported_name_is_there():
    import maestro_sdk

    assert [name for name in maestro_sdk.__all__ if getattr(maestro_sdk, name).__name__ != name] == []
    with pytest.raises(AttributeError, match="no attribute 'Client'"):
        maestro_sdk.Client  # noqa: B018 - reading it is the test
