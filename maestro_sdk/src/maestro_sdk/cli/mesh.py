"""One mesh from start to end: the order in which its programs start, and the other order in which they stop."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Callable, Coroutine
from typing import Any

from maestro_sdk.cli.api import Api, ApiError
from maestro_sdk.cli.console import Console
from maestro_sdk.cli.folder import Folder, MeshState
from maestro_sdk.cli.programs import Program, settled
from maestro_sdk.cli.readiness import wait_each_serving, wait_serving
from maestro_sdk.cli.rendering import reachable
from maestro_sdk.cli.supervisor import Group, Process, open_group
from maestro_sdk.service.health import longest_stop
from maestro_sdk.service.hot_reload import changes, merge, reread
from maestro_sdk.service.settings import Config, ConfigError

_AGAIN = 2.0
_NATS_PATIENCE = 3.0
START_LIMIT = 60.0
"""Seconds that a start may take."""


class Mesh:
    """The programs of one mesh and what is known of them."""

    def __init__(
        self, config: Config, programs: list[Program], folder: Folder, console: Console, key: str | None
    ) -> None:
        self.url = f"http://{reachable(config.envoy.address)}"
        self._config = config
        self._programs = programs
        self._folder = folder
        self._console = console
        self._key = key
        self._api = Api(self.url, key, timeout=5)
        self._admin = Api(f"http://{reachable(config.envoy.admin)}", None, timeout=2)
        self._state = "starting"
        self._began = time.time()
        self._clock = time.monotonic()
        self._processes: dict[str, Process] = {}
        self._is_unwritable = False
        self._stop = asyncio.Event()
        self._reload = asyncio.Event()

    async def run(self, on_ready: Callable[[], None]) -> int:
        """Runs until SIGINT or SIGTERM; returns the exit code. A second signal ends everything at once.

        SIGHUP stops too where it says that the terminal is gone; without one it reads the configuration anew, as does
        every change of its file.
        """
        self._write_state()
        async with open_group() as group, asyncio.TaskGroup() as tasks:
            loop = asyncio.get_running_loop()
            for number in (signal.SIGINT, signal.SIGTERM):
                loop.add_signal_handler(number, self._on_signal, group)
            if _has_terminal():
                loop.add_signal_handler(signal.SIGHUP, self._on_signal, group)
            else:
                loop.add_signal_handler(signal.SIGHUP, self._reload.set)
            following = tasks.create_task(self._follow_configuration())
            try:
                code = await self._start_and_watch(group, tasks, on_ready)
                self._enter("stopping")
                self._console.waiting([])
                await self._stop_all()
            finally:
                following.cancel()
                for process in self._processes.values():
                    process.terminate()
        if code:
            self._enter("failed")
        else:
            self._enter("stopped")
        return code

    async def _follow_configuration(self) -> None:
        """Hands what may change while the mesh runs to the services, in the file that they follow."""
        async for _ in changes(self._config.file, self._reload):
            try:
                merged = merge(self._config, reread(self._config.file))
                self._folder.write("maestro.yaml", settled(merged, os.environ).to_yaml())
                self._config = merged
            except ConfigError as error:
                for problem in error.problems:
                    self._console.problem(f"configuration rejected, the old one stays: {problem}")
                await self._publish_rejection(error)
            except OSError as error:
                self._console.problem(
                    f"configuration can't be handed on, the old one stays: {self._folder.run}: {error.strerror}; "
                    "SIGHUP tries again"
                )

    async def _publish_rejection(self, error: ConfigError) -> None:
        """Tells by an event what no service gets to see. While NATS is away it waits for the next time."""
        # Imported here: a start that nobody has to complain about need not wait for them.
        from maestro_sdk.service.buses import remember_login
        from maestro_sdk.service.config_events import rejected
        from maestro_sdk.service.event_publisher import EventPublisher
        from maestro_sdk.service.events import MESH, new_event

        remember_login(self._config.nats)
        payload = rejected("supervisor", self._config, error)
        try:
            async with EventPublisher.from_config(self._config, "supervisor") as events:
                events.publish(new_event(payload, "config/supervisor", tenant=MESH))
                await events.flush(_NATS_PATIENCE)
        except OSError as problem:
            self._console.problem(f"the event of it can't be kept: {problem.strerror}")

    def _on_signal(self, group: Group) -> None:
        if self._stop.is_set():
            self._console.problem("stopping at once")
            group.kill()
        self._stop.set()

    async def _start_and_watch(self, group: Group, tasks: asyncio.TaskGroup, on_ready: Callable[[], None]) -> int:
        starting = await self._until_stopped(self._start(group, tasks), limit=START_LIMIT)
        self._console.waiting([])
        if self._stop.is_set():
            return 0
        if starting is not None:
            self._console.problem(starting)
            return 1
        self._enter("ready")
        on_ready()
        over = await self._until_stopped(self._first_loss(essential_only=True), limit=None)
        if over is not None:
            self._console.problem(f"the mesh can't go on: {over}")
            return 1
        return 0

    async def _until_stopped(self, work: Coroutine[Any, Any, str | None], *, limit: float | None) -> str | None:
        """The result of `work`, or None when the mesh is asked to stop meanwhile."""
        task = asyncio.create_task(work)
        stop = asyncio.create_task(self._stop.wait())
        try:
            await asyncio.wait([task, stop], timeout=limit, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                return task.result()
            if stop.done():
                return None
            waited = ", ".join(name for name, each in self._processes.items() if not each.ready.is_set())
            return f"not ready after {limit:.0f} s: {waited or 'no answer through Envoy'}; see {self._folder.log}"
        finally:
            for each in (task, stop):
                each.cancel()
            await asyncio.wait([task, stop])

    async def _start(self, group: Group, tasks: asyncio.TaskGroup) -> str | None:
        """Starts everything; returns what prevented it, or None."""
        # NATS is up in a blink and everybody wants it at once; the others wait for nobody.
        first = [program for program in self._programs if program.name == "nats"]
        rest = [program for program in self._programs if program.name != "nats"]
        for batch in (first, rest):
            for program in batch:
                log = self._folder.log / f"{program.name}.log"
                process = Process(
                    program, group, log, self._console, changed=self._write_state, directory=self._config.base
                )
                self._processes[program.name] = process
                tasks.create_task(process.run())
            if problem := await self._all_up([self._processes[program.name] for program in batch]):
                return problem
        return await self._answering()

    async def _all_up(self, processes: list[Process]) -> str | None:
        lost = asyncio.create_task(self._first_loss(essential_only=False))
        waits = {asyncio.create_task(process.ready.wait()): process for process in processes}
        try:
            while waits:
                self._console.waiting([process.name for process in waits.values()])
                done, _ = await asyncio.wait([lost, *waits], return_when=asyncio.FIRST_COMPLETED)
                if lost in done:
                    return f"the mesh did not start: {lost.result()}"
                for each in [each for each in waits if each in done]:
                    self._console.up(waits.pop(each).name, time.monotonic() - self._clock)
        finally:
            for each in (lost, *waits):
                each.cancel()
        return None

    async def _answering(self) -> str | None:
        """Waits for a real answer by the way that every caller takes."""
        self._console.waiting(["an answer through Envoy"])
        lost = asyncio.create_task(self._first_loss(essential_only=False))
        answer = asyncio.create_task(self._wait_serving())
        try:
            done, _ = await asyncio.wait([lost, answer], return_when=asyncio.FIRST_COMPLETED)
            if answer in done:
                self._warn(answer.result())
                return None
            return f"the mesh did not start: {lost.result()}"
        except ApiError as error:
            return f"the gateway refuses the key: {error}"
        finally:
            for each in (lost, answer):
                each.cancel()

    async def _wait_serving(self) -> dict[str, Any]:
        health = await wait_serving(self._api)
        gateways = [each.program.address for each in self._processes.values() if each.program.service == "gateway"]
        if len(gateways) > 1:
            await wait_each_serving(gateways, self._key)
        return health

    def _warn(self, health: dict[str, Any]) -> None:
        for provider in health.get("providers", []):
            for backend, trouble in provider.get("troubles", {}).items():
                self._console.say(f"  ! {backend}: {trouble}", "yellow")
        for adapter in health.get("adapters_without_models", []):
            self._console.say(f"  ! adapter {adapter['name']}: {adapter['reason'] or adapter['state']}", "yellow")

    async def _first_loss(self, *, essential_only: bool) -> str:
        """What was given up first; of essential services only those count of which no process is left."""
        processes = [each for each in self._processes.values() if each.program.essential or not essential_only]
        waits = {asyncio.create_task(process.given_up.wait()): process for process in processes}
        waiting = set(waits)
        try:
            while True:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                left = {waits[each].program.service or waits[each].name for each in waiting}
                for process in (waits[each] for each in done):
                    if not essential_only or (process.program.service or process.name) not in left:
                        return f"{process.name} {process.state.note}; see {self._folder.log / (process.name + '.log')}"
        finally:
            for each in waits:
                each.cancel()

    async def _stop_all(self) -> None:
        """Stops in an order in which nobody loses whom he still needs. Streams in flight get the grace period."""
        grace = longest_stop(self._config.notice, self._config.grace)
        envoy = self._processes.get("envoy")
        gateways = [each for each in self._processes.values() if each.program.service == "gateway"]
        nats = self._processes.get("nats")
        if envoy is not None and envoy.ready.is_set():
            await asyncio.to_thread(self._drain_envoy)
        await asyncio.gather(*(each.stop(grace) for each in gateways))
        if envoy is not None:
            await envoy.stop(5)
        others = [each for each in self._processes.values() if each not in {envoy, nats, *gateways}]
        await asyncio.gather(*(each.stop(grace) for each in others))
        if nats is not None:
            await nats.stop(10)

    def _drain_envoy(self) -> None:
        for path in ("/healthcheck/fail", "/drain_listeners?graceful"):
            with contextlib.suppress(ApiError):
                self._admin.post(path)

    def _enter(self, state: str) -> None:
        self._state = state
        self._write_state()

    def _write_state(self) -> None:
        processes = tuple(each.state for each in self._processes.values())
        config = str(self._folder.run / "maestro.yaml")
        admin = f"http://{reachable(self._config.envoy.admin)}"
        state = MeshState(self._state, self.url, admin, os.getpid(), self._began, config, processes)
        try:
            self._folder.write_state(state)
        except OSError as error:
            # `maestro status` shows what is past; the mesh itself goes on.
            if not self._is_unwritable:
                self._console.problem(f"the state can't be written to {self._folder.run}: {error.strerror}")
            self._is_unwritable = True
            asyncio.get_running_loop().call_later(_AGAIN, self._write_state)
        else:
            self._is_unwritable = False


def _has_terminal() -> bool:
    """Whether this process belongs to a terminal, which may be closed."""
    try:
        os.close(os.open("/dev/tty", os.O_RDWR | os.O_NOCTTY))
    except OSError:
        return False
    return True
