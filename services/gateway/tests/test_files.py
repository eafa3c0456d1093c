"""Files in a real NATS: whole or not at all, within their limits, and nothing left behind."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Sequence
from contextlib import aclosing
from pathlib import Path
from typing import Any

import pytest

from maestro.llm.v1.file_pb2 import File, FileHeader, FilePurpose, ListFilesRequest
from maestro_gateway.files.depot import Depot
from maestro_gateway.files.files import Files
from maestro_gateway.files.quota import Quota
from maestro_gateway.files.sweep import Sweeper
from maestro_gateway.files.upload import LEASE
from maestro_sdk.errors import InvalidRequest, MaestroError, NoBackend, NotFound, Timeout, TooLarge
from maestro_sdk.service.files import FilesConfig, TenantFilesConfig
from maestro_sdk.testing.nats import NatsServer

CONTENT = bytes(range(256)) * 6000
"""Three pieces, the last one not full."""
LIMITS = FilesConfig(
    max_file=4 * 2**20, max_tenant=6 * 2**20, tenants={"small": TenantFilesConfig(max_file=1000, max_files=2)}
)


class Clock:
    """Goes by itself, and jumps."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return 1_800_000_000.0 + self.ahead + asyncio.get_running_loop().time() % 1000


class Stage:
    """Two gateways on one NATS."""

    def __init__(self, server: NatsServer, depots: Sequence[Depot], clock: Clock) -> None:
        self.server = server
        self.clock = clock
        self.depot, other = depots
        self.files, self.other = (Files(depot, LIMITS, clock=clock) for depot in depots)
        self.sweeper = Sweeper(other, self.other, clock=clock)

    async def left(self, tenant: str = "acme") -> tuple[int, Quota]:
        """How many places have pieces, and what is on the list."""
        data, _ = await self.depot.entry(f"quota.{tenant}")
        return len(await self.depot.places(tenant)), Quota.decode(data) if data else Quota()


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    server, clock = NatsServer(tmp_path / "nats"), Clock()
    await server.start()
    depots = [Depot(server.url), Depot(server.url)]
    try:
        async with depots[0].connected(), depots[1].connected():
            yield Stage(server, depots, clock)
    finally:
        await server.kill()


def header(**fields: Any) -> FileHeader:
    told: dict[str, Any] = {"filename": "facts.bin", "purpose": FilePurpose.FILE_PURPOSE_CONTENT, **fields}
    return FileHeader(**told)


async def pieces(content: bytes, size: int = 100_000) -> AsyncIterator[bytes]:
    for start in range(0, len(content), size):
        yield content[start : start + size]


async def keep(files: Files, content: bytes = CONTENT, tenant: str = "acme", **fields: Any) -> File:
    return await files.store(tenant, header(**fields), pieces(content))


async def content_of(files: Files, file: File, tenant: str = "acme", **span: Any) -> bytes:
    record = await files.find(tenant, file.file_id)
    async with aclosing(files.read(tenant, record, **span)) as read:
        return b"".join([piece async for piece in read])


async def test_the_whole_life_of_a_file(stage: Stage) -> None:
    kept = await keep(stage.files, metadata={"team": "a"})
    assert (kept.filename, kept.mime_type, kept.size_bytes) == ("facts.bin", "application/octet-stream", len(CONTENT))
    assert kept.sha256 == hashlib.sha256(CONTENT).hexdigest()
    # Another gateway knows it at once.
    assert await stage.other.get("acme", kept.file_id) == kept
    assert await content_of(stage.other, kept) == CONTENT
    assert list((await stage.other.list("acme", ListFilesRequest())).files) == [kept]
    await stage.other.delete("acme", kept.file_id)
    with pytest.raises(NotFound):
        await stage.files.get("acme", kept.file_id)
    assert await stage.left() == (0, Quota())


async def test_ranges(stage: Stage) -> None:
    kept, size = await keep(stage.files), len(CONTENT)
    spans = ((0, 1), (524_287, 2), (524_288, 524_288), (1_048_576, None), (size - 1, 9), (size, None))
    for offset, limit in spans:
        assert await content_of(stage.files, kept, offset=offset, limit=limit) == CONTENT[offset:][:limit]
    with pytest.raises(InvalidRequest, match="the file has 1536000 bytes"):
        await content_of(stage.files, kept, offset=size + 1)


async def test_no_tenant_sees_another_ones_files(stage: Stage) -> None:
    kept = await keep(stage.files)
    asked = [
        lambda tenant: stage.files.get(tenant, kept.file_id),
        lambda tenant: stage.files.delete(tenant, kept.file_id),
        lambda tenant: stage.files.content(tenant, kept.file_id, 10**9),
    ]
    for tenant in ("globex", "acm", "acme2", "ACME"):
        for ask in asked:
            with pytest.raises(NotFound):
                await ask(tenant)
        assert not (await stage.files.list(tenant, ListFilesRequest())).files
    assert await content_of(stage.files, kept) == CONTENT


async def test_names_that_are_no_files(stage: Stage) -> None:
    await keep(stage.files, b"x")
    for file_id in (
        "",
        "*",
        ">",
        "mfile-*",
        "mfile-c00000000000000" + "0" * 15,
        "../x",
        "file-1",
        "mfile-c" + "0" * 30,
    ):
        for ask in (stage.files.get, stage.files.delete):
            with pytest.raises(NotFound):
                await ask("acme", file_id)


WRONG: list[tuple[dict[str, Any], bytes, type[MaestroError], str]] = [
    ({"sha256": "0" * 64}, CONTENT, InvalidRequest, "header.sha256"),
    ({"size_bytes": 7}, CONTENT, InvalidRequest, "header.size_bytes"),
    ({}, b"", InvalidRequest, ""),
    ({"mime_type": "no type"}, CONTENT, InvalidRequest, "header.mime_type"),
    ({"mime_type": "application/x-msdownload"}, CONTENT, InvalidRequest, "header.mime_type"),
    ({"filename": "a.png"}, CONTENT, InvalidRequest, "header.mime_type"),
    ({"filename": "a.png"}, b"%PDF-1.7 ...", InvalidRequest, "header.mime_type"),
    ({"filename": "a.txt"}, b"\x7fELF\x02\x01", InvalidRequest, "header.mime_type"),
    (
        {"purpose": FilePurpose.FILE_PURPOSE_JOB_INPUT, "mime_type": "image/png"},
        b"\x89PNG\r\n\x1a\n",
        InvalidRequest,
        "header.mime_type",
    ),
    ({}, bytes(5 * 2**20), TooLarge, ""),
    ({"size_bytes": 5 * 2**20}, b"x", TooLarge, ""),
]


async def test_what_is_wrong_leaves_nothing(stage: Stage) -> None:
    for fields, content, expected, path in WRONG:
        with pytest.raises(expected) as caught:
            await keep(stage.files, content, **fields)
        assert [violation.field for violation in caught.value.violations] == ([path] if path else []), fields
        assert await stage.left() == (0, Quota()), fields
    assert not (await stage.files.list("acme", ListFilesRequest())).files


async def test_an_upload_that_is_cut_leaves_nothing(stage: Stage) -> None:
    reached, never = asyncio.Event(), asyncio.Event()

    async def stalled() -> AsyncIterator[bytes]:
        yield CONTENT
        reached.set()
        await never.wait()

    task = asyncio.create_task(stage.files.store("acme", header(), stalled()))
    await asyncio.wait_for(reached.wait(), 5)
    places, quota = await stage.left()
    assert places == 1
    assert len(quota.open) == 1
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert await stage.left() == (0, Quota())


async def test_a_tenant_never_exceeds_its_room(stage: Stage) -> None:
    """Eight uploads of 2 MiB at two gateways at the same time, with room for three."""
    content = bytes(2 * 2**20)
    made = await asyncio.gather(
        *(keep(files, content, size_bytes=len(content)) for files in (stage.files, stage.other) * 4),
        return_exceptions=True,
    )
    kept = [file for file in made if isinstance(file, File)]
    assert all(isinstance(other, File | TooLarge) for other in made)
    assert len(kept) == 3
    with pytest.raises(TooLarge, match="delete some first"):
        await keep(stage.files, b"x")
    places, quota = await stage.left()
    assert (places, quota) == (3, Quota(6 * 2**20, 3))
    await stage.files.delete("acme", kept[0].file_id)
    assert (await keep(stage.files, b"x")).size_bytes == 1


async def test_limits_of_one_tenant(stage: Stage) -> None:
    with pytest.raises(TooLarge):
        await keep(stage.files, bytes(1001), tenant="small")
    for _ in range(2):
        await keep(stage.files, b"x", tenant="small")
    with pytest.raises(TooLarge, match="2 files"):
        await keep(stage.files, b"x", tenant="small")


async def test_a_list_in_pages(stage: Stage) -> None:
    kept = [
        await keep(stage.files, b"x", purpose=FilePurpose.FILE_PURPOSE_JOB_INPUT if number % 3 else 1)
        for number in range(10)
    ]
    newest = [file.file_id for file in reversed(kept)]
    seen: list[str] = []
    token = ""
    for _ in range(4):
        page = await stage.files.list("acme", ListFilesRequest(page_size=3, page_token=token))
        seen += [file.file_id for file in page.files]
        token = page.next_page_token
    assert (seen, token) == (newest, "")
    inputs = await stage.files.list("acme", ListFilesRequest(purpose=FilePurpose.FILE_PURPOSE_JOB_INPUT))
    assert [file.file_id for file in inputs.files] == [
        file.file_id for file in reversed(kept) if file.purpose == FilePurpose.FILE_PURPOSE_JOB_INPUT
    ]
    with pytest.raises(InvalidRequest):
        await stage.files.list("acme", ListFilesRequest(page_token="x"))


async def test_repetition(stage: Stage) -> None:
    both = (stage.files, stage.other)
    made = await asyncio.gather(*(keep(files, b"content", request_id="k") for files in both * 4))
    assert len({file.file_id for file in made}) == 1
    assert await keep(stage.other, b"otherwise", request_id="k") == made[0]
    assert await stage.left() == (1, Quota(len(b"content"), 1))
    assert (await keep(stage.files, request_id="k", tenant="globex")).file_id != made[0].file_id
    for files in both:
        await files.delete("acme", made[0].file_id, "d")
    with pytest.raises(NotFound):
        await stage.files.delete("acme", made[0].file_id)
    # What it made has gone, so it makes another one.
    assert (await keep(stage.files, request_id="k")).file_id != made[0].file_id


async def test_expiry(stage: Stage) -> None:
    kept = await keep(stage.files, expire_after={"seconds": 3600})
    later = await keep(stage.files, expire_after={"seconds": 7200})
    stage.clock.ahead += 3601
    with pytest.raises(NotFound):
        await stage.files.get("acme", kept.file_id)
    assert [file.file_id for file in (await stage.files.list("acme", ListFilesRequest())).files] == [later.file_id]
    await stage.sweeper.sweep()
    assert await stage.left() == (1, Quota(len(CONTENT), 1))
    with pytest.raises(InvalidRequest, match="expire_after"):
        await keep(stage.files, expire_after={"seconds": 31 * 86400})


async def test_what_a_gateway_leaves_behind_is_swept(stage: Stage) -> None:
    kept = await keep(stage.files)
    dead = await stage.files.begin("acme")
    await dead.write(CONTENT)
    await stage.sweeper.sweep()
    assert (await stage.left())[0] == 2, "an upload that is under way is left alone"
    stage.clock.ahead += LEASE + 1
    await stage.sweeper.sweep()
    assert await stage.left() == (1, Quota(len(CONTENT), 1))
    # It was not dead, only silent: it is told so, and nothing of it comes back.
    with pytest.raises(Timeout):
        await dead.finish(header())
    await dead.abandon()
    await stage.sweeper.sweep()
    assert await stage.left() == (1, Quota(len(CONTENT), 1))
    assert await content_of(stage.files, kept) == CONTENT


async def test_a_deletion_that_was_cut_is_finished(stage: Stage) -> None:
    kept = await keep(stage.files)
    record = await stage.files.find("acme", kept.file_id)
    # As if the gateway had died after each of its steps.
    await stage.depot.change_quota("acme", lambda quota: quota.give_up(record.place, record.size))
    await stage.sweeper.sweep()
    assert await stage.left() == (1, Quota(len(CONTENT), 1)), "not deleted, and nobody was told that it was"
    await stage.depot.change_quota("acme", lambda quota: quota.give_up(record.place, record.size))
    await stage.depot.drop_entry(f"file.acme.{kept.file_id}")
    await stage.sweeper.sweep()
    assert await stage.left() == (0, Quota())


async def test_an_upload_outlives_a_restart_of_nats(stage: Stage) -> None:
    kept = await keep(stage.files)
    upload = await stage.files.begin("acme")
    await upload.write(CONTENT)
    await stage.server.kill()
    writing = asyncio.create_task(upload.write(CONTENT))
    await asyncio.sleep(0)
    await stage.server.start()
    await asyncio.wait_for(writing, 20)
    both = await upload.finish(header())
    assert await content_of(stage.other, both) == CONTENT * 2
    assert await content_of(stage.other, kept) == CONTENT


async def test_without_nats_the_caller_is_told(tmp_path: Path) -> None:
    depot = Depot("nats://127.0.0.1:9", patience=0.2)
    async with depot.connected():
        files = Files(depot, LIMITS)
        with pytest.raises(NoBackend):
            await keep(files)
        with pytest.raises(NoBackend):
            await files.list("acme", ListFilesRequest())
