"""One upload on its way: pieces go to the depot as they come, and become a file when all are there and good."""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
from collections.abc import Callable

import orjson

from maestro.llm.v1.file_pb2 import File, FileHeader
from maestro_gateway.files.depot import Depot
from maestro_gateway.files.media import LOOK, check_start, check_type
from maestro_gateway.files.quota import Quota
from maestro_gateway.files.record import FileRecord, digest_of, is_file_id, new_file_id
from maestro_sdk.adapter.uploads import check_whole, complete_header
from maestro_sdk.errors import Conflict, InvalidRequest, MaestroError, TooLarge
from maestro_sdk.service.files import FilesConfig

log = logging.getLogger(__name__)

LEASE = 60.0
"""Seconds for which a place is held without a word: a gateway that died lets go of it."""
_RENEW = 15.0
_STEP = 32 * 2**20
"""Bytes that an upload of unknown size reserves in advance, at most."""
_OTHERS = 3.0
"""Seconds that another upload of the same request has to put its file on the list."""
_LOOKS = 0.1


class Upload:
    """Holds two pieces in memory at most. Times are Unix time, of `clock`."""

    def __init__(
        self,
        depot: Depot,
        tenant: str,
        limits: FilesConfig,
        clock: Callable[[], float],
        note: Callable[[str], None] | None = None,
    ) -> None:
        """`note` is told the identifier of the file, once it is one."""
        self._note = note
        self._depot = depot
        self._tenant = tenant
        self._limits = limits
        self._clock = clock
        self._place = secrets.token_hex(12)
        self._piece = depot.piece
        self._digest = hashlib.sha256()
        self._buffer = bytearray()
        self._start = b""
        self._size = 0
        self._written = 0
        self._room = 0
        self._renewed = 0.0
        self._flight: asyncio.Task[None] | None = None
        self._leaving: asyncio.Task[None] | None = None
        self._entry = ""
        """Where it may be listed as a file."""
        self._kept = False
        self.ended: list[Callable[[], None]] = []
        """Called once nothing of it is under way any more."""

    @property
    def size(self) -> int:
        """Bytes that came so far."""
        return self._size

    async def open(self, size: int | None) -> None:
        """Takes a place before the first byte. Raises `TooLarge` and `Overloaded`."""
        try:
            self._check_size(size or 0)
            await self._reserve(max(1, size or 0))
        except BaseException:
            await self.abandon()
            raise

    async def write(self, data: bytes) -> None:
        """Takes the next bytes, no faster than they are stored. Raises `TooLarge`."""
        self._size += len(data)
        self._check_size(self._size)
        self._buffer += data
        while len(self._buffer) >= self._piece:
            piece = bytes(memoryview(self._buffer)[: self._piece])
            del self._buffer[: self._piece]
            await self._flush(piece)

    async def finish(self, header: FileHeader) -> File:
        """Keeps the file; or the one that the same request made before. Raises what is wrong with it."""
        complete_header(header)
        check_type(header.mime_type, header.purpose, self._limits.types)
        if self._buffer:
            await self._flush(bytes(self._buffer))
            self._buffer.clear()
        check_start(header.mime_type, self._start)
        check_whole(header, self._size, self._digest.hexdigest())
        if self._flight is not None:
            await self._flight
        record = self._record(header)
        # From here on it has a minute to become a file.
        await self._hold(lambda quota, until: quota.renew(self._place, until))
        request = f"upload.{self._tenant}.{record.request}" if record.request else ""
        if request and (other := await self._claim(request, record.file_id)) is not None:
            await self.abandon()
            return other.message()
        self._entry = f"file.{self._tenant}.{record.file_id}"
        await self._depot.put_entry(self._entry, record.encode(), 0)
        if request:
            await self._check_claim(request, record.file_id)
        self._kept = True
        if self._note is not None:
            self._note(record.file_id)
        try:
            await self._depot.change_quota(self._tenant, lambda quota: quota.settle(self._place, self._size))
        except MaestroError as error:
            # Whoever sweeps counts it anew.
            log.warning("the room of a file is counted later: %s", error)
        finally:
            self._end()
        return record.message()

    async def abandon(self) -> None:
        """Keeps nothing. Whoever calls may have been cancelled; what NATS can't drop now is swept away later."""
        if self._kept:
            return
        if self._leaving is None:
            self._leaving = asyncio.create_task(self._leave(), name="drop an upload")
        await asyncio.wait((self._leaving,))

    async def _leave(self) -> None:
        try:
            if self._flight is not None:
                # Not cancelled: NATS may store what was sent after it has dropped the rest.
                await asyncio.wait((self._flight,))
                if not self._flight.cancelled():
                    self._flight.exception()
            if self._entry:
                # Whether it was stored is not known. No file is listed without its bytes, so this comes first.
                await self._depot.drop_entry(self._entry)
            if self._room:
                await self._depot.clear(self._tenant, self._place)
                await self._depot.change_quota(self._tenant, lambda quota: quota.without(self._place))
        except MaestroError as error:
            log.warning("an upload that was given up is left to be swept away: %s", error)
        finally:
            self._end()

    def _end(self) -> None:
        for tell in self.ended:
            tell()

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_file:
            raise TooLarge(f"the file has more than the {self._limits.max_file} bytes that are allowed")

    async def _flush(self, piece: bytes) -> None:
        if not self._start:
            self._start = piece[:LOOK]
        self._digest.update(piece)
        await self._make_room()
        if self._flight is not None:
            await self._flight
        number, self._written = self._written, self._written + 1
        self._flight = asyncio.create_task(self._depot.put_piece(self._tenant, self._place, number, piece))

    async def _make_room(self) -> None:
        if self._size > self._room:
            try:
                await self._reserve(min(self._size + min(self._size, _STEP), self._limits.max_file))
            except TooLarge:
                # There may be room for the file, if not for what it could be.
                await self._reserve(self._size)
        elif self._clock() - self._renewed > _RENEW:
            await self._hold(lambda quota, until: quota.renew(self._place, until))

    async def _reserve(self, size: int) -> None:
        now = self._clock()
        # Once it is asked for it may be there, whatever the answer is.
        asked, self._room = self._room, self._room or 1
        await self._hold(lambda quota, until: quota.reserve(self._place, size, until, self._limits, now, new=not asked))
        self._room = size

    async def _hold(self, make: Callable[[Quota, float], Quota]) -> None:
        now = self._clock()
        await self._depot.change_quota(self._tenant, lambda quota: make(quota, now + LEASE))
        self._renewed = now

    def _record(self, header: FileHeader) -> FileRecord:
        now = self._clock()
        lasting = self._limits.expire_after
        if header.HasField("expire_after"):
            lasting = header.expire_after.ToNanoseconds() / 1e9
            if lasting > self._limits.expire_after:
                raise InvalidRequest.at(
                    "header.expire_after", f"files are kept for {self._limits.expire_after:.0f} seconds at most"
                )
        created = int(now * 1e6)
        return FileRecord(
            file_id=new_file_id(header.purpose, created),
            filename=header.filename,
            mime_type=header.mime_type,
            purpose=header.purpose,
            size=self._size,
            sha256=self._digest.hexdigest(),
            created=created,
            expires=created + int(lasting * 1e6),
            place=self._place,
            piece=self._piece,
            metadata=dict(header.metadata),
            request=digest_of(header.request_id) if header.request_id else "",
        )

    async def _claim(self, request: str, file_id: str) -> FileRecord | None:
        """The file that the request made before; None when it is this upload that makes it."""
        end = self._clock() + _OTHERS
        while True:
            data, revision = await self._depot.entry(request)
            if data:
                found = await record_of(self._depot, self._tenant, _file_of(data), self._clock())
                if found is not None:
                    return found
                if self._clock() < min(end, _time_of(data) + _OTHERS):
                    # Another upload is about to write it, or has died.
                    await asyncio.sleep(_LOOKS)
                    continue
            entry = orjson.dumps({"file": file_id, "time": self._clock()})
            if await self._depot.put_entry(request, entry, revision):
                return None

    async def _check_claim(self, request: str, file_id: str) -> None:
        """Raises `Conflict` when another upload of the same request lost patience with this one and went first."""
        data, _ = await self._depot.entry(request)
        if not data or _file_of(data) != file_id:
            raise Conflict("another upload with the same request_id is under way; try again", retryable=True)


async def record_of(depot: Depot, tenant: str, file_id: str, now: float) -> FileRecord | None:
    """The record of a file that has not expired at the Unix time `now`."""
    if not is_file_id(file_id):
        return None
    data, _ = await depot.entry(f"file.{tenant}.{file_id}")
    record = FileRecord.decode(data) if data else None
    return None if record is None or record.is_over(int(now * 1e6)) else record


async def earlier(depot: Depot, tenant: str, request_id: str, now: float) -> File | None:
    """The file that a request made already."""
    data, _ = await depot.entry(f"upload.{tenant}.{digest_of(request_id)}")
    record = await record_of(depot, tenant, _file_of(data), now) if data else None
    return None if record is None else record.message()


def _file_of(entry: bytes) -> str:
    return str(orjson.loads(entry)["file"])


def _time_of(entry: bytes) -> float:
    return float(orjson.loads(entry)["time"])
