"""The process tree of a mesh: starts programs, and again when they end, and lets none outlive the supervisor."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Protocol, Self

from maestro_sdk.cli.folder import LogFile, ProcessState
from maestro_sdk.cli.programs import Program
from maestro_sdk.cli.readiness import wait_listening
from maestro_sdk.cli.restarts import Restarts, told

# Leads the process group of all programs. Its standard input ends with the supervisor, however that ends: then the
# group is asked to stop, and after two seconds made to. A shell weighs a tenth of a Python.
_WATCHDOG = "trap '' INT TERM HUP; read -r line; kill -TERM 0; sleep 2; kill -KILL 0"
_TAIL = 15


class Output(Protocol):
    """Where lines and problems are shown."""

    def line(self, name: str, line: bytes) -> None: ...
    def last(self, name: str, line: bytes) -> None: ...
    def problem(self, text: str) -> None: ...


class Group:
    """The process group of a mesh, led by a watchdog that ends it when the supervisor dies."""

    def __init__(self, watchdog: asyncio.subprocess.Process) -> None:
        self._watchdog = watchdog
        self.id = watchdog.pid

    def kill(self) -> None:
        """Ends every process of the group at once."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.id, signal.SIGKILL)


@asynccontextmanager
async def open_group() -> AsyncGenerator[Group]:
    """A new process group; whoever is still in it at the end is killed."""
    null = asyncio.subprocess.DEVNULL
    command = ("/bin/sh", "-c", _WATCHDOG)
    watchdog = await asyncio.create_subprocess_exec(
        *command, stdin=asyncio.subprocess.PIPE, stdout=null, stderr=null, process_group=0
    )
    group = Group(watchdog)
    try:
        yield group
    finally:
        group.kill()
        await watchdog.wait()


class Process:
    """One program. `ready` is set while its address accepts connections, `given_up` when it is not tried again."""

    def __init__(
        self,
        program: Program,
        group: Group,
        log: Path,
        output: Output,
        *,
        changed: Callable[[], None] = lambda: None,
        restarts: Restarts | None = None,
        directory: Path | None = None,
    ) -> None:
        self.program = program
        self.ready = asyncio.Event()
        self.given_up = asyncio.Event()
        self.tail: deque[bytes] = deque(maxlen=_TAIL)
        self._group = group.id
        self._log = LogFile(log)
        self._output = output
        self._changed = changed
        self._restarts = restarts or Restarts()
        self._directory = directory
        self._state = "starting"
        self._note = ""
        self._since = time.time()
        self._child: asyncio.subprocess.Process | None = None
        self._stop = asyncio.Event()
        self._was_up = False

    @property
    def name(self) -> str:
        return self.program.name

    @property
    def state(self) -> ProcessState:
        """What `maestro status` shows."""
        pid = self._child.pid if self._child and self._child.returncode is None else None
        return ProcessState(
            self.name, self._state, pid, self.program.address, self._restarts.total, self._since, self._note
        )

    async def run(self) -> None:
        """Runs the program until `stop`, or until it crashed too often in a row."""
        try:
            while not self._stop.is_set():
                started = time.monotonic()
                status = await self._run_once()
                lived = time.monotonic() - started
                if self._stop.is_set():
                    break
                pause = self._restarts.after(lived=lived, status=status, was_up=self._was_up)
                self._note = f"{told(status)} after {lived:.1f} s"
                if pause is None:
                    self._enter("failed")
                    self._output.problem(f"{self.name} {self._note}; given up. Its last lines:")
                    for line in self.tail:
                        self._output.last(self.name, line)
                    self.given_up.set()
                    return
                self._enter("waiting")
                self._output.problem(f"{self.name} {self._note}; starting again in {pause:.1f} s")
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._stop.wait(), pause)
            self._enter("stopped")
        finally:
            self._log.close()

    async def _run_once(self) -> int:
        self._enter("starting")
        self.tail.clear()
        # A pipe of our own: asyncio's would make `wait` last as long as any grandchild holds it open.
        with _Pipe(self._take) as pipe:
            try:
                # The main thread starts it: Envoy asks the kernel to be ended with the thread that started it.
                self._child = child = await asyncio.create_subprocess_exec(
                    *self.program.command,
                    stdin=asyncio.subprocess.DEVNULL,
                    stdout=pipe.end,
                    stderr=asyncio.subprocess.STDOUT,
                    env=dict(self.program.environment),
                    cwd=self._directory,
                    process_group=self._group,
                )
            except OSError as error:
                self._take(f"{self.program.command[0]}: {error.strerror or error}".encode())
                return 127
            self._changed()  # its pid
            if self._stop.is_set():  # asked to stop while it was being started
                child.terminate()
            watching = asyncio.create_task(self._watch())
            try:
                return await child.wait()
            except asyncio.CancelledError:
                with contextlib.suppress(ProcessLookupError):
                    child.kill()
                raise
            finally:
                watching.cancel()
                self.ready.clear()

    async def _watch(self) -> None:
        await wait_listening(self.program.address)
        self._enter("ready")
        self.ready.set()
        self._was_up = True

    def _take(self, line: bytes) -> None:
        self._log.write(line)
        self.tail.append(line)
        if self.program.is_news(line):
            self._output.line(self.name, line)

    def _enter(self, state: str) -> None:
        self._state, self._since = state, time.time()
        self._changed()

    def terminate(self) -> None:
        """Asks the program to end, and sees to it that it is not started again."""
        if not self._stop.is_set():
            self._stop.set()
            if self._state in {"starting", "ready"}:
                self._enter("stopping")
            if self._child is not None:
                with contextlib.suppress(ProcessLookupError):
                    self._child.terminate()

    async def stop(self, grace: float) -> bool:
        """Asks the program to end; after `grace` seconds it is made to. Returns whether it ended by itself."""
        self.terminate()
        child = self._child
        if child is None:
            return True
        try:
            await asyncio.wait_for(child.wait(), grace)
        except TimeoutError:
            self._output.problem(f"{self.name} did not end within {grace:.0f} s; killed")
            with contextlib.suppress(ProcessLookupError):
                child.kill()
            await child.wait()
            return False
        return True


class _Pipe:
    """A pipe whose lines go to `take`; `end` is for the writer. What was written before it closes is not lost."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._rest = b""

    def __enter__(self) -> Self:
        self._from, self.end = os.pipe()
        os.set_blocking(self._from, False)
        asyncio.get_running_loop().add_reader(self._from, self._read)
        return self

    def __exit__(self, *_: object) -> None:
        os.close(self.end)
        while self._read():
            pass
        asyncio.get_running_loop().remove_reader(self._from)
        os.close(self._from)
        if self._rest:
            self._take(self._rest)

    def _read(self) -> bool:
        try:
            data = os.read(self._from, 65536)
        except BlockingIOError:
            return False
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            self._take(line.rstrip(b"\r"))
        if len(self._rest) > 2**20:  # a line without an end is cut rather than kept
            self._take(self._rest)
            self._rest = b""
        return bool(data)
