"""The last route table in a file, so that a process that starts without a router goes on with it."""

from __future__ import annotations

import hashlib
import logging
import os
from contextlib import suppress
from pathlib import Path

from google.protobuf.message import DecodeError

from maestro.router.v1.router_pb2 import RouteTable

log = logging.getLogger(__name__)

_SAVE_INTERVAL = 1.0
_TOUCH_INTERVAL = 10.0
_DIGEST_SIZE = 16


class Snapshot:
    """Keeps the newest table at a path, behind a digest of it. The file's time is about that of a router's last sign.

    A file that can't be read or written is told in the log and hurts nobody.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._waiting: RouteTable | None = None
        self._failed = False
        """Whether the last try to write failed; only the first of several is told."""
        self._saved = 0.0
        self._touched = 0.0

    def load(self) -> tuple[RouteTable, float] | None:
        """The table and the Unix time at which it was still renewed; None when there is none."""
        try:
            data, renewed = self._path.read_bytes(), self._path.stat().st_mtime
            digest, table = data[:_DIGEST_SIZE], data[_DIGEST_SIZE:]
            # Half of a table may be a valid one that lacks just the rules that stood at its end.
            if digest != _digest(table):
                raise DecodeError("it is not whole")
            return RouteTable.FromString(table), renewed
        except FileNotFoundError:
            return None
        except (DecodeError, OSError) as error:
            log.warning("the snapshot of the route table can't be read and is ignored: %s", error)
            return None

    def keep(self, table: RouteTable, now: float) -> None:
        """Takes a new table. Tables that follow each other within a second are written once."""
        self._waiting = table
        self.confirm(now)

    def confirm(self, now: float) -> None:
        """A router still stands behind the table: writes what waits, and from time to time that it is true."""
        if self._waiting is not None:
            if not 0.0 <= now - self._saved < _SAVE_INTERVAL:
                self.flush(now)
        elif not 0.0 <= now - self._touched < _TOUCH_INTERVAL:
            self._touched = now
            with suppress(OSError):
                os.utime(self._path)

    def flush(self, now: float) -> None:
        """Writes what waits. Where that can't be it goes on waiting."""
        if self._waiting is None:
            return
        self._saved = now
        fresh = self._path.with_suffix(".new")
        table = self._waiting.SerializeToString()
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_bytes(_digest(table) + table)
            fresh.replace(self._path)
        except OSError as error:
            if not self._failed:
                log.warning("the route table can't be kept in %s: %s", self._path, error)
            self._failed = True
        else:
            self._waiting, self._failed = None, False
            self._touched = now


def _digest(table: bytes) -> bytes:
    return hashlib.blake2b(table, digest_size=_DIGEST_SIZE).digest()
