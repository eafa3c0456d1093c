"""Where the streams stand that the ledger is read from."""

from __future__ import annotations

import base64
import datetime
import re
from collections.abc import AsyncGenerator
from dataclasses import dataclass
from typing import Any

from maestro_gateway.ledger.stream import BUCKET, STREAM, ask
from maestro_sdk.service import bus
from maestro_sdk.service.bus import Client

_SOURCE = re.compile(rb"\r\nNats-Stream-Source: *\S+ ([0-9]+) ")
_PAGE = 100_000
"""Subjects that NATS tells in one answer."""


@dataclass(frozen=True, slots=True)
class Standing:
    """What a reading relies on."""

    epoch: int
    """Names the life of the ledger and of its bucket: whoever made one of them anew began another one."""
    newest: int
    """When the ledger's last entry arrived, in nanoseconds of Unix time; 0 when it holds none."""
    copied: int | None
    """Sequence of the last event that the ledger has, in the stream of events as it is; None: no such stream."""


class Missing(OSError):
    """There is no ledger, or no bucket for its sums."""


async def look(client: Client) -> Standing:
    """Where the streams stand now. Raises `Missing`."""
    ledger = await _info(client, STREAM)
    bucket = await _info(client, f"KV_{BUCKET}")
    if ledger is None or bucket is None:
        raise Missing("it is being made")
    epoch = max(_nanoseconds(ledger["created"]), _nanoseconds(bucket["created"])) // 10**6
    last = await _last(client, ledger["state"]["last_seq"])
    # After the ledger's, so that what it says is at least as new.
    events = await _info(client, bus.STREAM)
    sequence, newest = last or (0, 0)
    if events is None:
        return Standing(epoch, newest, None)
    made_anew = _nanoseconds(events["created"]) > newest or sequence > events["state"]["last_seq"]
    return Standing(epoch, newest, 0 if made_anew else sequence)


async def subjects(client: Client, stream: str, pattern: str) -> AsyncGenerator[str]:
    """The subjects that a stream holds anything on."""
    offset, total = 0, 1
    while offset < total:
        answer = await ask(client, f"STREAM.INFO.{stream}", {"subjects_filter": pattern, "offset": offset})
        found: dict[str, int] = answer.get("state", {}).get("subjects") or {}
        for subject in found:
            yield subject
        total = int(answer.get("total") or 0)
        offset += max(len(found), int(answer.get("limit") or _PAGE))


async def _last(client: Client, sequence: int) -> tuple[int, int] | None:
    """Of the ledger's last entry its sequence in the stream of events, and when it arrived; None when it is gone."""
    if not sequence:
        return None
    message = (await ask(client, f"STREAM.MSG.GET.{STREAM}", {"seq": sequence})).get("message")
    if message is None:
        return None
    source = _SOURCE.search(base64.b64decode(message.get("hdrs") or ""))
    return int(source[1]) if source else 0, _nanoseconds(message["time"])


async def _info(client: Client, stream: str) -> dict[str, Any] | None:
    answer = await ask(client, f"STREAM.INFO.{stream}")
    return None if "error" in answer else answer


def _nanoseconds(text: str) -> int:
    """A moment such as "2026-03-01T10:00:00.123456789Z" as nanoseconds of Unix time."""
    whole, _, rest = text.removesuffix("Z").partition(".")
    seconds = datetime.datetime.fromisoformat(whole).replace(tzinfo=datetime.UTC).timestamp()
    return int(seconds) * 10**9 + int(rest.ljust(9, "0")[:9])
