"""HttpWire on a real socket: every failure of the transport becomes the contract's error, leaving closes the socket."""

import asyncio
import email.utils
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import asynccontextmanager

import pytest

from maestro_sdk.adapter.http import HttpWire, retry_after
from maestro_sdk.errors import InvalidRequest, MaestroError, RateLimited, StreamBroken, Timeout, UpstreamError
from maestro_sdk.testing.faults import (
    Cut,
    FaultServer,
    Headers,
    Seen,
    Send,
    SendJson,
    Sse,
    Stall,
    Step,
    Wait,
)
from maestro_sdk.testing.servers import free_port

_TURNS = 20
"""Turns of the loop that see what lies in the socket already: data, its end, and the loss of the connection."""
STREAM = Headers(200, {"content-type": "text/event-stream"})


def to_error(status: int, body: bytes, headers: Mapping[str, str]) -> MaestroError:
    cls = RateLimited if status == 429 else InvalidRequest
    return cls(f"{status} {body.decode()}", retry_after=retry_after(headers))


@asynccontextmanager
async def wired(*steps: Step, read_timeout: float = 5.0, method: str = "POST"):
    """A server that answers with `steps`, and a wire to it."""
    async with FaultServer() as server:
        server.on(method, "/v1/x", *steps)
        wire = HttpWire(server.url + "/", {"x-api-key": "secret"}, to_error, read_timeout=read_timeout)
        try:
            yield server, wire
        finally:
            await wire.close()


async def read_all(wire: HttpWire) -> bytes:
    async with wire.stream("/v1/x", b"{}") as chunks:
        return b"".join([chunk async for chunk in chunks])


async def test_post_sends_and_returns_bytes():
    async with wired(SendJson({"answer": 1})) as (server, wire):
        assert await wire.post("/v1/x", b'{"question":1}', {"x-more": "yes"}) == b'{"answer":1}'
        seen = server.requests[0]
    assert seen.body == b'{"question":1}'
    sent = {name: seen.headers[name] for name in ("x-api-key", "x-more", "content-type")}
    assert sent == {"x-api-key": "secret", "x-more": "yes", "content-type": "application/json"}


async def test_get_returns_bytes():
    async with wired(SendJson([1]), method="GET") as (_, wire):
        assert await wire.get("/v1/x") == b"[1]"


async def test_stream_gives_each_read_as_it_comes():
    async with wired(Send(b"one"), Wait(0.05), Send(b"two")) as (_, wire), wire.stream("/v1/x", b"{}") as chunks:
        assert [chunk async for chunk in chunks] == [b"one", b"two"]


@pytest.mark.parametrize(
    ("steps", "expected"),
    [
        pytest.param((Cut(),), UpstreamError, id="cut-before-headers"),
        pytest.param((Cut(reset=True),), UpstreamError, id="reset-before-headers"),
        pytest.param((Sse(None, "x"), Cut()), StreamBroken, id="cut-mid-stream"),
        pytest.param((Sse(None, "x"), Wait(0.05), Cut(reset=True)), StreamBroken, id="reset-mid-stream"),
        pytest.param((Headers(200, {"content-length": "9"}), Send(b"x"), Cut()), StreamBroken, id="cut-in-document"),
        pytest.param((Stall(),), Timeout, id="stall-before-headers"),
        pytest.param((STREAM, Wait(0), Stall()), Timeout, id="stall-after-headers"),
        pytest.param((Sse(None, "x"), Stall()), Timeout, id="stall-mid-stream"),
    ],
)
@pytest.mark.parametrize("call", ["post", "stream"])
async def test_transport_failures(steps: tuple[Step, ...], expected: type[MaestroError], call: str):
    async with wired(*steps, read_timeout=0.2) as (_, wire):
        with pytest.raises(expected) as caught:
            await (wire.post("/v1/x", b"{}") if call == "post" else read_all(wire))
    assert type(caught.value) is expected
    assert (caught.value.retryable, caught.value.failover, caught.value.counts_against_health) == (True, True, True)
    assert "secret" not in str(caught.value)


async def test_get_maps_failures_like_post():
    async with wired(Headers(200, {"content-length": "9"}), Send(b"x"), Cut(), method="GET") as (_, wire):
        with pytest.raises(StreamBroken):
            await wire.get("/v1/x")


@pytest.mark.parametrize("call", ["post", "stream"])
async def test_refused_connection_names_the_address(call: str):
    address = f"http://127.0.0.1:{free_port()}"
    wire = HttpWire(address, {}, to_error)
    with pytest.raises(UpstreamError, match=address):
        await (wire.post("/v1/x", b"{}") if call == "post" else read_all(wire))
    await wire.close()


@pytest.mark.parametrize("call", ["post", "stream"])
async def test_a_refused_call_is_mapped_by_the_adapter(call: str):
    async with wired(Headers(429, {"Retry-After-Ms": "1500"}), SendJson({"error": "slow down"})) as (_, wire):
        with pytest.raises(RateLimited, match=r'429 \{"error":"slow down"\}') as caught:
            await (wire.post("/v1/x", b"{}") if call == "post" else read_all(wire))
    assert caught.value.retry_after == 1.5


async def test_a_refusal_that_is_cut_is_a_transport_failure():
    async with wired(Headers(400, {"content-length": "9"}), Send(b"x"), Cut()) as (_, wire):
        with pytest.raises(StreamBroken):
            await read_all(wire)


async def test_a_clean_end_is_a_clean_end():
    async with wired(Sse(None, "x")) as (_, wire):
        assert await read_all(wire) == b"data: x\n\n"


async def test_what_was_read_before_a_cut_is_given():
    got: list[bytes] = []
    async with wired(Send(b"one"), Wait(0.05), Cut()) as (_, wire):
        with pytest.raises(StreamBroken):
            async with wire.stream("/v1/x", b"{}") as chunks:
                got.append(await anext(chunks))
                await anext(chunks)
    assert got == [b"one"]


@pytest.mark.parametrize("reset", [False, True], ids=["closed", "reset"])
@pytest.mark.parametrize("chunked", [False, True], ids=["document", "chunked"])
async def test_what_arrived_before_a_cut_is_given_to_a_reader_that_comes_late(chunked: bool, reset: bool):
    """The reader is busy with the first piece while the second one arrives, and the cut behind it."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        wire = HttpWire(f"http://127.0.0.1:{listener.getsockname()[1]}", {}, to_error)
        serving = asyncio.ensure_future(_serve_one(listener, chunked))
        got: list[bytes] = []
        with pytest.raises(StreamBroken):
            async with wire.stream("/v1/x", b"{}") as chunks:
                got.append(await anext(chunks))
                peer = await serving
                peer.sendall(_framed(b"two", chunked))
                if reset:
                    peer.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                peer.close()
                for _ in range(_TURNS):
                    await asyncio.sleep(0)
                async for chunk in chunks:
                    got.append(chunk)  # noqa: PERF401 - what came before the cut is kept.
        await wire.close()
    assert got == [b"one", b"two"]


async def _serve_one(listener: socket.socket, chunked: bool) -> socket.socket:
    """Takes one request and answers it with its first piece; the connection stays open."""
    loop = asyncio.get_running_loop()
    peer, _ = await loop.sock_accept(listener)
    received = b""
    while not received.endswith(b"{}"):
        received += await loop.sock_recv(peer, 65536)
    length = b"transfer-encoding: chunked" if chunked else b"content-length: 99"
    peer.sendall(b"HTTP/1.1 200 OK\r\n" + length + b"\r\n\r\n" + _framed(b"one", chunked))
    return peer


def _framed(data: bytes, chunked: bool) -> bytes:
    return b"%x\r\n%s\r\n" % (len(data), data) if chunked else data


async def test_leaving_the_stream_early_closes_the_socket():
    async with wired(Send(b"one"), Stall()) as (server, wire):
        async with wire.stream("/v1/x", b"{}") as chunks:
            assert await anext(aiter(chunks)) == b"one"
            left = time.monotonic()
        assert await closed_after(server.requests[0], left) < 1


@pytest.mark.parametrize("steps", [(Stall(),), (Send(b"one"), Stall())], ids=["before-headers", "mid-stream"])
@pytest.mark.parametrize("call", ["post", "stream"])
async def test_cancelling_closes_the_socket(steps: tuple[Step, ...], call: str):
    async with wired(*steps) as (server, wire):
        task = asyncio.ensure_future(wire.post("/v1/x", b"{}") if call == "post" else read_all(wire))
        seen = await server.request(0)
        await asyncio.sleep(0.05)
        task.cancel()
        left = time.monotonic()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await closed_after(seen, left) < 1


async def test_errors_of_the_caller_pass_unchanged():
    async with wired(Send(b"one"), Stall()) as (_, wire):
        with pytest.raises(LookupError):
            async with wire.stream("/v1/x", b"{}"):
                raise LookupError("mine")


async def test_connections_are_reused():
    async with wired(SendJson(1)) as (server, wire):
        for _ in range(3):
            assert await wire.post("/v1/x", b"{}") == b"1"
        await wire.close()
        async with asyncio.timeout(5):
            await asyncio.gather(*(seen.closed.wait() for seen in server.requests))
        assert len({seen.closed_at for seen in server.requests}) == 1


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, None),
        ({"retry-after": "7"}, 7.0),
        ({"retry-after": "0.5"}, 0.5),
        ({"retry-after": "-3"}, 0.0),
        ({"retry-after-ms": "250"}, 0.25),
        ({"x-ms-retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9.0),
        ({"retry-after": "Thu, 01 Jan 2026 00:00:30 GMT"}, 30.0),
        ({"retry-after": "Thu, 01 Jan 2026 00:00:30 -0000"}, 30.0),
        ({"retry-after": "Thu, 01 Jan 2026 01:00:30 +0100"}, 30.0),
        ({"retry-after": "Wed, 31 Dec 2025 00:00:00 GMT"}, 0.0),
        ({"retry-after": "tomorrow"}, None),
        ({"retry-after": "inf"}, None),
        ({"retry-after": "nan"}, None),
        ({"retry-after": ""}, None),
    ],
)
def test_each_form_of_retry_after(headers: dict[str, str], seconds: float | None):
    assert retry_after(headers, now=1767225600.0) == seconds


def test_a_date_counts_from_now():
    soon = email.utils.format_datetime(email.utils.localtime(), usegmt=False)
    hint = retry_after({"retry-after": soon})
    assert hint is not None
    assert 0 <= hint <= 1


async def closed_after(seen: Seen, left: float) -> float:
    async with asyncio.timeout(5):
        await seen.closed.wait()
    assert seen.closed_at is not None
    return seen.closed_at - left


async def test_headers_of_a_good_answer_are_heard() -> None:
    """Before the first byte of a stream, and not at all when the call was refused."""
    async with FaultServer() as server:
        server.on("POST", "/good", Headers(200, {"X-Region": "north"}), Send(b"a"), Send(b"b"))
        server.on("POST", "/bad", Headers(500, {"X-Region": "south"}), Send(b"no"))
        wire = HttpWire(server.url, {}, lambda status, body, headers: UpstreamError(str(status)))
        heard: list[str] = []

        def hear(headers: Mapping[str, str]) -> None:
            heard.append(headers["x-region"])

        assert await wire.post("/good", b"{}", hear=hear) == b"ab"
        async with wire.stream("/good?version=1", b"{}", {"authorization": "Bearer t"}, hear) as chunks:
            assert heard == ["north", "north"]
            assert b"".join([chunk async for chunk in chunks]) == b"ab"
        with pytest.raises(UpstreamError):
            await wire.post("/bad", b"{}", hear=hear)
        assert heard == ["north", "north"]
        assert (server.requests[1].path, server.requests[1].query) == ("/good", "version=1")
        assert server.requests[1].headers["authorization"] == "Bearer t"
        await wire.close()


@pytest.mark.parametrize("call", ["post", "get", "stream"])
async def test_no_redirect_is_followed(call: str) -> None:
    """Keys and prompts go where the configuration says: a redirect is a refusal."""
    async with FaultServer() as server, FaultServer() as other:
        for method in ("POST", "GET"):
            server.on(method, "/v1/x", Headers(307, {"location": f"{other.url}/v1/x"}), Send(b"over there"))
            other.on(method, "/v1/x", SendJson({}))
        wire = HttpWire(server.url, {"x-api-key": "secret"}, to_error)
        with pytest.raises(InvalidRequest, match="307 over there"):
            match call:
                case "post":
                    await wire.post("/v1/x", b"{}")
                case "get":
                    await wire.get("/v1/x")
                case _:
                    async with wire.stream("/v1/x", b"{}"):
                        pass
        await wire.close()
        assert not other.requests
