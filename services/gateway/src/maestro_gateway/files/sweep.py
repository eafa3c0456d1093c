"""Sweeps away what has expired, and what uploads and deletions left behind whose gateway died."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

import orjson

from maestro_gateway.files.depot import Depot
from maestro_gateway.files.files import Files
from maestro_gateway.files.quota import Quota
from maestro_gateway.files.record import FileRecord
from maestro_sdk.errors import MaestroError, Overloaded

log = logging.getLogger(__name__)

PAUSE = 60.0
"""Seconds between two sweeps, by whichever gateway comes first."""
_TURN = "sweep"
_REQUESTS_KEPT = 86400.0
"""Seconds for which a request is known after its file has gone, so that it is harmless when repeated."""
_AT_ONCE = 16

Kind = TypeVar("Kind")


@dataclass(frozen=True, slots=True)
class Rest:
    """What is to be done for a tenant: files that are over, places without a file, and what is used in truth."""

    over: Sequence[FileRecord]
    lost: Sequence[str]
    quota: Quota


def judge(quota: Quota, files: Sequence[FileRecord], places: Iterable[str], now: float) -> Rest:
    """What is left to do. `places` were read first, then `quota`, then `files`: so none that is under way is lost."""
    kept = {record.place for record in files}
    held = {place for place, (size, until) in quota.open.items() if size and until > now}
    lost = [*(set(places) - kept - held), *(set(quota.open) - kept - held - set(places))]
    size = sum(record.size for record in files)
    return Rest(
        over=[record for record in files if record.is_over(int(now * 1e6))],
        lost=lost,
        # A place that is a file already was about to be counted, by a gateway that may have died.
        quota=quota.without(*kept, *lost).corrected(size, len(files)),
    )


class Sweeper:
    """Looks through the bucket in turns with those of other gateways. `clock` tells Unix time."""

    def __init__(
        self, depot: Depot, files: Files, *, pause: float = PAUSE, clock: Callable[[], float] = time.time
    ) -> None:
        self._depot = depot
        self._files = files
        self._pause = pause
        self._clock = clock
        # What was read before: entries never change, they only go.
        self._known: dict[str, Any] = {}

    async def run(self) -> None:
        """Sweeps until cancelled."""
        while True:
            # Noise spreads gateways that were started together; it keeps no secret.
            await asyncio.sleep(self._pause * random.uniform(0.5, 1.0))  # noqa: S311
            try:
                if await self.take_turn():
                    await self.sweep()
            except (MaestroError, LookupError) as error:
                log.debug("files are swept later: %s", error)

    async def sweep(self) -> None:
        """Looks at every tenant once."""
        known, self._known = self._known, {}
        for name in await self._depot.names("quota.*"):
            await self._sweep_tenant(name.partition(".")[2], known)

    async def take_turn(self) -> bool:
        """Whether it is this gateway that sweeps now."""
        data, revision = await self._depot.entry(_TURN)
        now = self._clock()
        if data and now < float(data) + self._pause / 2:
            return False
        try:
            return await self._depot.put_entry(_TURN, b"%.3f" % now, revision)
        except Overloaded:
            # Room comes from sweeping; that two sweep at once does no harm.
            return True

    async def _sweep_tenant(self, tenant: str, known: dict[str, Any]) -> None:
        now = self._clock()
        places = await self._depot.places(tenant)
        data, revision = await self._depot.entry(f"quota.{tenant}")
        if not data:
            return
        quota = Quota.decode(data)
        files = await self._read(await self._depot.names(f"file.{tenant}.*"), FileRecord.decode, known)
        rest = judge(quota, list(files.values()), places, now)
        for place in rest.lost:
            await self._depot.clear(tenant, place)
        if rest.quota != quota:
            # When it was changed meanwhile the next sweep corrects it.
            with suppress(Overloaded):
                await self._depot.put_entry(f"quota.{tenant}", rest.quota.encode(), revision)
        for record in rest.over:
            await self._files.drop(tenant, record)
        if rest.over or rest.lost:
            log.info("files of %s: %d expired, %d left behind", tenant, len(rest.over), len(rest.lost))
        await self._forget_requests(tenant, {record.file_id for record in files.values()}, known)

    async def _forget_requests(self, tenant: str, ids: set[str], known: dict[str, Any]) -> None:
        for kind in ("upload", "deletion"):
            names = await self._depot.names(f"{kind}.{tenant}.*")
            for name, made in (await self._read(names, orjson.loads, known)).items():
                if made.get("file") not in ids and self._clock() > made["time"] + _REQUESTS_KEPT:
                    await self._depot.drop_entry(name)

    async def _read(
        self, names: Sequence[str], decode: Callable[[bytes], Kind], known: dict[str, Any]
    ) -> dict[str, Kind]:
        async def read(name: str) -> None:
            data, _ = await self._depot.entry(name)
            if data:
                known[name] = decode(data)

        unknown = [name for name in names if name not in known]
        for start in range(0, len(unknown), _AT_ONCE):
            await asyncio.gather(*(read(name) for name in unknown[start : start + _AT_ONCE]))
        found = {name: known[name] for name in names if name in known}
        self._known |= found
        return found
