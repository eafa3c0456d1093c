"""Events that outlive the process from the moment of their publication, on its disk until they are safe elsewhere.

Each is one write to a file and no sync: it survives the death of the process, not that of the machine.
"""

from __future__ import annotations

import logging
from collections import deque
from pathlib import Path

from maestro_sdk.service.spool import Spool

_log = logging.getLogger(__name__)

_LIMIT = 32 * 2**20
_WASTE = 2**20
"""Bytes of what is safe that may lie at the front of the file."""


class EventJournal:
    """Records in the file `path`, of which the oldest are `release`d as soon as they are safe.

    Records have numbers that grow. The file is emptied whenever all is safe, and holds `limit` bytes at most.
    """

    def __init__(self, path: Path, limit: int = _LIMIT) -> None:
        self._spool = Spool(path, limit)
        self._held: deque[tuple[int, int]] = deque()
        self._missed = 0

    @property
    def missed(self) -> int:
        """How many the disk did not take: a death of the process takes them, unless they are safe by then."""
        return self._missed

    def open(self) -> list[bytes]:
        """Opens or makes the file; gives what an earlier life left, which has the numbers from 1 on."""
        self._spool.open()
        left = self._spool.peek(len(self._spool))
        self._held.extend((number, len(record)) for number, record in enumerate(left, 1))
        return left

    def close(self) -> None:
        """Closes the file; what was not released stays in it for the next life."""
        self._spool.close()

    def put(self, number: int, record: bytes) -> None:
        """Writes a record. Never raises: what can't be written is counted."""
        try:
            if self._spool.append((record,)):
                self._held.append((number, len(record)))
                return
            reason = "it is full"
        except OSError as error:
            reason = str(error)
        if not self._missed:
            _log.error("%s can't be written: %s; a death of this process takes events (told once)", self.path, reason)
        self._missed += 1

    def release(self, number: int) -> None:
        """All up to this number are safe elsewhere."""
        sizes: list[int] = []
        while self._held and self._held[0][0] <= number:
            sizes.append(self._held.popleft()[1])
        if sizes:
            try:
                self._spool.skip(sizes)
                self._spool.tidy(_WASTE)
            except OSError as error:
                # They come again with the next life, and readers know them by their ids.
                _log.warning("%s can't be shortened: %s", self.path, error)

    @property
    def path(self) -> Path:
        """Where the file is."""
        return self._spool.path
