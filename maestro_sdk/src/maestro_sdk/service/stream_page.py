"""Reads a stretch of a JetStream stream's past, and leaves nothing behind there."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import nats.errors
from nats.js import api

from maestro_sdk.service.bus import Client

_INACTIVE = 10.0
"""Seconds after which NATS forgets a reader whose end it was not told."""
_ANSWER = 5.0
_FIRST = 4
"""Messages that are asked for before it is known how large they are."""


@dataclass(frozen=True, slots=True)
class Page:
    """`messages` are pairs of sequence and bytes, `headers` those of the messages, in the same order.

    Everything up to `upto` that fits the filter was read. `first` is the oldest sequence that the stream keeps. `more`
    tells whether anything that fits lay behind.
    """

    messages: list[tuple[int, bytes]]
    upto: int
    first: int
    headers: list[Mapping[str, str]] = field(default_factory=list[Mapping[str, str]])
    more: bool = False


async def last_of(client: Client, stream: str) -> int:
    """The last sequence of a stream. Raises `nats.errors.Error` and `TimeoutError`."""
    return int((await client.jetstream(timeout=_ANSWER).stream_info(stream)).state.last_seq)


async def read_page(
    client: Client, stream: str, subjects: Sequence[str], *, after: int, most: int, size: int = 2**20
) -> Page:
    """The next messages behind a sequence: `most` at most, of about `size` bytes at most, but one at least.

    Raises `nats.errors.Error` and `TimeoutError`.
    """
    js = client.jetstream(timeout=_ANSWER)
    state = (await js.stream_info(stream)).state
    if state.last_seq <= after or not state.messages:
        return Page([], max(after, state.last_seq), state.first_seq)
    config = api.ConsumerConfig(
        deliver_policy=api.DeliverPolicy.BY_START_SEQUENCE,
        opt_start_seq=after + 1,
        ack_policy=api.AckPolicy.NONE,
        filter_subjects=list(subjects),
        inactive_threshold=_INACTIVE,
        mem_storage=True,
        num_replicas=1,
    )
    consumer = await js.add_consumer(stream, config)
    arrived: asyncio.Queue[Any] = asyncio.Queue()
    inbox = client.new_inbox()
    inflow = await client.subscribe(inbox, cb=arrived.put)
    found: list[Any] = []
    try:
        waiting = consumer.num_pending or 0
        ask = _FIRST
        async with asyncio.timeout(_ANSWER):
            while waiting and ask:
                ask = min(ask, most - len(found))
                body = json.dumps({"batch": ask, "no_wait": True}).encode()
                await client.publish(f"$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer.name}", body, reply=inbox)
                while waiting and ask:
                    message = await arrived.get()
                    if message.headers and "Status" in message.headers:
                        waiting = 0
                    else:
                        found.append(message)
                        waiting, ask = _pending(message), ask - 1
                read = sum(len(message.data) for message in found)
                # As many more as are likely to fit.
                ask = 0 if len(found) >= most else max(0, (size - read) * len(found) // max(1, read))
    finally:
        with suppress(nats.errors.Error, TimeoutError):
            async with asyncio.timeout(1):
                await inflow.unsubscribe()
                await js.delete_consumer(stream, consumer.name)
    messages = [(sequence_of(message), bytes(message.data)) for message in found]
    upto = max(after, messages[-1][0] if messages else 0, 0 if waiting else state.last_seq)
    headers: list[Mapping[str, str]] = [dict(message.headers or {}) for message in found]
    return Page(messages, upto, state.first_seq, headers, bool(waiting))


def sequence_of(message: Any) -> int:
    """The place of a message in its stream, from its reply subject."""
    tokens = message.reply.split(".")
    return int(tokens[5] if len(tokens) == 9 else tokens[7])


def _pending(message: Any) -> int:
    tokens = message.reply.split(".")
    return int(tokens[8] if len(tokens) == 9 else tokens[10])
