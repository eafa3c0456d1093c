"""Webhooks and receivers that misbehave in every way there is, and very many dead letters."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from maestro.event.v1.event_pb2 import RequestStarted
from maestro.gateway.v1 import webhook_pb2 as pb
from maestro_gateway.webhooks import letters
from maestro_gateway.webhooks.courier import Courier
from maestro_gateway.webhooks.hook import Hook
from maestro_gateway.webhooks.outcome import Failed, Outcome, Taken
from maestro_sdk.service.events import new_event
from maestro_sdk.service.webhooks import WebhookConfig
from maestro_sdk.testing.receiver import Receiver

from .test_webhooks import SECRET, Begin, Place, begin, hook, receiver

__all__ = ["begin", "receiver"]
MARK = "swordfish"


async def bury(place: Place, count: int, *, text: str = "") -> None:
    """Puts dead letters of the webhook `orders` into the stream, each followed by one of another webhook."""
    client, _ = await place.reader.connection()
    await letters.prepare(client)
    for number in range(count):
        event = new_event(RequestStarted(request_id=f"r{number}"), f"request/{number}{text}", tenant="acme")
        for name in ("orders", "others"):
            config = WebhookConfig.model_validate(place.config.tenants["acme"].webhooks["orders"])
            await letters.put(
                client, Hook("acme", name, config), event, event.SerializeToString(), 1, Failed("it answered 500", 500)
            )


async def numbers_of(place: Place, page_size: int = 100) -> list[int]:
    found: list[int] = []
    token = ""
    while True:
        request = pb.ListDeadLettersRequest(webhook="orders", page_size=page_size, page_token=token)
        page = await place.ask("ListDeadLetters", request)
        found += [letter.number for letter in page.letters]
        if not (token := page.next_page_token):
            return found


async def test_letters_far_apart_are_replayed_by_their_numbers(begin: Begin, receiver: Receiver) -> None:
    place = await begin({"orders": hook(receiver)}, gateways=1)
    await bury(place, 130)
    numbers = await numbers_of(place)
    assert len(numbers) == 130
    # One of another webhook, none, and ones that never were.
    wanted = [numbers[-1], numbers[0], numbers[1] + 1, 0, 2**64 - 1]
    answer = await place.ask("ReplayDeadLetters", pb.ReplayDeadLettersRequest(webhook="orders", numbers=wanted))
    assert answer == pb.ReplayDeadLettersResponse(delivered=2, left=128)
    assert [each.data["request_started"]["request_id"] for each in receiver.taken] == ["r0", "r129"]
    assert await numbers_of(place) == numbers[1:-1]


async def test_large_letters_are_all_listed(begin: Begin, receiver: Receiver) -> None:
    place = await begin({"orders": hook(receiver)}, gateways=1)
    await bury(place, 12, text="x" * 200_000)
    assert len(await numbers_of(place)) == 12


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


async def drip(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\n")
    while True:
        writer.write(b"x: y\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)


async def drip_body(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n")
    while True:
        writer.write(b"1\r\nx\r\n")
        await writer.drain()
        await asyncio.sleep(0.02)


async def flood(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    writer.write(b"HTTP/1.1 500 Oh\r\ncontent-length: 1000000000000\r\n\r\n")
    while True:
        writer.write(b"x" * 65536)
        await writer.drain()


def saying(data: bytes) -> Answer:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(data)
        await writer.drain()

    return answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (drip, "it did not answer within 0.5 s"),
        (drip_body, ""),
        (flood, "it answered 500"),
        (saying(b""), "it can't be reached"),
        (saying(b"SSH-2.0-OpenSSH_9.6\r\n"), "it can't be reached"),
        (saying(b"HTTP/1.1 200 OK\r\nx: " + b"y" * 100_000 + b"\r\n\r\n"), "it can't be reached"),
        (saying(b"HTTP/1.1 200 OK\r\ncontent-encoding: gzip\r\ncontent-length: 4\r\n\r\nnone"), ""),
        (saying(b"HTTP/1.1 307 No\r\nlocation: http://169.254.169.254/latest\r\n\r\n"), "it answered 307: redirects"),
        (saying(b"HTTP/1.1 503 No\r\nretry-after: 99999999999999999999\r\n\r\n"), "it answered 503"),
    ],
    ids=["drip", "drip body", "flood", "nothing", "ssh", "large header", "no gzip", "redirect", "retry-after"],
)
async def test_whatever_a_receiver_does_is_an_outcome(
    answer: Answer, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            try:
                await reader.readuntil(b"}}")
                await answer(reader, writer)
            finally:
                writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    async with server, Courier() as courier:
        begun = time.monotonic()
        found = await courier.carry(_hook(server.sockets[0].getsockname()[1]), _event())
        assert time.monotonic() - begun < 2.0
    _check(found, said)


@pytest.mark.parametrize("scheme", ["https", "http"])
async def test_a_name_without_an_address_and_a_peer_that_hangs_up(scheme: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    server = await asyncio.start_server(lambda _, writer: writer.close(), "127.0.0.1", 0)
    async with server, Courier() as courier:
        host = "receiver.invalid" if scheme == "https" else "127.0.0.1"
        port = server.sockets[0].getsockname()[1]
        config = WebhookConfig.model_validate(
            {"url": f"{scheme}://{host}:{port}/?key={MARK}", "secret": {"env": "HOOK_SECRET"}, "timeout": "2s"}
        )
        _check(await courier.carry(Hook("acme", "orders", config), _event()), "it can't be reached")


def _hook(port: int) -> Hook:
    settings: dict[str, Any] = {"url": f"http://127.0.0.1:{port}/?key={MARK}", "timeout": "500ms"}
    return Hook("acme", "orders", WebhookConfig.model_validate({**settings, "secret": {"env": "HOOK_SECRET"}}))


def _event() -> Any:
    return new_event(RequestStarted(request_id="r1"), "request/r1", tenant="acme")


def _check(found: Outcome, said: str) -> None:
    if not said:
        assert found == Taken(200)
        return
    assert isinstance(found, Failed)
    assert found.reason.startswith(said)
    assert MARK not in found.reason
    assert SECRET not in found.reason
    assert 0 <= found.retry_after <= 86400
