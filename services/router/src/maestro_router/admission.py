"""Adapters that announce themselves: who may join, who stands for a name, who is gone."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Awaitable, Callable, Coroutine
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Protocol

from maestro.router.v1 import router_pb2 as pb
from maestro_router.announced import Candidate, Malformed, Standing, choose, read
from maestro_router.catalogue import AdapterWatch, answers, settle
from maestro_router.compile import Adapter
from maestro_router.verdicts import Verdicts, prove_core
from maestro_sdk.adapter.announce import ANNOUNCE, BEAT, WHO
from maestro_sdk.service.bus import Client, Link
from maestro_sdk.service.peer import NOBODY, Peer
from maestro_sdk.service.settings import Config

log = logging.getLogger(__name__)

Prove = Callable[[Adapter], Awaitable[str]]
"""Proves an adapter; gives what is wrong, "" for nothing."""

_LOOK = 0.5
"""Seconds between two looks at who was not heard."""
_SILENT = 13
"""Looks without an announcement after which an adapter is silent: three beats, and a bit for their way."""
_MOST = 100
"""Processes that may be known by announcement."""
_MOST_OF_NAME = 8
"""Processes that may share a name."""
_RETRY = 600.0
"""Seconds after which a refused adapter is verified again; a new instance of it is at once."""
_MOST_RUNS = 5
"""Verifications of one name within `_RETRY`: each costs model calls, and an adapter may crash and start for ever."""
_ANSWER = 0.2
"""Seconds within which those who are there answer the question who is."""
_COMPLAINTS = 60.0
"""Seconds within which malformed messages make one line of the log."""


class Board(Protocol):
    """Where adapters are shown."""

    def see(self, adapter: Adapter) -> None:
        """Takes a new view of an adapter."""
        ...

    def forget(self, name: str) -> None:
        """Takes an adapter away."""
        ...


class Admission:
    """Follows the announcements and shows on the board whom `router.admission` lets in."""

    def __init__(
        self, config: Config, board: Board, prove: Prove | None = None, look: float = _LOOK, peer: Peer = NOBODY
    ) -> None:
        """`look` is the time in seconds between two looks at who was not heard; the 14th in a row is one too many.
        `peer` is what adapters are shown.
        """
        self._mode = config.router.admission
        self._configured = frozenset(config.adapters)
        self._refresh = config.router.refresh
        self._board = board
        self._peer = peer
        self._prove = prove if prove is not None else partial(prove_core, peer=peer)
        self._pause = look
        self._verdicts = Verdicts(config.data / "router" / "verdicts.json")
        self._link = Link(config.nats.url, "router admission", lambda: None)
        self._listening: Client | None = None
        """The client that listens to announcements: it goes on doing so when its connection comes back."""
        self._candidates: dict[str, list[Candidate]] = {}
        """Those of a name, longest known first."""
        self._current: dict[str, Candidate] = {}
        """Who stands for a name."""
        self._shown: dict[str, Adapter] = {}
        self._asked = asyncio.Event()
        """Set once it was asked who is there."""
        self._watches: dict[Candidate, AdapterWatch] = {}
        self._tasks: dict[Candidate, list[asyncio.Task[None]]] = {}
        self._runs: dict[str, deque[float]] = {}
        """Times at which verifications of a name began."""
        self._verifying = asyncio.Semaphore(1)
        self._told: set[str] = set()
        """Names about which the log said why they can't join."""
        self._complained = 0.0
        self._group: asyncio.TaskGroup | None = None

    async def run(self) -> None:
        """Follows until cancelled."""
        async with asyncio.TaskGroup() as group:
            self._group = group
            group.create_task(self._link.keep(self._prepare))
            while True:
                await asyncio.sleep(self._pause)
                # While NATS is away nobody can be heard: that says nothing about them.
                if self._link.up:
                    self._look(time.time())

    async def settle(self, timeout: float) -> None:
        """Waits until those who are there have answered and it is known how they are, at most `timeout` seconds."""
        if self._mode == "configured":
            return
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                await self._asked.wait()
                await asyncio.sleep(_ANSWER)
                await settle(list(self._watches.values()), timeout)

    async def _prepare(self, client: Client) -> None:
        if client is not self._listening:
            await client.subscribe(ANNOUNCE, cb=self._on_message)
            self._listening = client
        for candidate in self._all():
            candidate.missed = 0
        await client.publish(WHO, b"")
        self._asked.set()

    async def _on_message(self, message: Any) -> None:
        try:
            self.hear(message.data, time.time())
        except Exception:  # the client of NATS would swallow it
            log.exception("an announcement was not taken")

    def hear(self, data: bytes, now: float) -> None:
        """Takes a message of the subject of announcements; whatever it holds, it does no harm. `now` is Unix time."""
        try:
            announcement = read(data)
        except Malformed as error:
            if now - self._complained >= _COMPLAINTS:
                self._complained = now
                log.warning("an announcement is ignored: %s; further ones for %g s, too", error, _COMPLAINTS)
            return
        found = next((each for each in self._of(announcement.name) if each.address == announcement.address), None)
        if announcement.leaving:
            # A goodbye of an earlier process at this address is none of the present one.
            if found is not None and found.instance == announcement.instance:
                self._drop(found, "draining")
        elif found is not None and found.instance == announcement.instance:
            found.heard, found.missed = now, 0
        elif self._may_join(announcement, found):
            self._join(announcement, found, now)

    def _may_join(self, announcement: pb.AdapterAnnouncement, before: Candidate | None) -> bool:
        name, address = announcement.name, announcement.address
        if name in self._configured:
            return self._decline(name, f"announces itself at {address}: the configuration has that name, and wins")
        if self._mode == "configured":
            how = "set router.admission to `verified`, or name it under `adapters` of the configuration"
            return self._decline(name, f"announces itself at {address} and is not admitted: {how}")
        if before is not None:
            return True
        if len(self._all()) >= _MOST:
            return self._decline(name, f"can't join: {_MOST} adapters are known by announcement already")
        if len(self._of(name)) >= _MOST_OF_NAME:
            return self._decline(name, f"can't join at {address}: {_MOST_OF_NAME} processes have that name already")
        return True

    def _decline(self, name: str, why: str) -> bool:
        if name not in self._told and len(self._told) < _MOST:
            self._told.add(name)
            log.warning("adapter %s %s", name, why)
        return False

    def _join(self, announcement: pb.AdapterAnnouncement, before: Candidate | None, now: float) -> None:
        name, address = announcement.name, announcement.address
        view = Adapter(name, address, announced=True, regions=tuple(announcement.regions))
        if before is not None:
            # Its models stay as they were last seen until the new process was read.
            known = before.view
            view = replace(view, version=known.version, providers=known.providers, models=known.models)
        standing = Standing.ADMITTED if self._mode == "announced" else Standing.WAITING
        candidate = Candidate(name, address, announcement.instance, view, standing, heard=now)
        among = self._candidates.setdefault(name, [])
        if before is None:
            among.append(candidate)
            self._show(name)
            if self._current[name] is not candidate:
                log.info("adapter %s at %s stands by: %s has the name", name, address, self._current[name].address)
        else:
            log.info("adapter %s at %s was started anew", name, address)
            self._stop(before)
            among[among.index(before)] = candidate
            if self._current[name] is before:
                # The table shows the one before until the first view of this one: a quick restart leaves no gap.
                self._current[name] = candidate
        watch = AdapterWatch(view, self._refresh, lambda fresh: self._see(candidate, fresh), self._peer)
        self._watches[candidate] = watch
        self._start(candidate, watch.run())

    def _see(self, candidate: Candidate, view: Adapter) -> None:
        """Takes what the watch of a candidate saw."""
        if view.state == pb.ADAPTER_STATE_SERVING != candidate.view.state:
            candidate.back = time.time()
        candidate.view = view
        self._consider(candidate, time.time())
        self._show(candidate.name)

    def _consider(self, candidate: Candidate, now: float) -> None:
        """Has one proven that serves, and admits it at once where it was proven in an earlier life."""
        if candidate.view.state != pb.ADAPTER_STATE_SERVING or candidate.standing is not Standing.WAITING:
            return
        known = self._verdicts.instance(candidate.view)
        if known is not None:
            candidate.standing = Standing.ADMITTED
            if known == candidate.instance:
                return
        runs = self._runs.setdefault(candidate.name, deque())
        while runs and now - runs[0] >= _RETRY:
            runs.popleft()
        if len(runs) < _MOST_RUNS:
            runs.append(now)
            if known is None:
                candidate.standing = Standing.VERIFYING
                candidate.note = "the core of the conformance suite is being run against it"
            self._start(candidate, self._verify(candidate))
        elif known is None:
            candidate.standing, candidate.retry = Standing.REFUSED, runs[0] + _RETRY
            candidate.note = (
                f"it was verified {len(runs)} times within {_RETRY / 60:g} minutes; the next time is "
                f"{_clock(candidate.retry)}"
            )

    async def _verify(self, candidate: Candidate) -> None:
        async with self._verifying:
            view = candidate.view
            log.info("adapter %s at %s is being verified", view.name, view.address)
            try:
                wrong = await self._prove(view)
            except Exception as error:  # noqa: BLE001 - whatever a strange adapter brings about: it is not admitted
                wrong = f"the proof ended with {type(error).__name__}"
        if not wrong:
            self._verdicts.keep(view, candidate.instance)
            candidate.standing, candidate.note = Standing.ADMITTED, ""
            log.info("adapter %s at %s is admitted: it keeps the core of the contract", view.name, view.address)
        elif candidate.view.state == pb.ADAPTER_STATE_SERVING:
            self._verdicts.drop(view)
            candidate.retry = time.time() + _RETRY
            more = f"`maestro conformance {view.address}` shows all"
            candidate.note = f"{wrong}; {more}; it is tried again when it is started anew, or {_clock(candidate.retry)}"
            candidate.standing = Standing.REFUSED
            log.warning("adapter %s at %s is refused: %s", view.name, view.address, candidate.note)
        else:
            # It went away meanwhile: that is no verdict.
            candidate.standing = Standing.WAITING
        self._show(candidate.name)

    def _look(self, now: float) -> None:
        """Takes away who fell silent, and gives those refused another try."""
        for candidate in self._all():
            candidate.missed += 1
            if candidate.missed > _SILENT:
                candidate.missed = 0
                self._miss(candidate)
            elif candidate.standing is Standing.REFUSED and now >= candidate.retry:
                candidate.standing = Standing.WAITING
                self._consider(candidate, now)
                self._show(candidate.name)
        for name in [name for name, runs in self._runs.items() if now - runs[-1] >= _RETRY]:
            del self._runs[name]

    def _miss(self, candidate: Candidate) -> None:
        view = candidate.view
        # Its own clock may be ahead of this one, and a watch may notice late that it serves: the earlier time counts.
        if view.state == pb.ADAPTER_STATE_SERVING and min(view.since, candidate.back) <= candidate.heard + BEAT:
            # It never went away as far as its health tells: perhaps only its way to NATS is cut.
            self._start(candidate, self._ask(candidate))
        else:
            self._drop(candidate, "it fell silent")

    async def _ask(self, candidate: Candidate) -> None:
        if not await answers(candidate.address, peer=self._peer):
            self._drop(candidate, "it fell silent, and does not answer")

    def _drop(self, candidate: Candidate, why: str) -> None:
        name = candidate.name
        log.info("adapter %s at %s left: %s", name, candidate.address, why)
        self._stop(candidate)
        among = self._candidates[name]
        among.remove(candidate)
        if not among:
            del self._candidates[name]
        if self._current.get(name) is candidate:
            # Seen as down first, so that the event tells why it left.
            self._board.see(replace(self._shown[name], state=pb.ADAPTER_STATE_DOWN, reason=why, since=0.0))
        self._show(name)

    def _show(self, name: str) -> None:
        """Shows on the board who stands for a name, as far as it is admitted."""
        chosen = choose(self._of(name), self._current.get(name))
        last = self._shown.get(name)
        if chosen is None:
            if last is not None:
                del self._shown[name], self._current[name]
                self._board.forget(name)
            return
        self._current[name] = chosen
        fresh = chosen.shown()
        if last is not None and last.address != fresh.address:
            log.info("adapter %s at %s takes over from %s", name, fresh.address, last.address)
            # Another process: what breakers know of the one before says nothing about it.
            self._board.forget(name)
        if fresh != last:
            self._shown[name] = fresh
            self._board.see(fresh)

    def _of(self, name: str) -> list[Candidate]:
        return self._candidates.get(name, [])

    def _all(self) -> list[Candidate]:
        return [candidate for among in self._candidates.values() for candidate in among]

    def _start(self, candidate: Candidate, work: Coroutine[Any, Any, None]) -> None:
        if self._group is None:
            raise RuntimeError("announcements are heard only while `run` runs")
        tasks = self._tasks.setdefault(candidate, [])
        tasks[:] = [task for task in tasks if not task.done()]
        tasks.append(self._group.create_task(work, name=f"announced {candidate.name}"))

    def _stop(self, candidate: Candidate) -> None:
        del self._watches[candidate]
        for task in self._tasks.pop(candidate, ()):
            task.cancel()


def _clock(when: float) -> str:
    return f"at {datetime.fromtimestamp(when, UTC):%H:%M} UTC"
