"""Readers by every door while gateways and NATS are killed: each event once, in order; webhooks at least once."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import aiohttp
import orjson

from maestro.event.v1.event_pb2 import RequestStarted
from maestro_sdk.event_client import EventClient
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.events import new_event
from maestro_sdk.testing.callers import Caller
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.receiver import Receiver

TOTAL = 240
PATH = "/v1/events/stream?kinds=request.started"
KILLED = {40: "gateway", 100: "nats", 160: "gateway-2"}
Read = Callable[[Callable[[int, str], None]], Coroutine[Any, Any, None]]
"""Follows the events for ever, from the first one; tells the sequence and request of each."""


async def blocks(response: aiohttp.ClientResponse) -> AsyncIterator[dict[str, str]]:
    """The fields of each event of a stream of server-sent events."""
    buffer = b""
    async for chunk in response.content.iter_any():
        *texts, buffer = (buffer + chunk).split(b"\n\n")
        for text in texts:
            lines = [line.partition(": ") for line in text.decode().split("\n")]
            if fields := {name: value for name, _, value in lines if name}:
                yield fields


def by_server_sent(caller: Caller) -> Read:
    async def read(tell: Callable[[int, str], None]) -> None:
        last = "0"
        while True:
            try:
                async with caller.session.get(PATH, headers={"last-event-id": last}) as response:
                    if response.status == 200:
                        async for fields in blocks(response):
                            last = fields.get("id", last)
                            if fields.get("event") == "request.started":
                                tell(int(last), orjson.loads(fields["data"])["request_started"]["request_id"])
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(0.05)

    return read


def by_socket(caller: Caller) -> Read:
    async def read(tell: Callable[[int, str], None]) -> None:
        last = 0
        while True:
            try:
                async with caller.socket(f"{PATH}&after={last}") as socket:
                    async for message in socket:
                        frame: Any = message.json()
                        if frame["type"] == "event":
                            last = frame["sequence"]
                            tell(last, frame["request_started"]["request_id"])
            except (aiohttp.ClientError, TimeoutError):
                pass
            await asyncio.sleep(0.05)

    return read


def by_client(client: EventClient) -> Read:
    async def read(tell: Callable[[int, str], None]) -> None:
        async for event in client.follow(kinds=["request.started"], after=0):
            tell(event.sequence, event.request_started.request_id)

    return read


async def test_every_door_resumes_without_loss_or_doubling_over_kills(
    mesh: MeshProcess, acme: Caller, publisher: EventPublisher, receiver: Receiver, figures: list[str]
) -> None:
    wanted = [f"r{number}" for number in range(TOTAL)]
    found: dict[str, list[tuple[int, str]]] = {}
    done = asyncio.Event()

    def note(name: str) -> Callable[[int, str], None]:
        mine = found[name] = []

        def tell(sequence: int, request: str) -> None:
            if request.startswith("r") and request[1:].isdecimal():
                mine.append((sequence, request))
            if all(len(each) >= TOTAL for each in found.values()):
                done.set()

        return tell

    async with Caller(mesh.url, acme.key) as second, EventClient(mesh.url, acme.key) as client:
        ways = {"server-sent events": by_server_sent(acme), "WebSocket": by_socket(second), "gRPC": by_client(client)}
        reading = [asyncio.create_task(read(note(name))) for name, read in ways.items()]
        try:
            restarting: list[Any] = []
            for number in range(TOTAL):
                for tenant in ("acme", "hooked", "globex"):
                    started = RequestStarted(request_id=f"r{number}")
                    publisher.publish(new_event(started, f"request/r{number}", tenant=tenant))
                await asyncio.sleep(0.008)
                if name := KILLED.get(number):
                    restarting.append(mesh.kill(name))
            await publisher.flush(10)
            async with asyncio.timeout(40):
                await done.wait()
                for before in restarting:
                    await mesh.wait_restarted(before)
        finally:
            for task in reading:
                task.cancel()
            await asyncio.gather(*reading, return_exceptions=True)
    for name, events in found.items():
        assert [request for _, request in events] == wanted, name
        sequences = [sequence for sequence, _ in events]
        assert sequences == sorted(set(sequences)), name
    again = await webhooks_lost_nothing(receiver)
    # No more than each gateway that was killed can have had in hand, and what was not acknowledged when NATS was.
    assert again <= 16 * len(KILLED)
    kills = ", ".join(KILLED.values())
    figures.append(f"resume over kill -9 of {kills}: {len(found)} doors, {TOTAL} events each, 0 lost, 0 doubled")
    figures.append(f"webhook over the same kills: {TOTAL} events of {TOTAL}, {again} of them twice")


async def webhooks_lost_nothing(receiver: Receiver) -> int:
    """Waits until the webhook has everything: what a killed gateway had in hand, from the other one, again."""
    async with asyncio.timeout(40):
        while len(set(requests(receiver))) < TOTAL:
            await receiver.messages(len(receiver.taken) + 1, timeout=40)
    taken = requests(receiver)
    assert set(taken) == {f"r{number}" for number in range(TOTAL)}
    assert receiver.faults == []
    return len(taken) - TOTAL


def requests(receiver: Receiver) -> list[str]:
    """The requests of the messages that were taken for the tenant of the test before."""
    return [
        message.data["request_started"]["request_id"]
        for message in receiver.taken
        if message.data["tenant"] == "hooked"
    ]
