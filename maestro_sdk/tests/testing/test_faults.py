"""Each step of the fault server does to a real HTTP client what it says."""

import asyncio
import time

import aiohttp
import pytest

from maestro_sdk.testing.faults import (
    Cut,
    End,
    FaultServer,
    Headers,
    Seen,
    Send,
    SendJson,
    Sse,
    Stall,
    Step,
    Wait,
    WaitFor,
    parse_request,
)


@pytest.fixture
async def server():
    async with FaultServer() as running:
        yield running


@pytest.fixture
async def client():
    async with aiohttp.ClientSession() as session:
        yield session


async def test_single_json_has_its_length(server: FaultServer, client: aiohttp.ClientSession):
    server.on("POST", "/v1/x", SendJson({"answer": "é"}))
    async with client.post(f"{server.url}/v1/x?page=2", json={"question": 1}, headers={"X-Key": "k"}) as response:
        assert (response.status, await response.json()) == (200, {"answer": "é"})
        assert response.headers["content-length"] == "15"
        assert response.headers["content-type"] == "application/json"
    seen = server.requests[0]
    assert (seen.method, seen.path, seen.query, seen.headers["x-key"]) == ("POST", "/v1/x", "page=2", "k")
    assert seen.json() == {"question": 1}


async def test_status_and_headers_of_a_refusal(server: FaultServer, client: aiohttp.ClientSession):
    server.on("POST", "/x", Headers(529, {"Retry-After": "3"}), SendJson({"error": "busy"}), End())
    async with client.post(f"{server.url}/x") as response:
        assert (response.status, response.headers["retry-after"]) == (529, "3")
        assert await response.json() == {"error": "busy"}


async def test_events_are_chunked_and_end_cleanly(server: FaultServer, client: aiohttp.ClientSession):
    server.on("POST", "/x", Sse("greeting", {"text": "a\nb"}), Sse(None, "one\ntwo"))
    async with client.post(f"{server.url}/x") as response:
        assert response.headers["content-type"] == "text/event-stream"
        assert response.headers["transfer-encoding"] == "chunked"
        expected = b'event: greeting\ndata: {"text":"a\\nb"}\n\ndata: one\ndata: two\n\n'
        assert await response.read() == expected


async def test_head_goes_out_before_a_wait(server: FaultServer, client: aiohttp.ClientSession):
    gate = asyncio.Event()
    server.on("POST", "/x", Headers(200, {"content-type": "text/event-stream"}), WaitFor(gate), Sse(None, "late"))
    async with client.post(f"{server.url}/x") as response:
        assert response.status == 200
        gate.set()
        assert await response.read() == b"data: late\n\n"


async def test_wait_lasts_as_long_as_it_says(server: FaultServer, client: aiohttp.ClientSession):
    server.on("POST", "/x", Send(b"1"), Wait(0.1), Send(b"2"))
    async with client.post(f"{server.url}/x") as response:
        assert await response.content.readany() == b"1"
        first = time.monotonic()
        assert await response.content.readany() == b"2"
        assert 0.08 < time.monotonic() - first < 2


async def test_cut_before_the_head_disconnects(server: FaultServer, client: aiohttp.ClientSession):
    server.on("POST", "/x", Cut())
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await client.post(f"{server.url}/x")


async def test_cut_inside_chunks_is_a_payload_error(server: FaultServer, client: aiohttp.ClientSession):
    server.on("POST", "/x", Sse(None, "first"), Cut())
    async with client.post(f"{server.url}/x") as response:
        assert await response.content.readany() == b"data: first\n\n"
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.readany()


async def test_cut_inside_a_promised_length_is_a_payload_error(server: FaultServer, client: aiohttp.ClientSession):
    server.on("POST", "/x", Headers(200, {"content-length": "10"}), Send(b"half."), Cut())
    async with client.post(f"{server.url}/x") as response:
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.read()


async def test_reset_is_a_connection_error(server: FaultServer, client: aiohttp.ClientSession):
    server.on("POST", "/x", Cut(reset=True))
    with pytest.raises(aiohttp.ClientConnectionError):
        await client.post(f"{server.url}/x")


@pytest.mark.parametrize("steps", [(Stall(),), (Sse(None, "first"), Stall())], ids=["before-head", "in-stream"])
async def test_stall_holds_until_the_peer_goes_and_sees_it_at_once(
    server: FaultServer, client: aiohttp.ClientSession, steps: tuple[Step, ...]
):
    server.on("POST", "/x", *steps)
    call = asyncio.create_task(_read(client, f"{server.url}/x"))
    seen = await server.request(0)
    await asyncio.sleep(0.1)
    assert not call.done()
    assert not seen.closed.is_set()
    call.cancel()
    left = time.monotonic()
    with pytest.raises(asyncio.CancelledError):
        await call
    async with asyncio.timeout(5):
        await seen.closed.wait()
    assert seen.closed_at is not None
    assert seen.closed_at - left < 1


async def test_closing_by_the_server_is_not_the_peers(server: FaultServer, client: aiohttp.ClientSession):
    server.on("POST", "/x", Cut())
    with pytest.raises(aiohttp.ServerDisconnectedError):
        await client.post(f"{server.url}/x")
    await client.close()
    await asyncio.sleep(0.05)
    assert server.requests[0].closed_at is None


async def test_scripts_are_used_in_turn_and_the_last_repeats(server: FaultServer, client: aiohttp.ClientSession):
    server.on("GET", "/x", SendJson(1))
    server.on("GET", "/x", SendJson(2))
    answers = [await (await client.get(f"{server.url}/x")).json() for _ in range(4)]
    assert answers == [1, 2, 2, 2]


async def test_reply_function_chooses_by_the_request(server: FaultServer, client: aiohttp.ClientSession):
    def reply(seen: Seen) -> tuple[Step, ...]:
        return (SendJson({"echo": seen.json(), "path": seen.path}),)

    server.on("POST", "/deployments/*/chat", reply)
    async with client.post(f"{server.url}/deployments/mine/chat", json=7) as response:
        assert await response.json() == {"echo": 7, "path": "/deployments/mine/chat"}


async def test_connection_is_kept_for_the_next_request(server: FaultServer, client: aiohttp.ClientSession):
    server.on("POST", "/x", Sse(None, "a"))
    connector = client.connector
    assert isinstance(connector, aiohttp.TCPConnector)
    for _ in range(3):
        async with client.post(f"{server.url}/x", data=b"q" * 200_000) as response:
            assert await response.read() == b"data: a\n\n"
    assert [len(seen.body) for seen in server.requests] == [200_000] * 3
    assert len({id(seen.closed) for seen in server.requests}) == 3
    await client.close()
    async with asyncio.timeout(5):
        await asyncio.gather(*(seen.closed.wait() for seen in server.requests))


async def test_unscripted_paths_get_404_with_the_path(server: FaultServer, client: aiohttp.ClientSession):
    async with client.get(f"{server.url}/nowhere") as response:
        assert response.status == 404
        assert (await response.json())["error"]["message"] == "nothing is scripted for GET /nowhere"


async def test_reset_forgets_scripts_and_requests(server: FaultServer, client: aiohttp.ClientSession):
    server.on("GET", "/x", SendJson(1))
    await client.get(f"{server.url}/x")
    server.reset()
    assert server.requests == []
    async with client.get(f"{server.url}/x") as response:
        assert response.status == 404


async def test_error_of_a_reply_function_surfaces(client: aiohttp.ClientSession):
    def reply(seen: Seen) -> tuple[Step, ...]:
        raise LookupError("my mistake")

    server = FaultServer()
    await server.start()
    server.on("GET", "/x", reply)
    with pytest.raises(aiohttp.ClientConnectionError):
        await client.get(f"{server.url}/x")
    with pytest.raises(LookupError, match="my mistake"):
        await server.stop()


async def test_stop_ends_answers_under_way(client: aiohttp.ClientSession):
    server = FaultServer()
    await server.start()
    server.on("POST", "/x", Sse(None, "a"), WaitFor(asyncio.Event()))
    async with client.post(f"{server.url}/x") as response:
        assert await response.content.readany() == b"data: a\n\n"
        await server.stop()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.readany()
    assert not server.requests[0].closed.is_set()


async def test_slow_reader_pauses_the_script(server: FaultServer, client: aiohttp.ClientSession):
    sent: list[int] = []
    server.on("POST", "/x", *(Send(b"x" * 1_000_000) for _ in range(64)))
    async with client.post(f"{server.url}/x") as response:
        seen = await server.request()
        held = -1
        while seen.sent != held:
            held = seen.sent
            await asyncio.sleep(0.1)
        assert 0 < held < 64_000_000
        while chunk := await response.content.readany():
            sent.append(len(chunk))
    assert sum(sent) == 64_000_000
    # Each chunk stands between its length and a line end, after the head.
    assert seen.sent >= 64_000_000


def test_a_request_is_parsed_only_when_whole():
    whole = b"POST /a?b=c HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabcGET /"
    assert all(parse_request(whole[:size]) is None for size in range(whole.index(b"abc") + 3))
    parsed = parse_request(whole)
    assert parsed is not None
    seen, length = parsed
    assert (seen.method, seen.path, seen.query, seen.body, whole[length:]) == ("POST", "/a", "b=c", b"abc", b"GET /")


def test_chunked_request_bodies_are_joined():
    head = b"POST /a HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b"3;x=y\r\nabc\r\nA\r\n0123456789\r\n0\r\n\r\n"
    assert all(parse_request((head + body)[:size]) is None for size in range(len(head) + len(body) - 4))
    parsed = parse_request(head + body)
    assert parsed is not None
    assert (parsed[0].body, parsed[1]) == (b"abc0123456789", len(head) + len(body))


async def _read(client: aiohttp.ClientSession, url: str) -> bytes:
    async with client.post(url) as response:
        return await response.read()
