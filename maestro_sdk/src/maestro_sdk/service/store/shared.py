"""Counts in a Redis-compatible store, the same for all processes that use it.

Everything goes through one connection in the order in which it was asked, and all that was asked meanwhile goes in one
round trip: a place that is given back is free before whoever gave it back asks for the next one.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import re
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from types import TracebackType
from typing import Any, Self, cast

from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, NoScriptError, RedisError

from maestro_sdk.service.store.claims import PLACE_WAIT, UNDO, Claim, Kind, StoreAway, Verdict
from maestro_sdk.service.store.config import StoreConfig
from maestro_sdk.service.store.hold_scripts import BEGIN, HOLD_SCRIPTS, PREFIX
from maestro_sdk.service.store.scripts import FINISH, RENEW, TAKE

log = logging.getLogger(__name__)

_FAILURES = (RedisError, OSError, TimeoutError)
_MOST = 256
"""Commands in one round trip."""
_OWED = 20_000
"""Above so many commands for a store that is away only those are kept that must run: each for what the store holds."""
_RETRY = 0.25
_PROBE = "maestro:probe"
_RUN = re.compile(rb"^run_id:(\w+)", re.MULTILINE)
_MICRO = 1_000_000


class _Command:
    """One run of a script. `told` gets its answer; one that is `kept` is run later when the store is away.

    Too many of them that wait are dropped, but for those that `must` run.
    """

    __slots__ = ("arguments", "claims", "entry", "future", "kept", "keys", "must", "script", "told")

    def __init__(
        self,
        script: str,
        keys: Sequence[str],
        arguments: Sequence[str | int | bytes],
        entry: str = "",
        claims: Sequence[Claim] = (),
        future: asyncio.Future[Any] | None = None,
        told: Callable[[Any], None] | None = None,
        *,
        kept: bool = False,
        must: bool = False,
    ) -> None:
        self.script = script
        self.keys = keys
        self.arguments = arguments
        self.entry = entry
        self.claims = claims
        self.future = future
        self.told = told
        self.kept = kept
        self.must = must


class SharedStore:
    """A Redis-compatible store, between the start and the end of its block. `up` tells whether it answers."""

    def __init__(self, config: StoreConfig, on_change: Callable[[], None] = lambda: None) -> None:
        """`on_change` is called when `up` changes. Places whose process dies are free after `config.lease`."""
        self._timeout = config.timeout
        self._lease = config.lease
        self._on_change = on_change
        password = config.password.get() if config.password is not None else None
        connect = cast("Any", Redis).from_url  # its options have no types
        self._client: Any = connect(
            config.url,
            password=password,
            **_tls_of(config),
            socket_timeout=config.timeout,
            socket_connect_timeout=config.timeout,
            retry=Retry(NoBackoff(), 0),
            redis_connect_func=self._greet,
        )
        self._shas = {script: hashlib.sha1(script.encode(), usedforsecurity=False).hexdigest() for script in _SCRIPTS}
        self._queue: deque[_Command] = deque()
        self._owed: deque[_Command] = deque()
        self._held: dict[str, set[str]] = {}
        self._wake = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._ending = False
        self._warned = False
        self.up = False
        self.trouble = ""
        self.on_reach: list[Callable[[], None]] = []
        """Called each time that the store was reached, before anything new is asked of it."""

    async def __aenter__(self) -> Self:
        try:
            await self._reach()
        except _FAILURES as error:
            self.trouble = _words(error)
            log.warning("the store does not answer: %s", self.trouble)
            self._on_change()
        self._tasks = [asyncio.create_task(self._run()), asyncio.create_task(self._renew())]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending = True
        self._wake.set()
        sending = self._tasks[0]
        if self.up:
            # What is on its way, and what was given back last.
            await asyncio.wait((sending,), timeout=2 * self._timeout)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        with suppress(*_FAILURES):
            await self._client.aclose()

    def take(self, entry: str, claims: Sequence[Claim]) -> Awaitable[Verdict]:
        """Takes all claims, or none. Raises `StoreAway`; while the store is known to be away, at once."""
        if not self.up:
            raise StoreAway(self.trouble)
        arguments: list[str | int] = [entry, int(self._lease * _MICRO), int(PLACE_WAIT * _MICRO)]
        for claim in claims:
            arguments += (int(claim.kind), claim.limit, int(claim.window * _MICRO), claim.amount)
        future: asyncio.Future[Verdict] = asyncio.get_running_loop().create_future()
        self._put(_Command(TAKE, _keys(claims), arguments, entry, tuple(claims), future))
        return future

    def finish(self, entry: str, claims: Sequence[Claim], amounts: Sequence[int]) -> None:
        """Gives places back and corrects sums, as soon as the store is there."""
        arguments: list[str | int] = [entry]
        for claim, amount in zip(claims, amounts, strict=True):
            arguments += (int(claim.kind), amount)
            if claim.kind is Kind.PLACES and (held := self._held.get(claim.key)) is not None:
                held.discard(entry)
                if not held:
                    del self._held[claim.key]
        self._put(_Command(FINISH, _keys(claims), arguments, kept=True))

    def call(
        self,
        script: str,
        keys: Sequence[str],
        arguments: Sequence[str | int | bytes],
        told: Callable[[Any], None] | None = None,
    ) -> Awaitable[Any]:
        """What a script answers; `told` gets it at once. Raises `StoreAway`, at once or later: then it may have run."""
        if not self.up:
            raise StoreAway(self.trouble)
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._put(_Command(script, keys, arguments, future=future, told=told))
        return future

    def send(
        self,
        script: str,
        keys: Sequence[str],
        arguments: Sequence[str | int | bytes],
        told: Callable[[Any], None] | None = None,
        *,
        kept: bool = True,
        must: bool = False,
    ) -> None:
        """Runs a script, as soon as the store is there; perhaps twice. `told` gets its answer.

        One that is not `kept` is dropped when the store is away; of the others the newest are when very many wait,
        unless they `must` run.
        """
        if kept or self.up:
            self._put(_Command(script, keys, arguments, told=told, kept=kept, must=must))

    def _put(self, command: _Command) -> None:
        if self.up:
            self._queue.append(command)
            self._wake.set()
        else:
            self._owe(command)

    def _owe(self, command: _Command) -> None:
        if command.must or len(self._owed) < _OWED:
            self._owed.append(command)

    async def _run(self) -> None:
        while not (self._ending and self.up and not self._queue):
            if not self.up:
                await asyncio.sleep(_RETRY)
                try:
                    await self._reach()
                except _FAILURES as error:
                    self.trouble = _words(error)
                continue
            await self._wake.wait()
            self._wake.clear()
            while self._queue and self.up:
                batch = [self._queue.popleft() for _ in range(min(_MOST, len(self._queue)))]
                try:
                    answers = await self._send(batch)
                except _FAILURES as error:
                    self._lose(batch, error)
                    break
                for command, answer in zip(batch, answers, strict=True):
                    self._resolve(command, answer)

    async def _send(self, batch: Sequence[_Command]) -> list[Any]:
        """One round trip, and further ones for scripts that the store has forgotten."""
        async with asyncio.timeout(self._timeout):
            answers: list[Any] = await self._pipe(batch)
            forgotten = [index for index, answer in enumerate(answers) if isinstance(answer, NoScriptError)]
            if forgotten:
                await self._load()
                again = await self._pipe([batch[index] for index in forgotten])
                for index, answer in zip(forgotten, again, strict=True):
                    answers[index] = answer
        for answer in answers:
            if isinstance(answer, Exception):
                raise answer
        return answers

    async def _pipe(self, batch: Sequence[_Command]) -> list[Any]:
        pipeline = self._client.pipeline(transaction=False)
        for command in batch:
            sha = self._shas[command.script]
            pipeline.execute_command("EVALSHA", sha, len(command.keys), *command.keys, *command.arguments)
        return await pipeline.execute(raise_on_error=False)

    def _resolve(self, command: _Command, answer: Any) -> None:
        if command.told is not None:
            command.told(answer)
        future = command.future
        if future is None or future.done():
            return
        if command.script != TAKE:
            future.set_result(answer)
            return
        verdict = _verdict(answer)
        if verdict.refused is None:
            for claim in command.claims:
                if claim.kind is Kind.PLACES:
                    self._held.setdefault(claim.key, set()).add(command.entry)
        future.set_result(verdict)

    async def _load(self) -> None:
        for script in _SCRIPTS:
            await self._client.script_load(script)

    async def _greet(self, connection: Any) -> None:
        """Comes before all that is asked over a connection: a server that was started anew may have forgotten much."""
        await connection.on_connect()
        try:
            await connection.send_command("INFO", "server")
            told: Any = await connection.read_response()
            run = _RUN.search(told if isinstance(told, bytes) else str(told).encode())
        except NoPermissionError:
            run = None
        if run is not None:
            await connection.send_command("EVAL", BEGIN, 1, PREFIX, run[1])
            await connection.read_response()
        elif not self._warned:
            self._warned = True
            log.warning("the store does not tell its run_id: one that comes back with old data is not found out")

    async def _reach(self) -> None:
        """Finds out that the store takes what is written to it, and catches up."""
        async with asyncio.timeout(self._timeout):
            # A store that is full, or a replica that may not be written to, answers a ping.
            await self._client.set(_PROBE, 1, px=1000)
            await self._load()
        self.up, self.trouble = True, ""
        self._queue.extend(self._owed)
        self._owed.clear()
        self._renew_now()
        for tell in self.on_reach:
            tell()
        self._wake.set()
        self._on_change()

    def _lose(self, batch: Sequence[_Command], error: Exception) -> None:
        waiting = [*batch, *self._queue]
        self._queue.clear()
        self.up, self.trouble = False, _words(error)
        log.warning("the store does not answer: %s", self.trouble)
        for command in waiting:
            if command.script == TAKE:
                # Perhaps it was taken, perhaps not: nobody will give it back but this.
                self.finish(command.entry, command.claims, [UNDO] * len(command.claims))
            elif command.kept:
                self._owe(command)
            if command.future is not None and not command.future.done():
                command.future.set_exception(StoreAway(self.trouble))
        self._on_change()

    async def _renew(self) -> None:
        while True:
            await asyncio.sleep(self._lease / 3)
            if self.up:
                self._renew_now()

    def _renew_now(self) -> None:
        """Says of all places that they are still taken, also to a store that lost what it knew."""
        for key, entries in self._held.items():
            names = list(entries)
            for start in range(0, len(names), _MOST):
                arguments = [int(self._lease * _MICRO), *names[start : start + _MOST]]
                self._put(_Command(RENEW, [key], arguments))


_SCRIPTS = (TAKE, FINISH, RENEW, *HOLD_SCRIPTS)


def _keys(claims: Sequence[Claim]) -> list[str]:
    return [key for claim in claims for key in (claim.key, f"{claim.key}:n")]


def _verdict(answer: list[Any]) -> Verdict:
    refused, wait = int(answer[0]), int(answer[1])
    return Verdict(
        refused=refused - 1 if refused else None,
        retry_after=wait / _MICRO if wait >= 0 else None,
        left=tuple(int(value) for value in answer[2::2]),
        reset=tuple(max(0, int(value)) / _MICRO for value in answer[3::2]),
    )


def _words(error: Exception) -> str:
    return str(error) or type(error).__name__


def _tls_of(config: StoreConfig) -> dict[str, str]:
    """The client's names for the files of `store.tls`."""
    if config.tls is None:
        return {}
    files = {
        "ssl_ca_certs": config.tls.authority,
        "ssl_certfile": config.tls.certificate,
        "ssl_keyfile": config.tls.key,
    }
    return {name: str(file) for name, file in files.items() if file is not None}
