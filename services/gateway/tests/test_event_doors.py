"""Events by server-sent events and gRPC on a real NATS: what each promises, and what no reader gets to see."""

from __future__ import annotations

import asyncio
import gc
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import orjson
import pytest
from aiohttp.client_exceptions import ClientConnectionResetError

from maestro.event.v1 import event_pb2 as pb
from maestro_gateway.events.server_sent import EventResponse
from maestro_gateway.identity import Principal
from maestro_gateway.identity.secret import digest
from maestro_sdk.errors import InvalidRequest, PermissionDenied, from_rpc_error
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.event_reader import EventReader
from maestro_sdk.service.events import MESH, new_event
from maestro_sdk.testing.scripted import ScriptedProvider

from .conftest import ADMIN_KEY, KEY, OPERATOR_KEY, OTHER_KEY, Gateway, Start, metadata

PATH = "/v1/events/stream"
SECRET = "10.1.2.3"


@pytest.fixture
async def publisher(nats_url: str, tmp_path: Path) -> AsyncIterator[EventPublisher]:
    async with EventPublisher(nats_url, tmp_path / "spool") as publisher:
        yield publisher


@pytest.fixture
async def gateway(start: Start, nats_url: str) -> AsyncIterator[Gateway]:
    async with EventReader(nats_url) as reader:
        yield await start(ScriptedProvider(), events=reader, ping=0.2)


def started(name: str, tenant: str = "acme") -> pb.Event:
    return new_event(pb.RequestStarted(request_id=name), f"request/{name}", tenant=tenant)


def with_caller(tenant: str = "acme") -> list[pb.Event]:
    caller = pb.Caller(client_address=SECRET, user_agent="agent-x")
    payloads = [pb.RequestCompleted(caller=caller), pb.RequestFailed(caller=caller), pb.RequestDenied(caller=caller)]
    return [new_event(payload, "request/c", tenant=tenant) for payload in payloads]


class Stream:
    """One response of server-sent events, block by block."""

    def __init__(self, response: aiohttp.ClientResponse) -> None:
        self.response = response
        self._buffer = b""

    async def block(self, *, pings: bool = False) -> dict[str, str]:
        """The fields of the next block; comments are passed over unless `pings`. Empty at the end."""
        while True:
            while b"\n\n" not in self._buffer:
                async with asyncio.timeout(5):
                    chunk = await self.response.content.readany()
                if not chunk:
                    assert not self._buffer
                    return {}
                self._buffer += chunk
            text, self._buffer = self._buffer.split(b"\n\n", 1)
            lines = [line.partition(": ") for line in text.decode().split("\n")]
            fields = {name: value for name, _, value in lines}
            if "" not in fields or pings:
                return fields

    async def event(self) -> tuple[str, str, Any]:
        """Id, kind and data of the next event or notice."""
        fields = await self.block()
        return fields["id"], fields["event"], orjson.loads(fields["data"])


@asynccontextmanager
async def follow(gateway: Gateway, query: str = "", key: str = KEY, last: str = "") -> AsyncGenerator[Stream]:
    headers = {"authorization": f"Bearer {key}", **({"last-event-id": last} if last else {})}
    async with gateway.http.get(f"{PATH}{query}", headers=headers) as response:
        assert (response.status, response.content_type) == (200, "text/event-stream"), await response.text()
        stream = Stream(response)
        assert await stream.block() == {"retry": "1000"}
        yield stream
        response.close()


async def test_server_sent_events_and_resume_by_their_ids(gateway: Gateway, publisher: EventPublisher) -> None:
    async with follow(gateway, "?kinds=request.*") as stream:
        assert stream.response.headers["x-accel-buffering"] == "no"
        at, kind, notice = await stream.event()
        assert (kind, notice["kind"], str(notice["sequence"])) == ("notice", "ready", at)
        for name in ("a", "b", "c"):
            publisher.publish(started(name))
        publisher.publish(new_event(pb.JobQueued(job_id="j"), "job/j", tenant="acme"))
        found = [await stream.event() for _ in range(3)]
        assert (await stream.block(pings=True)) == {"": "ping"}
    assert [(kind, data["request_started"]["request_id"]) for _, kind, data in found] == [
        ("request.started", "a"),
        ("request.started", "b"),
        ("request.started", "c"),
    ]
    assert [int(each) for each, _, _ in found] == [data["sequence"] for _, _, data in found]
    # A browser that comes back says where it was; its address still holds the query of the first time.
    for last, left in ((at, ["a", "b", "c"]), (found[0][0], ["b", "c"]), (found[2][0], [])):
        async with follow(gateway, "?after=0&kinds=request.*", last=last) as stream:
            where, _, notice = await stream.event()
            assert (where, notice["kind"]) == (last, "ready")
            again = [(await stream.event())[2]["request_started"]["request_id"] for _ in left]
            assert again == left


@pytest.mark.parametrize(
    ("query", "last", "status", "field"),
    [
        ("", "x", 400, "last-event-id"),
        ("?kinds=request.%2A.x", "", 400, "kinds[0]"),
        ("?kinds=%3E", "", 400, "kinds[0]"),
        ("?tenant=globex", "", 403, "tenant"),
        ("?tenant=nobody", "", 403, "tenant"),
        ("?tenant=_mesh", "", 403, "tenant"),
        ("?tenant=acme.request", "", 400, "tenant"),
        ("?tenant=*", "", 400, "tenant"),
    ],
)
async def test_what_is_refused_before_the_first_byte(
    start: Start, query: str, last: str, status: int, field: str
) -> None:
    gateway = await start(ScriptedProvider())
    headers = {"authorization": f"Bearer {KEY}", "last-event-id": last}
    async with gateway.http.get(PATH + query, headers=headers) as response:
        error = (await response.json())["error"]
    assert (response.status, error["details"][0]["field"]) == (status, field)


async def test_without_a_key(start: Start) -> None:
    gateway = await start(ScriptedProvider())
    async with gateway.http.get(PATH) as response:
        assert (response.status, (await response.json())["error"]["reason"]) == (401, "UNAUTHENTICATED")


async def test_a_drain_and_a_key_that_ends(gateway: Gateway, publisher: EventPublisher) -> None:
    secret, principal = "mk-made", Principal("acme", "key_1", frozenset({"chat"}), "key", credential=digest("mk-made"))
    gateway.keys.replace({digest(secret): principal})
    call = subscribe(gateway, key=secret)
    assert (await call.read()).notice.kind == pb.SUBSCRIPTION_NOTICE_KIND_READY
    async with follow(gateway, key=secret) as ended, follow(gateway) as drained:
        await ended.event()
        await drained.event()
        gateway.keys.replace({})
        assert (await ended.event())[2]["kind"] == "dismissed"
        assert await ended.block() == {}
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAUTHENTICATED
        publisher.publish(started("a"))
        at, _, _ = await drained.event()
        draining = asyncio.create_task(gateway.sockets.drain(5))
        where, kind, notice = await drained.event()
        assert (where, kind, notice["kind"], notice["sequence"]) == (at, "notice", "draining", int(at))
        assert await drained.block() == {}
        await draining


def subscribe(gateway: Gateway, key: str = KEY, **fields: Any) -> Any:
    return gateway.subscriptions.Subscribe(pb.SubscribeRequest(**fields), metadata=metadata(key))


async def take(call: Any, count: int) -> list[pb.Event]:
    found: list[pb.Event] = []
    async with asyncio.timeout(5):
        while len(found) < count:
            found += (await call.read()).events
    return found


async def test_grpc_begins_with_ready_filters_and_resumes(gateway: Gateway, publisher: EventPublisher) -> None:
    call = subscribe(gateway, kinds=["request.*"])
    ready = await call.read()
    assert (ready.notice.kind, len(ready.events)) == (pb.SUBSCRIPTION_NOTICE_KIND_READY, 0)
    publisher.publish(new_event(pb.JobQueued(job_id="j"), "job/j", tenant="acme"))
    publisher.publish(started("x", "globex"))
    for name in ("a", "b"):
        publisher.publish(started(name))
    found = await take(call, 2)
    call.cancel()
    assert [event.request_started.request_id for event in found] == ["a", "b"]
    assert ready.notice.sequence < found[0].sequence < found[1].sequence
    call = subscribe(gateway, after_sequence=found[0].sequence)
    assert (await call.read()).notice.sequence >= found[1].sequence
    assert [event.sequence for event in await take(call, 1)] == [found[1].sequence]
    call.cancel()
    call = subscribe(gateway, after_sequence=0, job_id="j")
    assert [event.kind for event in await take(call, 1)] == ["job.queued"]
    gateway.interceptor.end_endless()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is grpc.StatusCode.UNAVAILABLE


@pytest.mark.parametrize(
    ("fields", "error", "field"),
    [
        ({"kinds": ["request.compleated"]}, InvalidRequest, "kinds[0]"),
        ({"kinds": ["job.*", ">"]}, InvalidRequest, "kinds[1]"),
        ({"kinds": ["*.*"]}, InvalidRequest, "kinds[0]"),
        ({"tenant": "globex.>"}, InvalidRequest, "tenant"),
        ({"tenant": "globex"}, PermissionDenied, "tenant"),
        ({"tenant": MESH}, PermissionDenied, "tenant"),
    ],
)
async def test_grpc_refuses(start: Start, fields: dict[str, Any], error: type[Exception], field: str) -> None:
    gateway = await start(ScriptedProvider())
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await subscribe(gateway, **fields).read()
    found = from_rpc_error(caught.value)
    assert isinstance(found, error)
    assert found.violations[0].field == field


async def test_who_sees_what_by_every_door(gateway: Gateway, publisher: EventPublisher) -> None:
    """0 events of others, callers for admins only, the mesh for operators only: by three doors."""
    for event in (*with_caller(), *with_caller("globex"), started("mesh", MESH)):
        publisher.publish(event)
    assert await publisher.flush()
    asked = {
        (KEY, ""): ("acme", 3, False),
        (OTHER_KEY, ""): ("globex", 3, False),
        (ADMIN_KEY, ""): ("acme", 3, True),
        (ADMIN_KEY, "acme"): ("acme", 3, True),
        (OPERATOR_KEY, "globex"): ("globex", 3, True),
        (OPERATOR_KEY, MESH): (MESH, 1, False),
    }
    for (key, tenant), (seen, count, callers) in asked.items():
        parameter = f"&tenant={tenant}" if tenant else ""
        call = subscribe(gateway, key, after_sequence=0, tenant=tenant)
        found = await take(call, count)
        call.cancel()
        assert {event.tenant for event in found} == {seen}
        assert all((SECRET.encode() in event.SerializeToString()) == callers for event in found)
        async with follow(gateway, f"?after=0{parameter}", key) as stream:
            await stream.event()
            texts = [await stream.block() for _ in range(count)]
        async with gateway.socket(key, f"{PATH}?after=0{parameter}") as socket:
            await socket.receive_json(timeout=5)
            frames = [await socket.receive_str(timeout=5) for _ in range(count)]
        for text in [each["data"] for each in texts] + frames:
            assert orjson.loads(text)["tenant"] == seen
            assert ((SECRET in text), ("agent-x" in text)) == (callers, callers)


class Unread:
    """A response that nobody reads after the first write."""

    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.ended = asyncio.Event()
        self.stuck = asyncio.Event()

    async def prepare(self, request: Any) -> None:
        del request

    async def write(self, data: bytes) -> None:
        self.written.append(data)
        if len(self.written) in (3, 4):
            self.stuck.set()
            await self.ended.wait()

    async def write_eof(self) -> None:
        self.written.append(b"end")


async def test_a_reader_that_takes_nothing_gets_a_notice_once_it_reads_again() -> None:
    from .test_events import Endless

    endless: Any = Endless()
    request: Any = None
    stream = EventResponse(request, endless, callers=False, ping=9.0, request_id="r", patience=0.05)
    unread: Any = Unread()
    stream.response = unread
    running = asyncio.create_task(stream.run())
    async with asyncio.timeout(5):
        while len(unread.written) < 4:
            await asyncio.sleep(0.01)
    unread.ended.set()
    await asyncio.wait_for(running, 5)
    assert [piece.split(b"\n")[0] for piece in unread.written[1:]] == [b"id: 3", b"id: 6", b"id: 6", b"end"]
    assert b'"kind":"slow_consumer"' in unread.written[-2]


class Leaving(Unread):
    """Its reader is found gone by the last write, while the server ends the request for the same reason."""

    async def write(self, data: bytes) -> None:
        self.written.append(data)
        try:
            await self.ended.wait()
        except asyncio.CancelledError:
            raise ClientConnectionResetError("Cannot write to closing transport") from None


async def test_a_reader_that_is_found_gone_twice_leaves_no_error_behind() -> None:
    from .test_events import Endless

    lost: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda loop, told: lost.append(told))
    endless: Any = Endless()
    request: Any = None
    stream = EventResponse(request, endless, callers=False, ping=9.0, request_id="r")
    leaving: Any = Leaving()
    stream.response = leaving
    running = asyncio.create_task(stream.run())
    async with asyncio.timeout(5):
        while not leaving.written:
            await asyncio.sleep(0)
    running.cancel()
    await asyncio.wait((running,))
    assert running.cancelled()
    del stream, running
    gc.collect()
    assert lost == []


async def test_grpc_drops_a_reader_that_takes_nothing(start: Start, nats_url: str, publisher: EventPublisher) -> None:
    """It finds what was on its way, the notice, and RESOURCE_EXHAUSTED; and goes on where it was."""
    async with EventReader(nats_url) as reader:
        gateway = await start(ScriptedProvider(), events=reader, patience=0.2)
        total = 3000
        for number in range(total):
            event = started(f"r{number}")
            event.request_started.requested_model = "m" * 2000
            publisher.publish(event)
        assert await publisher.flush(20)
        call = subscribe(gateway, after_sequence=0)
        await asyncio.sleep(1.0)
        seen: list[int] = []
        notices: list[pb.SubscriptionNotice] = []
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            async with asyncio.timeout(10):
                while True:
                    message = await call.read()
                    seen += [event.sequence for event in message.events]
                    if message.HasField("notice"):
                        notices.append(message.notice)
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
        assert [notice.kind for notice in notices] == [
            pb.SUBSCRIPTION_NOTICE_KIND_READY,
            pb.SUBSCRIPTION_NOTICE_KIND_SLOW_CONSUMER,
        ]
        assert notices[-1].sequence == seen[-1] < total
        assert f"after_sequence={seen[-1]}" in (caught.value.details() or "")
        call = subscribe(gateway, after_sequence=seen[-1])
        rest = await take(call, total - len(seen))
        call.cancel()
        assert seen + [event.sequence for event in rest] == list(range(1, total + 1))
