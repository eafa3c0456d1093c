"""The state behind the table: adapters, breakers, operators' wishes; every change of it makes a new version."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterable
from dataclasses import replace

from google.protobuf.message import Message

from maestro.router.v1 import router_pb2 as pb
from maestro_router import notices
from maestro_router.compile import Adapter, compile_routes
from maestro_router.conditions import Conditions
from maestro_router.marks import Mark
from maestro_sdk.errors import NotFound
from maestro_sdk.mesh.breaker import BreakerPolicy
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.table import Table, compile_table
from maestro_sdk.service.settings import Config

_HEADROOM_PAUSE = 1.0
"""Seconds between two tables that only tell headroom."""


class Board:
    """Holds the table in force; `newer_than` waits for the next one."""

    def __init__(self, config: Config, publish: Callable[[str, Message], None]) -> None:
        """`publish` takes subject and payload of a lifecycle event."""
        self._config = config
        self._publish = publish
        self._policy = BreakerPolicy(**config.router.breaker.model_dump())
        self._adapters: dict[str, Adapter] = {}
        self._since: dict[str, float] = {}
        self._conditions = Conditions(os.urandom(6).hex(), self._policy, config.router.quarantine)
        self._timer: asyncio.TimerHandle | None = None
        self._next = asyncio.Event()
        # Versions grow across restarts of the router, so that a subscriber can tell old from new.
        self._version = int(time.time() * 1000)
        self._built = 0.0
        self.share: Callable[[list[Mark]], None] | None = None
        """Takes what other routers have to know."""
        self.attempts: dict[tuple[str, str], int] = {}
        """Attempts that were reported, by backend and reason of the failure; "" for success."""
        self.local = LocalState()
        self.message = pb.RouteTable()
        self.table: Table = compile_table(self.message)
        self.rebuild()

    def configure(self, config: Config) -> None:
        """Takes a new configuration of routes, aliases, breakers and pins, all at once."""
        self._config = config
        self._policy = BreakerPolicy(**config.router.breaker.model_dump())
        self._conditions.configure(self._policy, config.router.quarantine)
        self.rebuild()

    def adapters(self) -> list[Adapter]:
        """The adapters, ordered by name."""
        return [self._adapters[name] for name in sorted(self._adapters)]

    async def newer_than(self, version: int) -> pb.RouteTable:
        """The table in force, as soon as its version is greater than `version`."""
        while self.message.version <= version:
            await self._next.wait()
        return self.message

    def see(self, adapter: Adapter) -> None:
        """Takes a new view of an adapter."""
        before = self._adapters.get(adapter.name)
        self._adapters[adapter.name] = adapter
        if adapter.since:
            anew = adapter.since != self._since.get(adapter.name, adapter.since)
            self._since[adapter.name] = adapter.since
            self._conditions.renew(adapter.name, adapter.started, anew=anew, now=time.time())
        for payload in notices.of_adapter(before, adapter):
            self._publish(f"adapter/{adapter.name}", payload)
        self.rebuild()

    def forget(self, name: str) -> None:
        """Takes an adapter away, with all that is known of its backends but what operators set."""
        before = self._adapters.pop(name, None)
        if before is None:
            return
        self._since.pop(name, None)
        self._conditions.forget(self._adapters)
        gone = replace(before, state=pb.ADAPTER_STATE_DOWN, since=0.0)
        for payload in notices.of_adapter(before, gone if before.reason else replace(gone, reason="it left")):
            self._publish(f"adapter/{name}", payload)
        self.rebuild()

    def report(self, outcomes: Iterable[pb.Outcome], openings: Iterable[pb.Opening] = ()) -> None:
        """Takes outcomes of attempts, and openings of the reporter's own breakers."""
        now = time.time()
        changed = False
        for outcome in outcomes:
            if not self._knows(outcome.backend_id):
                continue
            backend = self.table.backends.get(outcome.backend_id)
            account = backend.account if backend is not None else ""
            changed |= self._conditions.report(outcome, account, now)
            self._count(outcome)
            if not outcome.reason:
                self._observe(outcome, now)
        for opening in openings:
            if self._knows(opening.scope):
                changed |= self._conditions.open(opening, now)
        if changed:
            self.rebuild()
        elif self._conditions.crossed:
            self._arm(now)

    def adopt(self, marks: Iterable[Mark]) -> None:
        """Takes what other routers told."""
        now = time.time()
        if sum(self._conditions.adopt(mark, now) for mark in marks):
            self.rebuild()
        else:
            self._tell()

    def marks(self) -> list[Mark]:
        """What a router has to know that knows nothing yet."""
        return self._conditions.marks(time.time())

    def known(self, mark: Mark) -> Mark | None:
        """What is known here of the thing that `mark` is about."""
        return self._conditions.known(mark)

    def set_state(self, backend_id: str, state: pb.BackendState.ValueType, reason: str) -> pb.Backend:
        """Takes an operator's wish; ACTIVE also closes the breaker and ends the quarantine. Raises `NotFound`."""
        backend = self.table.backends.get(backend_id)
        if backend is None:
            raise NotFound(f"no backend is named {backend_id!r}; known: {', '.join(sorted(self.table.backends))}")
        self._conditions.wish(backend_id, backend.account, state, reason or "set by an operator", time.time())
        self.rebuild()
        return self.table.backends[backend_id].message

    def rebuild(self) -> None:
        """Compiles the table anew and wakes the subscribers."""
        now = self._built = time.time()
        self._conditions.look(now)
        self._conditions.crossed = False
        self._version += 1
        self.message = compile_routes(self._config, self._adapters, self._conditions, self._version, now)
        self.table = compile_table(self.message)
        self.local.adopt(self.table, now)
        self._arm(now)
        self._next.set()
        self._next = asyncio.Event()
        self._tell()

    def close(self) -> None:
        """Stops the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _tell(self) -> None:
        conditions = self._conditions
        changes, conditions.changes = conditions.changes, []
        told, conditions.told = conditions.told, []
        for change in changes:
            payload = notices.of_condition(change, self._policy)
            self._publish(f"backend/{change.scope}", payload)
        if told and self.share is not None:
            self.share(told)

    def _knows(self, scope: str) -> bool:
        """Whether a backend or account is of an adapter of this mesh."""
        return scope.partition(":")[0] in self._adapters

    def _count(self, outcome: pb.Outcome) -> None:
        if outcome.breach and not outcome.HasField("duration"):
            # What showed after the answer was whole: the attempt itself has been told before.
            return
        key = (outcome.backend_id, notices.reason_name(outcome.reason))
        self.attempts[key] = self.attempts.get(key, 0) + 1

    def _observe(self, outcome: pb.Outcome, now: float) -> None:
        first, whole = outcome.first_event.ToNanoseconds() / 1e9, outcome.duration.ToNanoseconds() / 1e9
        self.local.observe(outcome.backend_id, first, whole, outcome.output_tokens, now)

    def _arm(self, now: float) -> None:
        """Looks again when something changes by itself, or when the headroom may be told."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ends = list(self._conditions.ends(now))
        if self._conditions.crossed:
            ends.append(self._built + _HEADROOM_PAUSE)
        if ends:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, min(ends) - now) + 0.001, self.rebuild)
