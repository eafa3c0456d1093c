"""Reads what a stream holds now, in its order, from some place on."""

from __future__ import annotations

import asyncio
import datetime
import json
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import nats.errors
import nats.js.errors
from nats.js import api

from maestro_sdk.service.bus import Client, heed_cancellation

FAILURES = (nats.errors.Error, nats.js.errors.Error, OSError, TimeoutError)
"""What comes of a NATS that does not answer."""
_BATCH = 1000
_INACTIVE = 30.0
"""Seconds after which NATS forgets a reading whose end it was not told."""
_SILENCE = 5.0


@dataclass(frozen=True, slots=True)
class Entry:
    """One message of a stream; `time` is when the stream took it, in nanoseconds of Unix time."""

    subject: str
    sequence: int
    time: int
    data: bytes
    headers: Mapping[str, str]


async def scan(
    client: Client, stream: str, subjects: Sequence[str], start: int | datetime.datetime = 1
) -> AsyncGenerator[list[Entry]]:
    """What the stream holds on `subjects` from a sequence or a moment on, in batches, until all is read.

    Raises one of `FAILURES` when NATS is away or silent.
    """
    js = client.jetstream(timeout=_SILENCE)
    by_time = isinstance(start, datetime.datetime)
    policy = api.DeliverPolicy.BY_START_TIME if by_time else api.DeliverPolicy.BY_START_SEQUENCE
    consumer = await js.add_consumer(
        stream,
        api.ConsumerConfig(
            deliver_policy=policy,
            opt_start_seq=None if by_time else max(1, start),
            opt_start_time=start if by_time else None,
            ack_policy=api.AckPolicy.NONE,
            filter_subjects=list(subjects),
            inactive_threshold=_INACTIVE,
            mem_storage=True,
            num_replicas=1,
        ),
    )
    waiting = consumer.num_pending or 0
    if not waiting:
        await _forget(client, stream, consumer.name)
        return
    arrived: asyncio.Queue[Any] = asyncio.Queue()
    inbox = client.new_inbox()
    inflow = await client.subscribe(inbox, cb=arrived.put)
    ask = f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer.name}"
    try:
        while waiting:
            heed_cancellation()
            batch: list[Entry] = []
            size = min(_BATCH, waiting)
            await client.publish(ask, json.dumps({"batch": size, "no_wait": True}).encode(), reply=inbox)
            while len(batch) < size:
                async with asyncio.timeout(_SILENCE):
                    message = await arrived.get()
                if message.headers and "Status" in message.headers:
                    # Less is left than there was: the rest was too old.
                    waiting = 0
                    break
                entry, waiting = _read(message)
                batch.append(entry)
            if batch:
                yield batch
    finally:
        with suppress(nats.errors.Error):
            await inflow.unsubscribe()
        await _forget(client, stream, consumer.name)


async def _forget(client: Client, stream: str, consumer: str) -> None:
    # Nobody waits for the answer: NATS would forget it by itself, a little later.
    with suppress(nats.errors.Error, OSError):
        await client.publish(f"$JS.API.CONSUMER.DELETE.{stream}.{consumer}")


def _read(message: Any) -> tuple[Entry, int]:
    """The message as an entry, and how many follow."""
    tokens = message.reply.split(".")
    if len(tokens) == 9:
        sequence, time, pending = tokens[5], tokens[7], tokens[8]
    else:
        sequence, time, pending = tokens[7], tokens[9], tokens[10]
    entry = Entry(message.subject, int(sequence), int(time), message.data, message.headers or {})
    return entry, int(pending)
