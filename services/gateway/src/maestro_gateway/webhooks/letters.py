"""Dead letters: events that a webhook did not take, in a stream of their own, and marks of webhooks that are gone."""

from __future__ import annotations

import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import nats.js.errors
from nats.js import api

from maestro.event.v1.event_pb2 import Event
from maestro_gateway.webhooks.hook import Hook
from maestro_gateway.webhooks.outcome import Failed
from maestro_sdk.service.bus import Client
from maestro_sdk.service.event_reader import decoded
from maestro_sdk.service.stream_page import read_page

STREAM = "MAESTRO_DEAD_LETTERS"
BUCKET = "MAESTRO_WEBHOOKS"
_SUBJECTS = "maestro.deadletters"
_KEPT = 30 * 86400.0
_BYTES = 256 * 2**20
_ANSWER = 5.0
_UNSENDABLE = re.compile(r"[^ -~]")
_LONGEST = 200


@dataclass(frozen=True, slots=True)
class Letter:
    """A dead letter. `status` is None when there was no answer; `time` is Unix time."""

    number: int
    event: Event
    attempts: int
    status: int | None
    reason: str
    time: float


async def prepare(client: Client) -> None:
    """Makes the stream and the bucket, where there are none."""
    js = client.jetstream(timeout=_ANSWER)
    try:
        await js.stream_info(STREAM)
    except nats.js.errors.NotFoundError:
        wanted = api.StreamConfig(
            name=STREAM,
            subjects=[f"{_SUBJECTS}.>"],
            storage=api.StorageType.FILE,
            discard=api.DiscardPolicy.OLD,
            max_age=_KEPT,
            max_bytes=_BYTES,
            duplicate_window=600.0,
        )
        await js.add_stream(wanted)
    try:
        await js.stream_info(f"KV_{BUCKET}")
    except nats.js.errors.NotFoundError:
        await js.create_key_value(api.KeyValueConfig(bucket=BUCKET, history=1))


async def put(client: Client, hook: Hook, event: Event, data: bytes, attempts: int, failed: Failed) -> None:
    """Keeps an event that was given up, once however often this is called for it. Raises what NATS raises."""
    headers = {
        "Nats-Msg-Id": f"{hook.consumer}={event.id}",
        "Maestro-Attempts": str(attempts),
        "Maestro-Status": str(failed.status or ""),
        "Maestro-Reason": _UNSENDABLE.sub(" ", failed.reason)[:_LONGEST],
        "Maestro-Sequence": str(event.sequence),
        "Maestro-Time": f"{time.time():.3f}",
    }
    await client.jetstream(timeout=_ANSWER).publish(_subject(hook.tenant, hook.name), data, headers=headers)


async def page(client: Client, tenant: str, name: str, after: int, most: int) -> tuple[list[Letter], bool]:
    """The next letters of a webhook behind a number, and whether there are more. Raises what NATS raises."""
    found = await read_page(client, STREAM, [_subject(tenant, name)], after=after, most=most)
    read = (_read(number, data, headers) for (number, data), headers in zip(found.messages, found.headers, strict=True))
    return [letter for letter in read if letter is not None], found.more


async def one(client: Client, tenant: str, name: str, number: int) -> Letter | None:
    """The letter of a webhook with a number, if there is one. Raises what NATS raises."""
    try:
        found = await client.jetstream(timeout=_ANSWER).get_msg(STREAM, number) if number else None
    except nats.js.errors.NotFoundError:
        return None
    if found is None or found.subject != _subject(tenant, name):
        return None
    return _read(number, found.data or b"", found.headers or {})


def _read(number: int, data: bytes, headers: Mapping[str, str]) -> Letter | None:
    event = decoded(int(headers.get("Maestro-Sequence", "0")), data)
    if event is None:
        return None
    status = headers.get("Maestro-Status", "")
    return Letter(
        number,
        event,
        int(headers.get("Maestro-Attempts", "0")),
        int(status) if status else None,
        headers.get("Maestro-Reason", ""),
        float(headers.get("Maestro-Time", "0")),
    )


async def count(client: Client, tenant: str, name: str) -> int:
    """The letters of a webhook. Raises what NATS raises."""
    subject = _subject(tenant, name)
    info: Any = await client.jetstream(timeout=_ANSWER).stream_info(STREAM, subjects_filter=subject)
    found: dict[str, int] = info.state.subjects or {}
    return found.get(subject, 0)


async def remove(client: Client, number: int) -> None:
    """Takes a letter away; one that is gone already is fine. Raises what NATS raises."""
    try:
        await client.jetstream(timeout=_ANSWER).delete_msg(STREAM, number)
    except nats.js.errors.NotFoundError:
        return


async def is_gone(client: Client, hook: Hook) -> bool:
    """Whether the receiver at this address ended the webhook. Raises what NATS raises."""
    kv = await client.jetstream(timeout=_ANSWER).key_value(BUCKET)
    try:
        entry = await kv.get(_key(hook.tenant, hook.name))
    except nats.js.errors.KeyNotFoundError:
        return False
    return entry.value == hook.mark.encode()


async def mark_gone(client: Client, hook: Hook) -> None:
    """Notes for all gateways that the receiver ended the webhook. Raises what NATS raises."""
    kv = await client.jetstream(timeout=_ANSWER).key_value(BUCKET)
    await kv.put(_key(hook.tenant, hook.name), hook.mark.encode())


def gone_subject(hook: Hook) -> str:
    """Where the note of `mark_gone` is heard: its data are the mark of the hook."""
    return f"$KV.{BUCKET}.{_key(hook.tenant, hook.name)}"


async def forget_gone(client: Client, tenant: str, name: str) -> None:
    """Takes such a note away. Raises what NATS raises."""
    kv = await client.jetstream(timeout=_ANSWER).key_value(BUCKET)
    await kv.purge(_key(tenant, name))


def _key(tenant: str, name: str) -> str:
    return f"{tenant}.{name}"


def _subject(tenant: str, name: str) -> str:
    return f"{_SUBJECTS}.{tenant}.{name}"
