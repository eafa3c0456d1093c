"""What the connection to NATS owes its owners."""

from __future__ import annotations

import asyncio

import pytest

from maestro_sdk.service.bus import Client, Link, heed_cancellation
from maestro_sdk.testing.servers import free_port


async def test_a_cancellation_that_somebody_swallowed_is_obeyed_at_the_next_turn():
    turns = 0

    async def swallow() -> None:
        nonlocal turns
        while True:
            heed_cancellation()
            turns += 1
            try:
                await asyncio.sleep(3600)
            except asyncio.CancelledError:
                # As a wait does whose answer comes at the same moment.
                continue

    task = asyncio.create_task(swallow())
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 5)
    assert turns == 1


async def test_nobody_else_is_disturbed():
    async with asyncio.timeout(5):
        heed_cancellation()
        try:
            async with asyncio.timeout(0):
                await asyncio.sleep(1)
        except TimeoutError:
            heed_cancellation()
    task = asyncio.current_task()
    assert task is not None
    assert task.cancelling() == 0


async def test_a_connection_that_is_refused_ends_when_it_is_cancelled():
    """At whatever moment: the client of NATS loses a cancellation that comes together with the refusal."""
    for turns in range(12):
        link = Link(f"nats://127.0.0.1:{free_port()}", "nobody", lambda: None)
        task = asyncio.create_task(link.keep(_prepare_nothing))
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        done, _ = await asyncio.wait((task,), timeout=5)
        assert done, f"after {turns} turns"


async def test_a_server_that_does_not_greet_holds_one_socket_at_most():
    """The client of NATS leaves a socket behind at each try, once it was connected."""
    taken, held, most = 0, 0, 0
    tried = asyncio.Event()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal taken, held, most
        taken, held = taken + 1, held + 1
        most = max(most, held)
        if taken == 1:
            writer.write(b'INFO {"server_id":"one","max_payload":1048576,"headers":true,"jetstream":true}\r\n')
            while (line := await reader.readline()) != b"PING\r\n":
                assert line, "the client went before it said hello"
            writer.write(b"PONG\r\n")
        else:
            writer.write(b"good morning\r\n")
            # A refused client has nothing to say: what comes is its end.
            await reader.read()
        if taken == 4:
            tried.set()
        held -= 1
        writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    link = Link(f"nats://127.0.0.1:{server.sockets[0].getsockname()[1]}", "nobody", lambda: None)
    async with server:
        task = asyncio.create_task(link.keep(_prepare_nothing))
        async with asyncio.timeout(10):
            await tried.wait()
        task.cancel()
        await asyncio.wait((task,))
    assert most == 1


async def _prepare_nothing(client: Client) -> None:
    del client
