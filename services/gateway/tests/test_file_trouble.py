"""Files while NATS loses its streams and uploads are cut at their very end: no half file, no room that stays taken."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any, cast

import nats
import pytest

from maestro.event.v1.event_pb2 import Event
from maestro.llm.v1.file_pb2 import FilePurpose, ListFilesRequest
from maestro_gateway.audit.acts import Acts
from maestro_gateway.audit.record import record_of
from maestro_gateway.files import FilesOfJobs
from maestro_gateway.files.depot import BUCKET, STREAM, Depot
from maestro_gateway.files.files import Files
from maestro_gateway.files.quota import Quota
from maestro_gateway.files.sweep import Sweeper
from maestro_gateway.files.upload import Upload
from maestro_gateway.identity.principal import Principal, enter
from maestro_sdk.errors import NoBackend, NotFound, Overloaded, StreamBroken
from maestro_sdk.testing.nats import NatsServer
from maestro_sdk.tracing import Call, enter_call

from .test_files import CONTENT, LIMITS, Clock, content_of, header, keep, pieces


class Cutting(Depot):
    """Stores entries, and then fails as if its answer was lost: of those whose key begins with `cut`.

    Unless it is `armed` it waits for the entry of a file first.
    """

    def __init__(self, url: str) -> None:
        super().__init__(url)
        self.url = url
        self.cut = ""
        self.armed = True
        self.failure: type[BaseException] = NoBackend
        self.failed = 0

    async def put_entry(self, key: str, data: bytes, revision: int) -> bool:
        done = await super().put_entry(key, data, revision)
        if self.cut and self.armed and key.startswith(self.cut):
            self.failed += 1
            raise self.failure("the answer is lost")
        self.armed = self.armed or key.startswith("file.")
        return done


@pytest.fixture
async def depot(tmp_path: Path) -> AsyncIterator[Cutting]:
    server = NatsServer(tmp_path / "nats")
    await server.start()
    depot = Cutting(server.url)
    try:
        async with depot.connected():
            yield depot
    finally:
        await server.kill()


async def connect(depot: Cutting) -> Any:
    return await cast("Any", nats).connect(depot.url)


async def quota_of(depot: Depot) -> Quota:
    return Quota.decode((await depot.entry("quota.acme"))[0])


@pytest.mark.parametrize("failure", [NoBackend, asyncio.CancelledError])
async def test_an_upload_that_ends_while_it_becomes_a_file_leaves_no_half_file(
    depot: Cutting, failure: type[BaseException]
) -> None:
    files = Files(depot, LIMITS, clock=Clock())
    depot.cut, depot.failure = "file.", failure
    with pytest.raises(failure):
        await keep(files)
    depot.cut = ""
    assert depot.failed == 1
    assert not (await files.list("acme", ListFilesRequest())).files
    assert (await depot.places("acme"), await quota_of(depot)) == ([], Quota())


@pytest.mark.parametrize("failure", [NoBackend, asyncio.CancelledError])
async def test_a_file_that_is_listed_is_kept_whatever_becomes_of_its_count(
    depot: Cutting, failure: type[BaseException]
) -> None:
    clock = Clock()
    files = Files(depot, LIMITS, clock=clock)
    upload = await files.begin("acme", 10)
    ended: list[Upload] = []
    upload.ended.append(lambda: ended.append(upload))
    await upload.write(b"0123456789")
    depot.cut, depot.failure, depot.armed = "quota.", failure, False
    if failure is NoBackend:
        await upload.finish(header())
    else:
        with pytest.raises(failure):
            await upload.finish(header())
        await upload.abandon()
    depot.cut = ""
    assert (depot.failed, ended) == (1, [upload])
    (kept,) = (await files.list("acme", ListFilesRequest())).files
    assert await content_of(files, kept) == b"0123456789"
    clock.ahead = 120.0
    await Sweeper(depot, files, clock=clock).sweep()
    assert await quota_of(depot) == Quota(10, 1)


async def test_what_callers_do_is_told_once(depot: Cutting) -> None:
    events: list[Event] = []
    files = Files(depot, LIMITS, clock=Clock(), acts=Acts(events.append))
    enter(Principal("acme", "key_1", frozenset({"files"}), "key", "ada"))
    enter_call(Call("req-7", "acme", ""))
    kept = await keep(files, request_id="r1")
    assert await keep(files, request_id="r1") == kept
    # What a job puts out is no act of anybody.
    await FilesOfJobs(files).store(
        "acme",
        filename="out.jsonl",
        mime_type="application/jsonl",
        purpose=FilePurpose.FILE_PURPOSE_JOB_OUTPUT,
        request_id="r2",
        lasting=100.0,
        metadata={},
        data=pieces(b"{}\n"),
    )
    await files.delete("acme", kept.file_id, "d1")
    await files.delete("acme", kept.file_id, "d1")
    with pytest.raises(NotFound):
        await files.delete("acme", kept.file_id)
    records = [record for event in events if (record := record_of(event)) is not None]
    assert [(record.tenant, record.operation, record.target, record.key_id) for record in records] == [
        ("acme", "file", f"{action} file/{kept.file_id}", "key_1") for action in ("upload", "delete")
    ]


async def test_who_has_no_room_left_can_delete_and_what_is_over_goes(depot: Cutting) -> None:
    clock = Clock()
    files = Files(depot, LIMITS, clock=clock)
    kept = [await keep(files, CONTENT[:100]) for _ in range(3)]
    client = await connect(depot)
    try:
        js = client.jetstream()

        async def leave(room: int) -> None:
            config = (await js.stream_info(f"KV_{BUCKET}")).config
            config.max_bytes = room
            await js.update_stream(config)

        await leave(1)
        with pytest.raises(Overloaded):
            await keep(files, CONTENT[:100])
        await files.delete("acme", kept[0].file_id, "d1")
        clock.ahead = LIMITS.expire_after + 1
        sweeper = Sweeper(depot, files, clock=clock)
        assert await sweeper.take_turn()
        await sweeper.sweep()
        assert not await depot.places("acme")
        await leave(-1)
    finally:
        await client.close()
    await sweeper.sweep()
    assert await quota_of(depot) == Quota()


@pytest.mark.parametrize("lost", [(STREAM,), (f"KV_{BUCKET}",), (STREAM, f"KV_{BUCKET}")])
async def test_streams_that_are_deleted_are_made_anew(depot: Cutting, lost: Sequence[str]) -> None:
    files = Files(depot, LIMITS, clock=Clock())
    old = await keep(files)
    client = await connect(depot)
    try:
        for stream in lost:
            await client.jetstream().delete_stream(stream)
    finally:
        await client.close()
    if lost == (STREAM,):
        with pytest.raises(StreamBroken, match="is lost"):
            await content_of(files, old)
        await files.delete("acme", old.file_id)
    else:
        assert not (await files.list("acme", ListFilesRequest())).files
        with pytest.raises(NotFound):
            await files.get("acme", old.file_id)
    new = await keep(files)
    assert await content_of(files, new) == CONTENT
    assert [file.file_id for file in (await files.list("acme", ListFilesRequest())).files] == [new.file_id]
