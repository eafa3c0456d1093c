"""Delivers the events of one webhook, with the other gateways: each event by one of them."""

from __future__ import annotations

import asyncio
import json
import logging
import random
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import nats.errors
from nats.js import api

from maestro.event.v1.event_pb2 import Event, WebhookAbandoned
from maestro_gateway.webhooks import letters
from maestro_gateway.webhooks.courier import Courier
from maestro_gateway.webhooks.hook import Hook
from maestro_gateway.webhooks.outcome import Failed, Gone, Taken, pause
from maestro_sdk.service.bus import STREAM, Client, heed_cancellation
from maestro_sdk.service.event_reader import EventReader, decoded
from maestro_sdk.service.events import new_event
from maestro_sdk.service.stream_page import sequence_of

log = logging.getLogger(__name__)

FAILURES = (nats.errors.Error, TimeoutError, OSError)
_EXPIRES = 30.0
_HEARTBEAT = 5.0
_RETRY = 0.5
_SLACK = 5.0
"""Seconds beyond the time of a delivery after which a gateway that has it is taken for dead."""
_PENDING = 1024
"""Events that wait for their next try before no new one is begun."""
_FAREWELL = 5.0
"""Seconds that deliveries get to end when their gateway stops."""


class Worker:
    """One gateway's share in a webhook, while `run` runs."""

    def __init__(
        self,
        hook: Hook,
        reader: EventReader,
        courier: Courier,
        publish: Callable[[Event], None],
        *,
        look: float,
    ) -> None:
        """`look` are the seconds between two looks at whether a webhook that can't deliver now can again."""
        self._hook = hook
        self._reader = reader
        self._courier = courier
        self._publish = publish
        self._look = look
        self._running: set[asyncio.Task[None]] = set()
        self._arrived: deque[Any] = deque()
        self._gone = False

    async def run(self) -> None:
        """Delivers until cancelled; deliveries under way get a moment to end."""
        hook, told = self._hook, ""
        try:
            while True:
                heed_cancellation()
                client, generation = await self._reader.connection()
                try:
                    await letters.prepare(client)
                    # Before anything else, so that no event is missed from here on, whatever else is wrong.
                    await self._ensure_consumer(client)
                    trouble = hook.trouble()
                    if not trouble and await letters.is_gone(client, hook):
                        trouble = "its receiver ended it by the status 410"
                    if trouble != told:
                        log.log(
                            logging.WARNING if trouble else logging.INFO,
                            "webhook %s of %s %s",
                            hook.name,
                            hook.tenant,
                            f"delivers nothing: {trouble}" if trouble else "delivers again",
                        )
                        told = trouble
                    if trouble:
                        await asyncio.sleep(self._look)
                        continue
                    await self._consume(client, generation)
                except FAILURES as error:
                    log.debug("webhook %s of %s begins again: %r", hook.name, hook.tenant, error)
                    await asyncio.sleep(_RETRY)
        finally:
            await self._end()

    async def _ensure_consumer(self, client: Client) -> None:
        hook = self._hook
        config = api.ConsumerConfig(
            durable_name=hook.consumer,
            name=hook.consumer,
            deliver_policy=api.DeliverPolicy.NEW,
            ack_policy=api.AckPolicy.EXPLICIT,
            ack_wait=hook.config.timeout + _SLACK,
            max_ack_pending=1 if hook.config.ordered else _PENDING,
            filter_subjects=hook.subjects,
            # After that everything that it would deliver is gone anyhow.
            inactive_threshold=self._reader.retention,
        )
        await client.jetstream(timeout=5).add_consumer(STREAM, config)

    async def _consume(self, client: Client, generation: int) -> None:
        """Takes events as there is room for them, until the connection is lost or the webhook is gone."""
        hook, room = self._hook, 1 if self._hook.config.ordered else self._hook.config.at_once
        inbox = client.new_inbox()
        with self._reader.changes() as change:

            async def arrive(message: Any) -> None:
                self._arrived.append(message)
                change.set()

            async def hear(message: Any) -> None:
                if message.data == hook.mark.encode():
                    self._gone = True
                    change.set()

            self._gone = False
            inflow = await client.subscribe(inbox, cb=arrive)
            ending = await client.subscribe(letters.gone_subject(hook), cb=hear)
            try:
                # Another gateway may have been told just before this one listened.
                self._gone = await letters.is_gone(client, hook) or self._gone
                asked = 0
                while self._reader.is_current(generation) and not self._gone:
                    heed_cancellation()
                    if not asked and len(self._running) < room:
                        asked = room - len(self._running)
                        await client.publish(
                            f"$JS.API.CONSUMER.MSG.NEXT.{STREAM}.{hook.consumer}", _request(asked), reply=inbox
                        )
                    change.clear()
                    if not self._arrived:
                        async with asyncio.timeout(2 * _HEARTBEAT + 1 if asked else None):
                            await change.wait()
                    while self._arrived:
                        message = self._arrived.popleft()
                        status = _status(message)
                        if not status:
                            asked -= 1
                            self._begin(client, message, change)
                        elif status in ("408", "404"):  # nothing came in time; nothing is wrong
                            asked = 0
                        elif status != "100":
                            raise nats.errors.Error(f"status {status}")
            finally:
                if self._reader.is_current(generation):
                    with suppress(*FAILURES):
                        # Not `unsubscribe`: what is on its way would be lost until NATS misses it.
                        async with asyncio.timeout(1):
                            await ending.unsubscribe()
                            await inflow.drain()
                        for message in self._arrived:
                            if not _status(message):
                                await _say(client, message, b"-NAK")
                self._arrived.clear()

    def _begin(self, client: Client, message: Any, change: asyncio.Event) -> None:
        task = asyncio.create_task(self._deliver(client, message), name=f"webhook {self._hook.name}")
        self._running.add(task)

        def note_end(ended: asyncio.Task[None]) -> None:
            self._running.discard(ended)
            change.set()
            if not ended.cancelled() and (error := ended.exception()) is not None:
                log.error("a delivery of webhook %s failed", self._hook.name, exc_info=error)

        task.add_done_callback(note_end)

    async def _deliver(self, client: Client, message: Any) -> None:
        hook = self._hook
        try:
            event = decoded(sequence_of(message), message.data)
            if event is None or _is_about(event, hook):
                await _say(client, message, b"+ACK")
                return
            outcome, attempt = await self._courier.carry(hook, event), _attempt(message)
            match outcome:
                case Taken():
                    await _say(client, message, b"+ACK")
                case Gone():
                    await letters.mark_gone(client, hook)
                    self._gone = True
                    await _say(client, message, b"-NAK")
                case Failed() if attempt < hook.config.attempts:
                    wait = pause(hook.config, attempt, outcome.retry_after, random.random())  # noqa: S311 - no secret
                    log.debug("webhook %s: %s, again in %.1f s", hook.name, outcome.reason, wait)
                    await _say(client, message, b'-NAK {"delay": %d}' % int(wait * 1e9))
                case Failed():
                    await self._give_up(client, event, message.data, attempt, outcome)
                    await _say(client, message, b"+ACK")
        except FAILURES as error:
            # Not acknowledged: it comes again.
            log.debug("a delivery of webhook %s is not settled: %r", hook.name, error)
        except asyncio.CancelledError:
            with suppress(*FAILURES):
                await _say(client, message, b"-NAK")
            raise

    async def _give_up(self, client: Client, event: Event, data: bytes, attempts: int, failed: Failed) -> None:
        hook = self._hook
        await letters.put(client, hook, event, data, attempts, failed)
        log.warning(
            "webhook %s of %s did not take the event %s within %d tries: %s",
            *(hook.name, hook.tenant, event.id, attempts, failed.reason),
        )
        if event.HasField("webhook_abandoned"):
            # Two webhooks that tell each other of their failures would never end.
            return
        told = WebhookAbandoned(webhook=hook.name, event_id=event.id, event_kind=event.kind, attempts=attempts)
        if failed.status is not None:
            told.last_status = failed.status
        self._publish(new_event(told, f"webhook/{hook.name}", tenant=hook.tenant))

    async def _end(self) -> None:
        if self._running:
            await asyncio.wait(self._running, timeout=_FAREWELL)
        for task in self._running:
            task.cancel()
        if self._running:
            await asyncio.wait(self._running)


def _is_about(event: Event, hook: Hook) -> bool:
    """Whether an event tells what this webhook did not take: it would hardly take that."""
    return event.HasField("webhook_abandoned") and event.webhook_abandoned.webhook == hook.name


def _status(message: Any) -> str:
    return message.headers.get("Status", "") if message.headers else ""


def _attempt(message: Any) -> int:
    """How often the event was handed out, this time included."""
    tokens = message.reply.split(".")
    return int(tokens[4] if len(tokens) == 9 else tokens[6])


async def _say(client: Client, message: Any, word: bytes) -> None:
    """Settles a message; where that gets lost, the event comes again."""
    await client.publish(message.reply, word)


def _request(batch: int) -> bytes:
    return json.dumps(
        {"batch": batch, "expires": int(_EXPIRES * 1e9), "idle_heartbeat": int(_HEARTBEAT * 1e9)}
    ).encode()
