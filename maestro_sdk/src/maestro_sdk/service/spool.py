"""A queue of records on disk that survives the death of its process at any moment.

One file: a header with the place of the oldest record, then records as length, checksum and bytes. A record that was
torn by a death in the middle of writing is cut off at the next opening. Records are not synced to the disk one by one:
they outlive the process, and all but those of the last moments outlive the machine.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import BinaryIO, Self

_log = logging.getLogger(__name__)

_MAGIC = b"MSPOOL1\n"
_PLACE = struct.Struct("<Q")
_RECORD = struct.Struct("<II")
_BEGIN = len(_MAGIC) + _PLACE.size


class Spool:
    """The queue in the file `path`, `limit` bytes at most. One process owns it: a second one takes a file beside it."""

    def __init__(self, path: Path, limit: int) -> None:
        self._wanted = path
        self._limit = limit
        self._file: BinaryIO
        self._lock: BinaryIO
        self._head = self._end = _BEGIN
        self._count = 0
        self.path = path

    def __len__(self) -> int:
        """Records that wait."""
        return self._count

    def open(self) -> Self:
        """Opens or makes the file, and drops what was torn at its end."""
        self._wanted.parent.mkdir(parents=True, exist_ok=True)
        for number in range(1000):
            self.path = self._wanted if number == 0 else self._wanted.with_stem(f"{self._wanted.stem}-{number}")
            self._lock = self.path.with_suffix(".lock").open("ab")
            try:
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                self._lock.close()
        else:
            raise OSError(f"every spool beside {self._wanted} belongs to another process")
        self._file = os.fdopen(os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600), "r+b", buffering=0)
        self._recover()
        return self

    def close(self) -> None:
        """Closes the file; an empty one is removed."""
        if not self._count:
            self.path.unlink(missing_ok=True)
        self._file.close()
        self._lock.close()

    def append(self, records: Iterable[bytes]) -> int:
        """Adds records in order, as many as fit; returns their number."""
        chunk = bytearray()
        count = before = 0
        for record in records:
            size = _RECORD.size + len(record)
            if self._end + len(chunk) + size > self._limit:
                self._write(chunk, count)
                self._compact()
                chunk, count, before = bytearray(), 0, count + before
                if self._end + size > self._limit:
                    break
            chunk += _RECORD.pack(len(record), zlib.crc32(record)) + record
            count += 1
        self._write(chunk, count)
        return before + count

    def peek(self, most: int) -> list[bytes]:
        """The oldest records, `most` at most; they stay."""
        records: list[bytes] = []
        place = self._head
        data = os.pread(self._file.fileno(), min(self._end - place, most * 512 + 65536), place)
        while len(records) < most and place < self._end:
            record = _record_at(data, place - self._head)
            if record is None:
                # It is longer than what was read at once.
                data += os.pread(self._file.fileno(), self._end - self._head - len(data), self._head + len(data))
                record = _record_at(data, place - self._head)
                if record is None:
                    raise OSError(f"{self.path} was changed by somebody else")
            records.append(record)
            place += _RECORD.size + len(record)
        return records

    def drop(self, records: Iterable[bytes]) -> None:
        """Removes the oldest records, which must be what `peek` gave."""
        self.skip(len(record) for record in records)

    def skip(self, sizes: Iterable[int]) -> None:
        """Removes the oldest records, which must have these sizes."""
        for size in sizes:
            self._head += _RECORD.size + size
            self._count -= 1
        if not self._count:
            self._head = self._end = _BEGIN
            self._file.truncate(_BEGIN)
        self._write_head()

    def tidy(self, waste: int) -> None:
        """Frees what removed records take, where that is `waste` bytes or more and not less than what waits."""
        if self._head - _BEGIN >= max(waste, self._end - self._head):
            self._rewrite()

    def _recover(self) -> None:
        data = self._file.read()
        if data[: len(_MAGIC)] != _MAGIC or len(data) < _BEGIN:
            if data:
                aside = self.path.with_suffix(".unreadable")
                aside.write_bytes(data)
                _log.warning("%s is not a spool; what it held now stands in %s", self.path, aside)
            self._file.truncate(0)
            os.pwrite(self._file.fileno(), _MAGIC + _PLACE.pack(_BEGIN), 0)
            return
        (head,) = _PLACE.unpack_from(data, len(_MAGIC))
        self._head = place = head if _BEGIN <= head <= len(data) else _BEGIN
        while (record := _record_at(data, place)) is not None:
            place += _RECORD.size + len(record)
            self._count += 1
        self._end = place
        if place < len(data):
            _log.warning("%s: %d bytes at the end were torn and are dropped", self.path, len(data) - place)
            self._file.truncate(place)

    def _write(self, chunk: bytearray, count: int) -> None:
        if os.pwrite(self._file.fileno(), chunk, self._end) < len(chunk):
            # What is behind the end counts for nothing: the next write goes over it.
            raise OSError(f"{self.path} could not be written: the disk is full")
        self._end += len(chunk)
        self._count += count

    def _compact(self) -> None:
        """Moves the waiting records to the front when that frees at least half of the file."""
        if self._head - _BEGIN >= self._limit // 2:
            self._rewrite()

    def _rewrite(self) -> None:
        """Moves the waiting records to the front of a new file."""
        rest = os.pread(self._file.fileno(), self._end - self._head, self._head)
        fresh = self.path.with_suffix(".compact")
        fresh.write_bytes(_MAGIC + _PLACE.pack(_BEGIN) + rest)
        fresh.chmod(0o600)
        # The old file stays whole until the new one has its name.
        fresh.replace(self.path)
        self._file.close()
        self._file = self.path.open("r+b", buffering=0)
        self._head, self._end = _BEGIN, _BEGIN + len(rest)

    def _write_head(self) -> None:
        os.pwrite(self._file.fileno(), _PLACE.pack(self._head), len(_MAGIC))


def _record_at(data: bytes, place: int) -> bytes | None:
    """The record at `place`; None when it is not whole or not what was written."""
    start = place + _RECORD.size
    if start > len(data):
        return None
    size, checksum = _RECORD.unpack_from(data, place)
    record = data[start : start + size]
    if len(record) < size or zlib.crc32(record) != checksum:
        return None
    return record
