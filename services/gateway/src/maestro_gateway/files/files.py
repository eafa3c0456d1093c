"""The files of all tenants: kept whole or not at all, and seen by their own tenant only.

A tenant is part of the name of everything that is kept for it, so nothing of another one can be named. What stands in
the bucket: `file.TENANT.ID` facts, `quota.TENANT` what is used, `upload.TENANT.DIGEST` and `deletion.TENANT.DIGEST` the
requests that were made already.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from contextlib import aclosing, suppress
from functools import partial

import orjson

from maestro.llm.v1.file_pb2 import File, FileHeader, ListFilesRequest, ListFilesResponse
from maestro_gateway.audit.acts import Acts
from maestro_gateway.files.depot import Depot
from maestro_gateway.files.record import FileRecord, age_of, digest_of, is_file_id, purpose_of
from maestro_gateway.files.upload import Upload, earlier, record_of
from maestro_sdk.errors import InvalidRequest, NotFound, Overloaded, StreamBroken, TooLarge, Violation
from maestro_sdk.service.bus import heed_cancellation
from maestro_sdk.service.files import FilesConfig

_PAGE = 100
_AT_ONCE = 16
"""Entries that are read at the same time."""
_MOST_UPLOADS = 64
"""Uploads of one gateway at a time: each holds two pieces."""


class Files:
    """Keeps files in a depot under the limits of the configuration. `clock` tells Unix time in seconds.

    `acts` are told what callers did.
    """

    def __init__(
        self, depot: Depot, limits: FilesConfig, *, clock: Callable[[], float] = time.time, acts: Acts | None = None
    ) -> None:
        self._acts = acts
        self._depot = depot
        self._limits = limits
        self._clock = clock
        self._uploads: set[Upload] = set()

    def limits(self, tenant: str) -> FilesConfig:
        """What holds for the files of a tenant."""
        return self._limits.of(tenant)

    async def begin(self, tenant: str, size: int | None = None, *, by_caller: bool = True) -> Upload:
        """An upload of `size` bytes, where that is known. Raises `TooLarge` and `Overloaded`.

        Whoever began it ends it by `finish` or `abandon`. Without `by_caller` it is the mesh's own.
        """
        if len(self._uploads) >= _MOST_UPLOADS:
            raise Overloaded("too many uploads are under way at this gateway", retry_after=1.0)
        note = partial(self._note, "upload", tenant) if by_caller else None
        upload = Upload(self._depot, tenant, self._limits.of(tenant), self._clock, note)
        # It is counted until nothing of it is under way any more.
        self._uploads.add(upload)
        upload.ended.append(lambda: self._uploads.discard(upload))
        await upload.open(size)
        return upload

    async def store(
        self, tenant: str, header: FileHeader, content: AsyncIterable[bytes], *, by_caller: bool = True
    ) -> File:
        """Keeps a file whose bytes come piece by piece. Nothing is kept when this raises; see `begin`."""
        earlier = await self.earlier(tenant, header.request_id)
        if earlier is not None:
            async for _ in content:
                pass
            return earlier
        size = header.size_bytes if header.HasField("size_bytes") else None
        upload = await self.begin(tenant, size, by_caller=by_caller)
        try:
            async for data in content:
                await upload.write(data)
            return await upload.finish(header)
        except BaseException:
            await upload.abandon()
            raise

    async def earlier(self, tenant: str, request_id: str) -> File | None:
        """The file that an upload with this `request_id` made already."""
        return await earlier(self._depot, tenant, request_id, self._clock()) if request_id else None

    async def close(self) -> None:
        """Gives up what is still being uploaded."""
        for upload in tuple(self._uploads):
            await upload.abandon()

    async def get(self, tenant: str, file_id: str) -> File:
        """The facts about a file. Raises `NotFound`."""
        return (await self.find(tenant, file_id)).message()

    async def find(self, tenant: str, file_id: str) -> FileRecord:
        """The record of a file. Raises `NotFound`, also for one that has expired and one of another tenant."""
        found = await self._record(tenant, file_id)
        if found is None:
            raise NotFound(f"there is no file {file_id[:100]!r}")
        return found

    async def list(self, tenant: str, request: ListFilesRequest) -> ListFilesResponse:
        """Files, newest first; the token of a page is the last file before it."""
        if request.page_token and not is_file_id(request.page_token):
            raise InvalidRequest.at("page_token", "is none of an earlier answer")
        ids, more = await self._page(tenant, request)
        # Between the names and the facts some may have gone: they are left out.
        found: list[FileRecord | None] = []
        for start in range(0, len(ids), _AT_ONCE):
            heed_cancellation()
            found += await asyncio.gather(*(self._record(tenant, each) for each in ids[start : start + _AT_ONCE]))
        return ListFilesResponse(
            files=[record.message() for record in found if record is not None],
            next_page_token=ids[-1] if more else "",
        )

    async def read(
        self, tenant: str, file: FileRecord, offset: int = 0, limit: int | None = None
    ) -> AsyncGenerator[bytes]:
        """Bytes of a file from `offset` on, at most `limit`, as fast as they are asked for.

        Raises `InvalidRequest` for an offset beyond the end; `NotFound` and `StreamBroken` when it goes meanwhile.
        """
        check_offset(file, offset)
        end = file.size if limit is None else min(file.size, offset + limit)
        while offset < end:
            heed_cancellation()
            number, skip = divmod(offset, file.piece)
            try:
                data = await self._depot.piece_of(tenant, file.place, number)
            except LookupError:
                await self.find(tenant, file.file_id)
                raise StreamBroken(f"piece {number} of the file is lost", counts_against_health=False) from None
            piece = data[skip : skip + end - offset]
            if not piece:
                raise StreamBroken(f"piece {number} of the file is too short", counts_against_health=False)
            yield piece
            offset += len(piece)

    async def content(self, tenant: str, file_id: str, most: int) -> tuple[FileRecord, bytes]:
        """A whole file of at most `most` bytes. Raises `NotFound` and `TooLarge`."""
        file = await self.find(tenant, file_id)
        if file.size > most:
            raise TooLarge(f"the file {file_id} has {file.size} bytes, more than the {most} that fit here")
        async with aclosing(self.read(tenant, file)) as pieces:
            return file, b"".join([piece async for piece in pieces])

    async def delete(self, tenant: str, file_id: str, request_id: str = "") -> None:
        """Deletes a file at once and for good. Raises `NotFound`, but not for a deletion that is repeated."""
        done = f"deletion.{tenant}.{digest_of(file_id, request_id)}" if request_id else ""
        record = await self._record(tenant, file_id)
        if record is None:
            if done and (await self._depot.entry(done))[1]:
                return
            raise NotFound(f"there is no file {file_id[:100]!r}")
        if done:
            with suppress(Overloaded):
                await self._depot.put_entry(done, orjson.dumps({"time": self._clock()}), 0)
        await self.drop(tenant, record)
        self._note("delete", tenant, file_id)

    async def drop(self, tenant: str, record: FileRecord) -> None:
        """Takes a file away. Its place is on the list until it is empty, should this gateway die meanwhile.

        Where NATS has no room to write that down, it goes all the same, and whoever sweeps counts anew.
        """
        with suppress(Overloaded):
            await self._depot.change_quota(tenant, lambda quota: quota.give_up(record.place, record.size))
        await self._depot.drop_entry(f"file.{tenant}.{record.file_id}")
        if record.request:
            await self._forget_request(f"upload.{tenant}.{record.request}", record.file_id)
        await self._depot.clear(tenant, record.place)
        with suppress(Overloaded):
            await self._depot.change_quota(tenant, lambda quota: quota.without(record.place))

    def _note(self, action: str, tenant: str, file_id: str) -> None:
        if self._acts is not None:
            self._acts.note(action, f"file/{file_id}", tenant)

    async def _forget_request(self, name: str, file_id: str) -> None:
        """A later upload of the same request makes a new file at once. One that did so already has the entry."""
        data, _ = await self._depot.entry(name)
        if data and orjson.loads(data).get("file") == file_id:
            await self._depot.drop_entry(name)

    async def _record(self, tenant: str, file_id: str) -> FileRecord | None:
        return await record_of(self._depot, tenant, file_id, self._clock())

    async def _page(self, tenant: str, request: ListFilesRequest) -> tuple[Sequence[str], bool]:
        """The identifiers of a page, and whether there are more."""
        names = await self._depot.names(f"file.{tenant}.*")
        ids = [name.rpartition(".")[2] for name in names]
        after = age_of(request.page_token) if request.page_token else ""
        ids = [
            each
            for each in ids
            if (not request.purpose or purpose_of(each) == request.purpose) and (not after or age_of(each) < after)
        ]
        ids.sort(key=age_of, reverse=True)
        size = request.page_size or _PAGE
        return ids[:size], len(ids) > size


def check_offset(file: FileRecord, offset: int) -> None:
    """Raises `InvalidRequest` for an offset beyond the end."""
    if offset > file.size:
        raise InvalidRequest(
            f"the file has {file.size} bytes",
            violations=[Violation("offset", f"is beyond the end: the file has {file.size} bytes")],
        )
