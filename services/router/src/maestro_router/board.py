"""The state behind the table: adapters, breakers, operators' wishes; every change of it makes a new version."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterable

from google.protobuf.message import Message

from maestro.router.v1 import router_pb2 as pb
from maestro_router import notices
from maestro_router.compile import Adapter, Override, compile_routes
from maestro_sdk.errors import NotFound
from maestro_sdk.mesh.breaker import Breaker, BreakerPolicy, State
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.table import Table, compile_table
from maestro_sdk.service.settings import Config


class Board:
    """Holds the table in force; `newer_than` waits for the next one."""

    def __init__(self, config: Config, publish: Callable[[str, Message], None]) -> None:
        """`publish` takes subject and payload of a lifecycle event."""
        self._config = config
        self._publish = publish
        self._policy = BreakerPolicy(**config.router.breaker.model_dump())
        self._adapters: dict[str, Adapter] = {}
        self._breakers: dict[str, Breaker] = {}
        self._states: dict[str, State] = {}
        self._opened: dict[str, float] = {}
        self._overrides: dict[str, Override] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._next = asyncio.Event()
        # Versions grow across restarts of the router, so that a subscriber can tell old from new.
        self._version = int(time.time() * 1000)
        self.local = LocalState()
        self.message = pb.RouteTable()
        self.table: Table = compile_table(self.message)
        self.rebuild()

    def configure(self, config: Config) -> None:
        """Takes a new configuration of routes, aliases, breakers and pins, all at once."""
        self._config = config
        policy = BreakerPolicy(**config.router.breaker.model_dump())
        if policy != self._policy:
            # Breakers count under their limits: with others they begin anew.
            self._policy = policy
            known = list(self._breakers)
            self._breakers.clear()
            self._note_transitions(known, time.time())
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
        if before is not None and adapter.since > before.since:
            # Started anew: what its breakers know is of the past.
            own = [name for name in self._breakers if name.partition(":")[0] == adapter.name]
            for name in own:
                del self._breakers[name]
            self._note_transitions(own, time.time())
        for payload in notices.of_adapter(before, adapter):
            self._publish(f"adapter/{adapter.name}", payload)
        self.rebuild()

    def report(self, outcomes: Iterable[pb.Outcome]) -> None:
        """Takes outcomes of attempts."""
        now = time.time()
        touched: set[str] = set()
        for outcome in outcomes:
            breaker = self._breakers.setdefault(outcome.backend_id, Breaker(self._policy))
            if outcome.reason:
                wait = outcome.retry_after.ToNanoseconds() / 1e9 if outcome.HasField("retry_after") else None
                breaker.fail(now, outcome.reason, counts=outcome.counts_against_health, retry_after=wait)
            else:
                breaker.succeed(now)
                self._observe(outcome, now)
            touched.add(outcome.backend_id)
        if self._note_transitions(touched, now):
            self.rebuild()

    def _observe(self, outcome: pb.Outcome, now: float) -> None:
        first, whole = outcome.first_event.ToNanoseconds() / 1e9, outcome.duration.ToNanoseconds() / 1e9
        self.local.observe(outcome.backend_id, first, whole, outcome.output_tokens, now)

    def set_state(self, backend_id: str, state: pb.BackendState.ValueType, reason: str) -> pb.Backend:
        """Takes an operator's wish; ACTIVE also closes the breaker. Raises `NotFound`."""
        if backend_id not in self.table.backends:
            raise NotFound(f"no backend is named {backend_id!r}; known: {', '.join(sorted(self.table.backends))}")
        if state == pb.BACKEND_STATE_ACTIVE:
            self._overrides.pop(backend_id, None)
            self._breakers.pop(backend_id, None)
            self._note_transitions({backend_id}, time.time())
        else:
            self._overrides[backend_id] = Override(state, reason or "set by an operator")
        self.rebuild()
        return self.table.backends[backend_id].message

    def rebuild(self) -> None:
        """Compiles the table anew and wakes the subscribers."""
        now = time.time()
        self._version += 1
        self.message = compile_routes(self._config, self._adapters, self._breakers, self._overrides, self._version, now)
        self.table = compile_table(self.message)
        self.local.adopt(self.table, now)
        self._arm(now)
        self._next.set()
        self._next = asyncio.Event()

    def close(self) -> None:
        """Stops the timer."""
        if self._timer is not None:
            self._timer.cancel()

    def _arm(self, now: float) -> None:
        """Looks again when the next open breaker becomes half open."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        ends = [breaker.until for breaker in self._breakers.values() if breaker.state(now) is State.OPEN]
        if ends:
            self._timer = asyncio.get_running_loop().call_later(max(0.0, min(ends) - now) + 0.001, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._note_transitions(self._breakers, time.time())
        self.rebuild()

    def _note_transitions(self, backend_ids: Iterable[str], now: float) -> bool:
        changed = False
        for backend_id in backend_ids:
            breaker = self._breakers.get(backend_id)
            before, after = self._states.get(backend_id, State.CLOSED), breaker.state(now) if breaker else State.CLOSED
            if before is after:
                continue
            changed = True
            self._states[backend_id] = after
            if after is State.OPEN:
                self._opened.setdefault(backend_id, now)
            opened = self._opened.pop(backend_id, now) if after is State.CLOSED else now
            payload = notices.of_breaker(backend_id, breaker, after, now - opened, self._policy)
            self._publish(f"backend/{backend_id}", payload)
        return changed
