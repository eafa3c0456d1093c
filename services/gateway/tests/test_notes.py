"""What is under way at a gateway that is killed: its next life tells it once, and never what had an end."""

from __future__ import annotations

import gc
import shutil
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from maestro.event.v1.event_pb2 import AttemptUsage, Event
from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.usage_pb2 import Price, Usage
from maestro_gateway.account import Account, Accountant
from maestro_gateway.endings import mark_estimate
from maestro_gateway.notes import Notes
from maestro_sdk.mesh.table import Table
from maestro_sdk.mesh.trail import Attempt
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.store.journal import HoldJournal
from maestro_sdk.testing import tables
from maestro_sdk.testing.servers import free_port
from maestro_sdk.tracing import Call

from .spending import completed, failed

KINDS = ("request.completed", "request.failed")


@dataclass
class Source:
    """A table with one backend that has a price."""

    table: Table


def source() -> Source:
    model = tables.model("fake/model")
    model.price.CopyFrom(Price(effective_date="2026-01-01", input="2", output="8"))
    return Source(tables.table([tables.backend("fake", model)], {"default": [("fake/model", 1.0)]}))


def under_way(end: Event, read: int) -> Event:
    """What has to be told should nothing be heard of `end` any more."""
    used = AttemptUsage(attempt=1, adapter="fake", provider="fake", model="model")
    used.usage.CopyFrom(Usage(input_tokens=read, estimated=True))
    note = failed(used)
    mark_estimate(note, end.id)
    return note


@asynccontextmanager
async def life(data: Path) -> AsyncGenerator[tuple[Notes, EventPublisher]]:
    """A gateway without NATS: its events wait on the disk."""
    notes = Notes(HoldJournal(data / "requests.journal"))
    url = f"nats://127.0.0.1:{free_port()}"
    async with EventPublisher(url, data / "gateway.events", durable=KINDS) as publisher:
        notes.begin(publisher)
        yield notes, publisher
    notes.close()


async def told(notes: Notes, publisher: EventPublisher) -> list[Event]:
    return [event async for event in notes.tell_lost(source(), publisher.publish)]


async def test_what_a_killed_gateway_had_under_way_is_told_once(tmp_path: Path) -> None:
    lost, ended, given_up, safe = (completed() for _ in range(4))
    async with life(tmp_path / "a") as (notes, publisher):
        for end in (lost, ended, given_up, safe):
            notes.put(end.id, under_way(end, 1000).SerializeToString())
        notes.drop(given_up.id)
        publisher.publish(safe)
        notes.told(safe.id)
        # The publisher says so once it has the event in the stream or on the disk.
        notes.secure(publisher.accepted)
        publisher.publish(ended)
        notes.told(ended.id)
        shutil.copytree(tmp_path / "a", tmp_path / "killed")
    async with life(tmp_path / "killed") as (notes, publisher):
        assert set(notes.lost) == {lost.id}
        (event,) = await told(notes, publisher)
        failure = event.request_failed
        assert (failure.estimate_of, event.id == lost.id) == (lost.id, False)
        assert (failure.usage.input_tokens, failure.cost.usd, failure.cost.estimated) == (1000, "0.002000", True)
        assert (failure.provider, failure.model) == ("fake", "model")
        assert not notes.lost
        shutil.copytree(tmp_path / "killed", tmp_path / "again")
    async with life(tmp_path / "again") as (notes, publisher):
        assert not notes.lost, "an end that nobody heard of yet is published all the same"
        assert event.id in {left.id for left in publisher.left}


async def test_a_note_that_was_torn_is_passed_over(tmp_path: Path) -> None:
    first, second = completed(), completed()
    async with life(tmp_path / "a") as (notes, _):
        notes.put(first.id, under_way(first, 7).SerializeToString())
        notes.put(second.id, b"\xff\xff what no event looks like")
        shutil.copytree(tmp_path / "a", tmp_path / "killed")
    path = tmp_path / "killed" / "requests.journal"
    path.write_bytes(path.read_bytes() + b"\x20\x00\x10")
    async with life(tmp_path / "killed") as (notes, publisher):
        assert [event.request_failed.estimate_of for event in await told(notes, publisher)] == [first.id]
    async with life(tmp_path / "killed") as (notes, publisher):
        assert not notes.lost


async def test_what_is_noted_of_a_request_hangs_on_nothing_once_it_is_over(tmp_path: Path) -> None:
    """Who holds each other stays until a collection, which is dear where many requests wait for one."""
    backend = next(iter(source().table.backends.values()))
    async with life(tmp_path) as (notes, publisher):
        accountant = Accountant(publisher.publish, lambda: False, notes=notes)
        gc.collect()
        gc.disable()
        try:
            with accountant.open(ChatRequest(), Call("r", "acme", ""), streamed=False) as account:
                begin = account.trail.on_attempt
                assert begin is not None
                begin(Attempt(backend, 1, 1.0, 1.0))
            assert (tmp_path / "requests.journal").stat().st_size > 0
            del begin, account
            assert [each for each in gc.get_objects() if isinstance(each, Account)] == []
        finally:
            gc.enable()
