"""What a process holds, on its disk: should it die, its next life tells what nobody else knows of.

One file of entries: length of the id, length of the record, checksum, id, record. An entry without a record ends those
before it. What was torn by a death in the middle of writing is the end of the file.
"""

from __future__ import annotations

import fcntl
import logging
import os
import struct
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path

_log = logging.getLogger(__name__)

_HEAD = struct.Struct("<HII")
_LIMIT = 8 * 2**20
_IDLE = 2**16
"""Bytes that may stay when nothing is open: emptying a file costs more than writing to it."""


class HoldJournal:
    """Records by id in the file `path`, which one process owns: another one keeps none."""

    def __init__(self, path: Path, limit: int = _LIMIT) -> None:
        """Above `limit` bytes the file is written anew, without what has ended."""
        self._path = path
        self._limit = limit
        self._file = -1
        self._size = 0
        self._open: dict[str, bytes] = {}

    def open(self) -> dict[str, bytes]:
        """Begins; gives what the life before left, which stays until it is ended."""
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._file = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o600)
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            _log.warning("%s is not used: %s; requests under way are lost should this process die", self._path, error)
            self.close()
            return {}
        for name, record in _entries(os.pread(self._file, os.fstat(self._file).st_size, 0)):
            if record:
                self._open[name] = record
            else:
                self._open.pop(name, None)
        self._compact()
        return dict(self._open)

    def close(self) -> None:
        """Ends; what is open stays in the file."""
        if self._file >= 0:
            os.close(self._file)
        self._file = -1

    def put(self, name: str, record: bytes) -> None:
        """Writes what is to be told of `name`, in the place of what was written before."""
        if record:
            self._open[name] = record
            self._write([(name, record)])

    def end(self, names: Iterable[str]) -> None:
        """Nothing is to be told of these any more."""
        ended = [(name, b"") for name in names if self._open.pop(name, None) is not None]
        if ended:
            self._write(ended)
        if self._size > (self._limit if self._open else min(self._limit, _IDLE)):
            self._compact()

    def _write(self, entries: Iterable[tuple[str, bytes]]) -> None:
        if self._file < 0:
            return
        data = b"".join(_entry(name, record) for name, record in entries)
        try:
            # What is behind the end counts for nothing: the next one goes over it.
            if os.pwrite(self._file, data, self._size) == len(data):
                self._size += len(data)
                return
            reason = "the disk is full"
        except OSError as error:
            reason = str(error)
        _log.error("%s can't be written: %s", self._path, reason)

    def _compact(self) -> None:
        """Leaves only what is open. A death at any moment loses nothing of that."""
        if self._file < 0:
            return
        try:
            if not self._open:
                os.ftruncate(self._file, 0)
                self._size = 0
            else:
                self._rewrite()
        except OSError as error:
            _log.error("%s can't be written: %s", self._path, error)

    def _rewrite(self) -> None:
        """Puts a new file in the place of the old one."""
        fresh = self._path.with_suffix(".compact")
        data = b"".join(_entry(name, record) for name, record in self._open.items())
        file = os.open(fresh, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.pwrite(file, data, 0) < len(data):
                raise OSError("the disk is full")
            fresh.replace(self._path)
        except OSError:
            os.close(file)
            raise
        os.close(self._file)
        self._file, self._size = file, len(data)


def _entry(name: str, record: bytes) -> bytes:
    encoded = name.encode()
    return _HEAD.pack(len(encoded), len(record), zlib.crc32(record, zlib.crc32(encoded))) + encoded + record


def _entries(data: bytes) -> Iterator[tuple[str, bytes]]:
    place = 0
    while place + _HEAD.size <= len(data):
        length, size, checksum = _HEAD.unpack_from(data, place)
        start = place + _HEAD.size
        name, record = data[start : start + length], data[start + length : start + length + size]
        if len(record) < size or zlib.crc32(record, zlib.crc32(name)) != checksum:
            return
        yield name.decode(), record
        place = start + length + size
