"""The connection of a client: its target, its bounds, its end, and who shares it."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import grpc
import pytest

from maestro.llm.v1.chat_pb2 import ChatEvent, Finish, FinishReason
from maestro.llm.v1.chat_pb2_grpc import add_ChatServiceServicer_to_server
from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.adapter.servicer import ChatServicer
from maestro_sdk.connection import parse_target
from maestro_sdk.errors import Cancelled, MaestroError, TooLarge, UpstreamError
from maestro_sdk.llm_client import LLMClient
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer
from maestro_sdk.testing.servers import free_port, serve
from maestro_sdk.types import text_of

MODEL = "scripted/model"


async def test_nobody_there_is_told_at_once_with_the_address():
    address = f"127.0.0.1:{free_port()}"
    async with LLMClient(address) as client, asyncio.timeout(5):
        with pytest.raises(UpstreamError, match=f"{address} can't be reached") as failed:
            await client.chat("Hi")
        assert failed.value.retryable
        with pytest.raises(UpstreamError):
            await client.stream("Hi").response()


async def test_a_message_over_the_bound_is_too_large_and_no_rate_limit():
    huge = "x" * (25 * 1024 * 1024)
    finish = ChatEvent(finish=Finish(reason=FinishReason.FINISH_REASON_STOP, raw_reason=huge, usage=Usage()))
    provider = ScriptedProvider([answer()[0], finish])
    async with serve(ChatServicer(provider)) as address, LLMClient(address, model=MODEL) as client:
        with pytest.raises(TooLarge, match="at most"):
            await client.chat(huge)
        assert provider.requests == []
        with pytest.raises(TooLarge):
            await client.chat("Hi")


async def test_closing_the_client_ends_its_calls():
    provider = ScriptedProvider(answer("a", "b"), fault=Fault.STALL_AFTER_CONTENT)
    async with serve(ChatServicer(provider)) as address:
        client = LLMClient(address, model=MODEL)
        stream = client.stream("Hi")
        assert (await anext(stream)).HasField("started")
        waiting = asyncio.create_task(client.chat("Hi"))
        while len(provider.requests) < 2:
            await asyncio.sleep(0.01)
        await client.close()
        with pytest.raises(Cancelled, match="the client was closed"):
            await waiting
        with pytest.raises(MaestroError):
            await stream.response()
        with pytest.raises(RuntimeError, match="the client is closed"):
            await client.chat("Hi")
        await client.close()


def test_a_client_outlives_the_loop_of_one_run(threaded: Any):
    address = threaded(ChatServicer(ScriptedProvider(answer("Hi"))))
    client = LLMClient(address, model=MODEL)
    for _ in range(3):
        assert text_of(asyncio.run(client.chat("Hello"))) == "Hi"
    asyncio.run(client.close())


async def test_two_running_loops_need_two_clients(threaded: Any):
    address = threaded(ChatServicer(ScriptedProvider(answer("Hi"))))
    async with LLMClient(address, model=MODEL) as client:
        await client.chat("Hello")
        with pytest.raises(RuntimeError, match="in another event loop"):
            await asyncio.to_thread(lambda: asyncio.run(client.chat("Hello")))
        assert text_of(await client.chat("Hello")) == "Hi"


async def test_many_calls_share_a_client():
    provider = ScriptedProvider(answer("a", "b"))
    async with serve(ChatServicer(provider)) as address, LLMClient(address, model=MODEL) as client:
        unary = [client.chat(f"{number}") for number in range(30)]
        streams = [client.stream(f"{number}").response() for number in range(30)]
        responses = await asyncio.gather(*unary, *streams)
    assert [text_of(response) for response in responses] == ["ab"] * 60
    assert len(provider.requests) == 60


async def test_https_speaks_tls_and_trusts_only_the_given_roots(tmp_path: Path):
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("there is no openssl to make a certificate with")
    certificate, private = tmp_path / "cert.pem", tmp_path / "key.pem"
    arguments = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -days 2"
    made = await asyncio.create_subprocess_exec(
        openssl,
        *arguments.split(),
        *(
            "-keyout",
            str(private),
            "-out",
            str(certificate),
            "-subj",
            "/CN=localhost",
            "-addext",
            "subjectAltName=DNS:localhost",
        ),
        stderr=asyncio.subprocess.DEVNULL,
    )
    assert await made.wait() == 0
    roots = certificate.read_bytes()
    server = grpc.aio.server()
    add_ChatServiceServicer_to_server(ChatServicer(ScriptedProvider(answer("safe"))), server)
    port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([(private.read_bytes(), roots)]))
    await server.start()
    try:
        async with LLMClient(f"https://localhost:{port}", roots=roots, model=MODEL) as client:
            assert text_of(await client.chat("Hi")) == "safe"
        async with LLMClient(f"https://localhost:{port}", model=MODEL) as client:
            with pytest.raises(UpstreamError, match="can't be reached"):
                await client.chat("Hi")
    finally:
        await server.stop(None)


@pytest.mark.parametrize(
    ("text", "address", "secure"),
    [
        ("http://127.0.0.1:8080", "127.0.0.1:8080", False),
        (" http://mesh.example/ ", "mesh.example:80", False),
        ("https://mesh.example", "mesh.example:443", True),
        ("HTTPS://mesh.example:8443", "mesh.example:8443", True),
        ("http://[::1]:8080", "[::1]:8080", False),
        ("localhost:50051", "localhost:50051", False),
        ("[::1]:50051", "[::1]:50051", False),
        ("unix:/run/mesh.sock", "unix:/run/mesh.sock", False),
        ("dns:///mesh:50051", "dns:///mesh:50051", False),
    ],
)
def test_targets(text: str, address: str, secure: bool):
    target = parse_target(text)
    assert (target.address, target.secure) == (address, secure)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "localhost",
        "http://",
        "http://h:1/v1/chat",
        "https://mk-1@h",
        "ftp://h:1",
        "h:port",
        "h:1/x",
        "http://h:99999",
    ],
)
def test_what_is_no_target_is_refused(text: str):
    with pytest.raises(ValueError, match=r"."):
        parse_target(text)


async def test_wrong_parameters_are_refused_before_anything_is_sent(monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="characters that no key has"):
        LLMClient(key="mk-\nx")
    with pytest.raises(ValueError, match="for https"):
        LLMClient("http://h:1", roots=b"")
    monkeypatch.setenv("MAESTRO_URL", "nonsense")
    with pytest.raises(ValueError, match="nonsense"):
        LLMClient()
    client = LLMClient("h:1")
    with pytest.raises(ValueError, match="request id"):
        await client.chat("Hi", request_id="with space")
    with pytest.raises(TypeError, match="no field temprature"):
        await client.chat("Hi", temprature=1.0)  # pyright: ignore[reportCallIssue]
    await client.close()
