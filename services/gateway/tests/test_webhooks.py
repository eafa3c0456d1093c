"""Webhooks of two gateways on a real NATS, to receivers that are well, fail, are slow, die, or want no more."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc
import pytest
import yaml

from maestro.event.v1.event_pb2 import Caller, JobProgress, RequestCompleted, RequestStarted
from maestro.gateway.v1 import webhook_pb2 as pb
from maestro.gateway.v1.webhook_pb2_grpc import WebhookServiceStub
from maestro_gateway.identity import Keys
from maestro_gateway.identity.door import authenticator
from maestro_gateway.identity.keys import configured
from maestro_gateway.webhooks import Office, delivering
from maestro_gateway.webhooks.service import WebhookService
from maestro_sdk.errors import NotFound, PermissionDenied, from_rpc_error
from maestro_sdk.service.bus import STREAM
from maestro_sdk.service.channel import open_channel
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.event_reader import EventReader
from maestro_sdk.service.events import new_event
from maestro_sdk.service.interceptors import MeshInterceptor
from maestro_sdk.service.settings import Config, load
from maestro_sdk.testing.receiver import Receiver, Say
from maestro_sdk.testing.servers import serve

SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
OLD = "whsec_" + base64.b64encode(b"o" * 24).decode()
KEYS = {"admin": ("acme", ["admin"]), "other": ("globex", ["admin"]), "user": ("acme", ["chat"])}


@dataclass
class Place:
    """Gateways that share a NATS and a configuration file."""

    config: Config
    file: Path
    offices: Sequence[Office]
    publisher: EventPublisher
    stub: Any
    reader: EventReader

    def publish(self, *names: str, tenant: str = "acme") -> None:
        for name in names:
            event = new_event(RequestStarted(request_id=name), f"request/{name}", tenant=tenant)
            self.publisher.publish(event)

    async def ask(self, method: str, request: Any, key: str = "admin") -> Any:
        metadata = (("authorization", f"Bearer mk-{key}-0123456789"),)
        try:
            return await getattr(self.stub, method)(request, metadata=metadata, timeout=20)
        except grpc.aio.AioRpcError as error:
            raise from_rpc_error(error) from None

    async def consumers(self) -> set[str]:
        client, _ = await self.reader.connection()
        return {str(info.name) for info in await client.jetstream().consumers_info(STREAM)}

    async def listed(self, fits: Callable[[pb.Webhook], bool]) -> pb.Webhook:
        """The first webhook once it fits."""
        async with asyncio.timeout(10):
            while True:
                found = (await self.ask("ListWebhooks", pb.ListWebhooksRequest())).webhooks
                if found and fits(found[0]):
                    return found[0]
                await asyncio.sleep(0.02)


Begin = Callable[..., Awaitable[Place]]


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver(SECRET) as receiver:
        yield receiver
        assert receiver.faults == []


@pytest.fixture
async def begin(nats_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Begin]:
    """Starts gateways with these webhooks of tenant acme, and waits until each has its place in the stream."""
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    monkeypatch.setenv("HOOK_OLD", OLD)
    async with AsyncExitStack() as stack:

        async def start(webhooks: Mapping[str, Mapping[str, Any]], *, gateways: int = 2) -> Place:
            file = tmp_path / "maestro.yaml"
            write(file, webhooks)
            config = load(file)
            publisher = await stack.enter_async_context(EventPublisher(nats_url, tmp_path / "spool"))
            reader = await stack.enter_async_context(EventReader(nats_url))
            offices: list[Office] = []
            for _ in range(gateways):
                own = await stack.enter_async_context(EventReader(nats_url))
                offices.append(
                    await stack.enter_async_context(delivering(config, own, publisher.publish, forgotten=0.2, look=0.1))
                )
            keys = Keys(
                [configured(tenant, f"mk-{name}-0123456789", scopes) for name, (tenant, scopes) in KEYS.items()]
            )
            service = WebhookService(offices[0])
            interceptors = [MeshInterceptor(authenticate=authenticator(keys))]
            channel = open_channel(await stack.enter_async_context(serve(service, interceptors=interceptors)))
            stack.push_async_callback(channel.close)
            place = Place(config, file, offices, publisher, WebhookServiceStub(channel), reader)
            async with asyncio.timeout(10):
                while not {f"webhook=acme={name}" for name in webhooks} <= await place.consumers():
                    await asyncio.sleep(0.02)
            return place

        yield start


def write(file: Path, webhooks: Mapping[str, Mapping[str, Any]]) -> None:
    file.write_text(yaml.safe_dump({"version": 1, "tenants": {"acme": {"webhooks": dict(webhooks)}}}))


def hook(receiver: Receiver, **settings: Any) -> dict[str, Any]:
    return {"url": receiver.url, "secret": {"env": "HOOK_SECRET"}, "back_off": "20ms", "timeout": "2s", **settings}


def names(messages: Sequence[Any]) -> list[str]:
    return [message.data["request_started"]["request_id"] for message in messages]


async def test_two_gateways_deliver_each_event_of_the_tenant_once(begin: Begin) -> None:
    async with Receiver(SECRET, OLD) as receiver:
        place = await begin({"orders": hook(receiver, kinds=["request.*"], old_secret={"env": "HOOK_OLD"})})
        place.publish(*(f"r{number}" for number in range(100)))
        place.publish("foreign", tenant="globex")
        place.publisher.publish(new_event(JobProgress(job_id="j"), "job/j", tenant="acme"))
        done = RequestCompleted(request_id="last", caller=Caller(client_address="10.1.2.3"))
        place.publisher.publish(new_event(done, "request/last", tenant="acme"))
        *found, last = sorted(await receiver.messages(101), key=lambda message: message.data["sequence"])
        assert names(found) == [f"r{number}" for number in range(100)]
        assert [last.kind, last.data["request_completed"]] == ["request.completed", {"request_id": "last"}]
        assert found[0].message_id == found[0].data["id"]
        assert found[0].headers["content-type"] == "application/json"
        await place.listed(lambda webhook: not webhook.waiting and not webhook.retrying)
        assert len(receiver.seen) == 101
        assert receiver.faults == []


async def test_failures_are_tried_again_later_and_as_the_receiver_asks(begin: Begin, receiver: Receiver) -> None:
    place = await begin({"orders": hook(receiver, back_off="100ms")})
    asks = {1: Say(500), 2: Say(429, {"retry-after": "1"})}
    receiver.answer = lambda message: asks.get(message.attempt, Say())
    place.publish("a")
    first, second, third = await receiver.messages(3, taken=False)
    assert {each.message_id for each in (first, second, third)} == {first.message_id}
    assert 0.06 < second.at - first.at < 0.9
    assert 0.9 < third.at - second.at < 3
    # What failed does not hold up what comes behind it.
    receiver.answer = lambda message: Say(500) if message.data["request_started"]["request_id"] == "b" else Say()
    place.publish("b", "c")
    assert names(await receiver.messages(2)) == ["a", "c"]


async def test_in_order_one_after_the_other_whatever_fails(begin: Begin, receiver: Receiver) -> None:
    place = await begin({"orders": hook(receiver, ordered=True)})
    receiver.answer = lambda message: Say(500 if message.attempt == 1 and message.data["sequence"] % 3 == 0 else 200)
    wanted = [f"r{number}" for number in range(12)]
    place.publish(*wanted)
    assert names(await receiver.messages(12)) == wanted
    assert len(receiver.seen) == 16
    sequences = [message.data["sequence"] for message in receiver.seen]
    assert sequences == sorted(sequences)


async def test_what_nobody_takes_is_a_dead_letter_until_it_is_replayed(begin: Begin, receiver: Receiver) -> None:
    async with Receiver(SECRET) as witness:
        place = await begin(
            {"orders": hook(receiver, attempts=2), "alerts": hook(witness, attempts=2, kinds=["webhook.*"])}
        )
        receiver.answer = lambda _: Say(500)
        place.publish("a", "b")
        told = await witness.messages(2)
        abandoned = {each.data["webhook_abandoned"]["event_id"] for each in told}
        assert {each.kind for each in told} == {"webhook.abandoned"}
        assert all(
            each.data["webhook_abandoned"] | {"event_id": ""}
            == {"webhook": "orders", "event_id": "", "event_kind": "request.started", "attempts": 2, "last_status": 500}
            for each in told
        )
        listed = await place.listed(lambda webhook: not webhook.dead)
        assert (listed.name, listed.dead) == ("alerts", 0)
        dead = await place.ask("ListDeadLetters", pb.ListDeadLettersRequest(webhook="orders", page_size=1))
        rest = await place.ask(
            "ListDeadLetters", pb.ListDeadLettersRequest(webhook="orders", page_token=dead.next_page_token)
        )
        assert rest.next_page_token == ""
        letters = [*dead.letters, *rest.letters]
        assert {letter.event.id for letter in letters} == abandoned
        # Where they stood among all events: a letter tells it, and so does each try to deliver it.
        first = {message.message_id: int(message.data["sequence"]) for message in receiver.seen}
        assert {letter.event.id: letter.event.sequence for letter in letters} == first
        assert all(first.values())
        assert {(letter.attempts, letter.last_status, letter.reason) for letter in letters} == {
            (2, 500, "it answered 500")
        }
        assert all(0 <= time.time() - letter.time.ToSeconds() < 60 for letter in letters)
        # The receiver that is ill was told nothing of its own failures.
        assert {message.kind for message in receiver.seen} == {"request.started"}
        still = await place.ask("ReplayDeadLetters", pb.ReplayDeadLettersRequest(webhook="orders"))
        assert (still.delivered, still.left, still.reason) == (0, 2, "it answered 500")
        receiver.answer = lambda _: Say()
        one = pb.ReplayDeadLettersRequest(webhook="orders", numbers=[letters[1].number])
        assert await place.ask("ReplayDeadLetters", one) == pb.ReplayDeadLettersResponse(delivered=1, left=1)
        both = await place.ask("ReplayDeadLetters", pb.ReplayDeadLettersRequest(webhook="orders"))
        assert both == pb.ReplayDeadLettersResponse(delivered=1)
        assert names(receiver.taken) == [letter.event.request_started.request_id for letter in reversed(letters)]
        assert {message.message_id: int(message.data["sequence"]) for message in receiver.taken} == first


async def test_webhooks_that_tell_each_other_of_their_failures_come_to_an_end(begin: Begin, receiver: Receiver) -> None:
    place = await begin({"one": hook(receiver, attempts=1), "two": hook(receiver, attempts=1, kinds=["webhook.*"])})
    receiver.answer = lambda _: Say(500)
    place.publish("a")
    # "a" to one; that it was abandoned, to two; and nobody is told that this was abandoned, too.
    found = await receiver.messages(2, taken=False)
    assert [message.kind for message in found] == ["request.started", "webhook.abandoned"]
    async with asyncio.timeout(10):
        while len((await place.ask("ListDeadLetters", pb.ListDeadLettersRequest(webhook="two"))).letters) < 1:
            await asyncio.sleep(0.02)
    webhooks = (await place.ask("ListWebhooks", pb.ListWebhooksRequest())).webhooks
    assert [(webhook.name, webhook.dead, webhook.waiting) for webhook in webhooks] == [("one", 1, 0), ("two", 1, 0)]
    assert len(receiver.seen) == 2


async def test_a_slow_receiver_holds_up_nobody_else(begin: Begin, receiver: Receiver) -> None:
    async with Receiver(SECRET) as slow:
        slow.answer = lambda _: Say(after=30)
        place = await begin({"quick": hook(receiver), "slow": hook(slow, timeout="300ms", attempts=2)})
        begun = time.monotonic()
        place.publish(*(f"r{number}" for number in range(50)))
        await receiver.messages(50)
        assert time.monotonic() - begun < 3
        assert slow.taken == []
        dead = await place.listed(lambda webhook: True)
        assert (dead.name, dead.dead) == ("quick", 0)


async def test_a_receiver_that_dies_gets_everything_once_it_is_back(begin: Begin, receiver: Receiver) -> None:
    place = await begin({"orders": hook(receiver)})
    place.publish("a")
    await receiver.messages(1)
    await receiver.stop()
    place.publish("b", "c")
    await place.listed(lambda webhook: webhook.retrying == 2)
    await receiver.start()
    assert sorted(names(await receiver.messages(3))) == ["a", "b", "c"]


async def test_a_gateway_that_stops_hands_its_events_over(begin: Begin, receiver: Receiver) -> None:
    place = await begin({"orders": hook(receiver)})
    receiver.answer = lambda message: Say(after=0.3 if message.attempt == 1 else 0)
    wanted = [f"r{number}" for number in range(20)]
    place.publish(*wanted)
    await receiver.messages(4, taken=False)
    await place.offices[0].close()
    assert sorted(set(names(await receiver.messages(20)))) == sorted(wanted)


async def test_410_ends_a_webhook_at_every_gateway_until_a_test_succeeds(begin: Begin, receiver: Receiver) -> None:
    place = await begin({"orders": hook(receiver)})
    receiver.answer = lambda _: Say(410)
    place.publish("a")
    await place.listed(lambda webhook: webhook.state == pb.WEBHOOK_STATE_GONE)
    place.publish("b", "c")
    await place.listed(lambda webhook: webhook.waiting + webhook.retrying == 3)
    before = len(receiver.seen)
    tried = await place.ask("TestWebhook", pb.TestWebhookRequest(webhook="orders"))
    assert (tried.delivered, tried.status, tried.reason) == (False, 410, "it answered 410: it wants nothing any more")
    receiver.answer = lambda _: Say()
    tried = await place.ask("TestWebhook", pb.TestWebhookRequest(webhook="orders"))
    assert (tried.delivered, tried.status, tried.reason, tried.HasField("latency")) == (True, 200, "", True)
    assert receiver.taken[0].kind == "webhook.test"
    assert receiver.taken[0].data == {"tenant": "acme", "webhook": "orders"}
    assert sorted(names((await receiver.messages(4))[1:])) == ["a", "b", "c"]
    # While it was ended, each gateway asked once at most for what it had in hand.
    assert before <= 2
    assert (await place.listed(lambda _: True)).state == pb.WEBHOOK_STATE_ACTIVE


async def test_a_single_410_is_heard_by_every_gateway(begin: Begin, receiver: Receiver) -> None:
    # One of the receiver's servers says so; the others would have gone on taking what is sent to them.
    answers = iter([Say(410)])
    receiver.answer = lambda _: next(answers, Say())
    place = await begin({"orders": hook(receiver)}, gateways=3)
    place.publish("a")
    await place.listed(lambda webhook: webhook.state == pb.WEBHOOK_STATE_GONE)
    place.publish(*(str(number) for number in range(20)))
    await place.listed(lambda webhook: webhook.waiting + webhook.retrying >= 20)
    assert len(receiver.seen) <= 2


async def test_redirects_are_not_followed(begin: Begin, receiver: Receiver) -> None:
    async with Receiver(SECRET) as thief:
        receiver.answer = lambda _: Say(307, {"location": thief.url})
        place = await begin({"orders": hook(receiver, attempts=1)})
        place.publish("a")
        await place.listed(lambda webhook: webhook.dead == 1)
        dead = await place.ask("ListDeadLetters", pb.ListDeadLettersRequest(webhook="orders"))
        assert (dead.letters[0].last_status, len(thief.seen)) == (307, 0)
        assert "redirects are not followed" in dead.letters[0].reason


async def test_a_changed_file_takes_effect_and_what_left_it_is_forgotten(
    begin: Begin, receiver: Receiver, caplog: pytest.LogCaptureFixture
) -> None:
    place = await begin({"orders": hook(receiver, kinds=["job.*"])})
    client, _ = await place.reader.connection()
    write(place.file, {"orders": hook(receiver), "second": hook(receiver)})
    async with asyncio.timeout(10):
        while "webhook=acme=second" not in await place.consumers() or len(place.offices[1].hooks) < 2:
            await asyncio.sleep(0.02)
        while True:
            found = (await client.jetstream().consumer_info(STREAM, "webhook=acme=orders")).config
            if "maestro.events.acme.>" in (found.filter_subject, *(found.filter_subjects or ())):
                break
            await asyncio.sleep(0.02)
    place.publish("a")
    assert names(await receiver.messages(2)) == ["a", "a"]
    place.file.write_text("tenants: [this is wrong\n")
    async with asyncio.timeout(10):
        while caplog.text.count("webhooks stay as they are") < 2:
            await asyncio.sleep(0.02)
    assert [len(office.hooks) for office in place.offices] == [2, 2]
    write(place.file, {"second": hook(receiver)})
    async with asyncio.timeout(10):
        while await place.consumers() != {"webhook=acme=second"}:
            await asyncio.sleep(0.05)
    place.publish("b")
    assert names(await receiver.messages(3)) == ["a", "a", "b"]


async def test_without_its_secret_events_wait(begin: Begin, receiver: Receiver, tmp_path: Path) -> None:
    file = tmp_path / "hook.secret"
    place = await begin({"orders": hook(receiver, secret={"file": str(file)})})
    place.publish("a")
    listed = await place.listed(lambda webhook: webhook.waiting == 1)
    assert (listed.state, listed.reason) == (pb.WEBHOOK_STATE_BROKEN, f"its secret, {file}, is not set")
    file.write_text(SECRET)
    assert names(await receiver.messages(1)) == ["a"]


@pytest.mark.parametrize("method", ["ListDeadLetters", "ReplayDeadLetters", "TestWebhook"])
async def test_a_webhook_of_another_tenant_is_none(begin: Begin, receiver: Receiver, method: str) -> None:
    place = await begin({"orders": hook(receiver)}, gateways=1)
    request = getattr(pb, f"{method}Request")
    with pytest.raises(NotFound, match="there is no webhook 'orders'"):
        await place.ask(method, request(webhook="orders"), "other")
    for key, tenant in (("user", ""), ("other", "acme")):
        with pytest.raises(PermissionDenied):
            await place.ask(method, request(webhook="orders", tenant=tenant), key)
    assert (await place.ask("ListWebhooks", pb.ListWebhooksRequest(), "other")).webhooks == []
    assert receiver.seen == []
