"""Sums over the past, kept in a bucket: for runs of entries, one for each day that something of the run happened on.

Where a run ends follows from the entries alone, so whoever sums it up gets the same, and writes the same. What arrived
late stands under the day that it happened on, so a query reads the days that it asks for and nothing else.
"""

from __future__ import annotations

import datetime
import zlib
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeAlias

import orjson

from maestro_gateway.ledger.scan import scan
from maestro_gateway.ledger.stream import BUCKET
from maestro_gateway.ledger.tally import HOUR, Row, Sums, Tally
from maestro_sdk.service.bus import Client

_FORMAT = 1
_DAY = 24
_LARGEST = 512 * 1024
"""Bytes of an entry before it is compressed, about; NATS takes 1 MiB."""
_MOST_DAYS = 40
"""Days that are asked for one by one; a longer span is read by whole months."""

Run: TypeAlias = tuple[int, int]
"""The sequences of the first and the last entry of a run."""


@dataclass(frozen=True, slots=True)
class Mark:
    """How far a tenant's entries are summed up: the last one's sequence, and when it arrived, in nanoseconds."""

    sequence: int = 0
    time: int = 0


class Rollups:
    """The sums of one tenant over one life of the ledger, which `epoch` names."""

    def __init__(self, client: Client, tenant: str, epoch: int) -> None:
        self._client = client
        self._prefix = f"$KV.{BUCKET}.{tenant}.{_FORMAT}-{epoch}"

    async def mark(self) -> Mark:
        """How far the bucket is."""
        found = Mark()
        async for batch in scan(self._client, f"KV_{BUCKET}", [f"{self._prefix}.mark"]):
            for entry in batch:
                if entry.data:
                    found = Mark(*orjson.loads(entry.data))
        return found

    async def store(self, first: int, mark: Mark, tally: Tally) -> None:
        """Keeps the run from the sequence `first` to `mark`. The mark comes last: without it, nothing counts."""
        js = self._client.jetstream()
        days: dict[int, list[tuple[Row, Sums]]] = {}
        for row, sums in tally.rows.items():
            days.setdefault(row.hour // _DAY, []).append((row, sums))
        for day, rows in days.items():
            for number, data in enumerate(_encoded(rows)):
                subject = f"{self._prefix}.rows.{_day_subject(day)}.{first}.{mark.sequence}.{number}"
                await js.publish(subject, data)
        await js.publish(f"{self._prefix}.mark", orjson.dumps([mark.sequence, mark.time]))

    async def read(self, first: int, end: int, upto: int) -> AsyncGenerator[tuple[Run, Iterator[tuple[Row, Sums]]]]:
        """Rows of the days of the hours `first` to `end`, with their run, of runs up to the sequence `upto`."""
        if end <= first:
            # No subject at all would be every one.
            return
        async with aclosing(scan(self._client, f"KV_{BUCKET}", self._subjects(first, end))) as batches:
            async for batch in batches:
                for entry in batch:
                    *_, begin, last, _ = entry.subject.split(".")
                    if entry.data and int(last) <= upto:
                        yield (int(begin), int(last)), _decoded(entry.data)

    def _subjects(self, first: int, end: int) -> list[str]:
        days = range(first // _DAY, (end - 1) // _DAY + 1)
        if len(days) > _MOST_DAYS:
            months = dict.fromkeys(_day_subject(day).partition(".")[0] for day in days)
            return [f"{self._prefix}.rows.{month}.>" for month in months]
        return [f"{self._prefix}.rows.{_day_subject(day)}.>" for day in days]


def _day_subject(day: int) -> str:
    """A day since 1970 as "YYYYMM.DD"."""
    return datetime.datetime.fromtimestamp(day * _DAY * HOUR, datetime.UTC).strftime("%Y%m.%d")


def _encoded(rows: Iterable[tuple[Row, Sums]]) -> Iterator[bytes]:
    chunk: list[bytes] = []
    size = 0
    for row, sums in rows:
        data = orjson.dumps([*row, *(getattr(sums, name) for name in Sums.__slots__)])
        if chunk and size + len(data) > _LARGEST:
            yield _packed(chunk)
            chunk, size = [], 0
        chunk.append(data)
        size += len(data)
    if chunk:
        yield _packed(chunk)


def _packed(rows: Sequence[bytes]) -> bytes:
    return zlib.compress(b"[" + b",".join(rows) + b"]")


def _decoded(data: bytes) -> Iterator[tuple[Row, Sums]]:
    entries: list[list[Any]] = orjson.loads(zlib.decompress(data))
    width = len(Row._fields)
    for entry in entries:
        entry[width - 1] = tuple((name, value) for name, value in entry[width - 1])
        yield Row._make(entry[:width]), Sums(*entry[width:])
