"""Processes that crash, come back, are given up, are stopped, and never outlive the supervisor: small real ones."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from maestro_sdk.cli.programs import Program
from maestro_sdk.cli.restarts import Restarts, told
from maestro_sdk.cli.supervisor import Process, open_group
from maestro_sdk.service.free_ports import find_free_ports

LISTEN = """
import signal, socket, sys
{before}
server = socket.create_server(("127.0.0.1", int(sys.argv[1])))
print("listening", flush=True)
while True:
    server.accept()
"""
STUBBORN = "signal.signal(signal.SIGTERM, signal.SIG_IGN)"


class Lines:
    """What a person would have seen."""

    def __init__(self) -> None:
        self.lines: list[tuple[str, bytes]] = []
        self.lasts: list[tuple[str, bytes]] = []
        self.problems: list[str] = []

    def line(self, name: str, line: bytes) -> None:
        self.lines.append((name, line))

    def last(self, name: str, line: bytes) -> None:
        self.lasts.append((name, line))

    def problem(self, text: str) -> None:
        self.problems.append(text)


def listener(port: int, before: str = "") -> Program:
    command = (sys.executable, "-I", "-S", "-c", LISTEN.format(before=before), str(port))
    return Program("listener", command, dict(os.environ), f"127.0.0.1:{port}")


def shell(script: str) -> Program:
    return Program("script", ("/bin/sh", "-c", script), dict(os.environ), "127.0.0.1:1")


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


async def until(condition: Callable[[], bool], seconds: float = 10) -> None:
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.01)


async def test_a_killed_program_comes_back(tmp_path: Path) -> None:
    [port] = find_free_ports(1)
    output, changes = Lines(), []
    async with open_group() as group, asyncio.TaskGroup() as tasks:
        process = Process(
            listener(port),
            group,
            tmp_path / "listener.log",
            output,
            changed=lambda: changes.append(process.state.state) if "process" in locals() else None,
            restarts=Restarts(first=0.01),
        )
        tasks.create_task(process.run())
        await asyncio.wait_for(process.ready.wait(), 10)
        first = process.state.pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(lambda: not process.ready.is_set())
        await asyncio.wait_for(process.ready.wait(), 10)
        state = process.state
        assert (state.state, state.restarts) == ("ready", 1)
        assert state.pid not in {None, first}
        assert output.problems[0].startswith("listener was ended by SIGKILL after 0.")
        assert await process.stop(5)
    assert not is_alive(first)
    assert process.state.state == "stopped"
    assert process.state.pid is None
    assert output.lines == [("listener", b"listening")] * 2
    assert (tmp_path / "listener.log").read_bytes() == b"listening\n" * 2


async def test_a_program_that_keeps_crashing_is_given_up_with_its_last_lines(tmp_path: Path) -> None:
    output = Lines()
    async with open_group() as group:
        restarts = Restarts(first=0.01, most_at_start=3)
        script = shell("echo one; echo because of this >&2; exit 7")
        process = Process(script, group, tmp_path / "log", output, restarts=restarts)
        await asyncio.wait_for(process.run(), 10)
    assert process.given_up.is_set()
    assert (process.state.state, process.state.restarts) == ("failed", 2)
    assert process.state.note.startswith("exited with status 7 after")
    assert [text for _, text in output.lasts] == [b"one", b"because of this"]
    assert "given up" in output.problems[-1]
    assert (tmp_path / "log").read_bytes().count(b"because of this\n") == 3


async def test_a_program_that_can_not_be_started_is_told(tmp_path: Path) -> None:
    output = Lines()
    program = Program("ghost", ("/nowhere/ghost",), {}, "127.0.0.1:1")
    async with open_group() as group:
        process = Process(program, group, tmp_path / "log", output, restarts=Restarts(first=0.01))
        await asyncio.wait_for(process.run(), 10)
    assert output.lasts == [("ghost", b"/nowhere/ghost: No such file or directory")]


async def test_stop_between_two_tries(tmp_path: Path) -> None:
    output = Lines()
    async with open_group() as group, asyncio.TaskGroup() as tasks:
        process = Process(shell("exit 1"), group, tmp_path / "log", output, restarts=Restarts(first=60))
        running = tasks.create_task(process.run())
        await until(lambda: process.state.state == "waiting")
        await process.stop(5)
        await asyncio.wait_for(running, 10)
    assert process.state.state == "stopped"


async def test_a_program_that_does_not_end_is_killed(tmp_path: Path) -> None:
    [port] = find_free_ports(1)
    output = Lines()
    async with open_group() as group, asyncio.TaskGroup() as tasks:
        process = Process(listener(port, STUBBORN), group, tmp_path / "log", output)
        tasks.create_task(process.run())
        await asyncio.wait_for(process.ready.wait(), 10)
        pid = process.state.pid
        assert pid is not None
        assert not await process.stop(0.2)
        assert not is_alive(pid)
    assert output.problems == ["listener did not end within 0 s; killed"]


async def test_a_grandchild_that_keeps_the_pipe_does_not_keep_the_supervisor(tmp_path: Path) -> None:
    output = Lines()
    async with open_group() as group:
        program = shell("sleep 60 & echo started; exit 2")
        process = Process(program, group, tmp_path / "log", output)
        await asyncio.wait_for(process.run(), 5)
    assert output.lines == [("script", b"started")]


async def test_output_without_newlines_and_with_any_bytes(tmp_path: Path) -> None:
    output = Lines()
    async with open_group() as group:
        program = shell(r"head -c 3000000 /dev/zero | tr '\0' x; printf '\n\377\nend'; exit 2")
        process = Process(program, group, tmp_path / "log", output)
        await asyncio.wait_for(process.run(), 10)
    texts = [text for _, text in output.lines]
    assert sum(len(text) for text in texts[:-2]) == 3_000_000
    assert texts[-2:] == [b"\xff", b"end"]


SUPERVISOR = """
import asyncio, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
from maestro_sdk.cli.supervisor import Process, open_group
from {module} import Lines, STUBBORN, listener

async def main():
    async with open_group() as group, asyncio.TaskGroup() as tasks:
        found = []
        for number, before in enumerate(["", STUBBORN]):
            process = Process(listener({ports}[number], before), group, Path({folder!r}) / str(number), Lines())
            tasks.create_task(process.run())
            await process.ready.wait()
            found.append(process.state.pid)
        print(group.id, *found, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def test_death_of_the_supervisor_leaves_nobody(tmp_path: Path) -> None:
    here = Path(__file__)
    script = SUPERVISOR.format(tests=str(here.parent), module=here.stem, ports=find_free_ports(2), folder=str(tmp_path))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        pids = [int(text) for text in supervisor.stdout.readline().split()]
        assert len(pids) == 3
        assert all(is_alive(pid) for pid in pids)
        supervisor.kill()
    end = time.monotonic() + 10
    while any(is_alive(pid) for pid in pids) and time.monotonic() < end:
        time.sleep(0.02)
    assert [pid for pid in pids if is_alive(pid)] == []


def test_pauses_grow_and_a_long_life_forgives() -> None:
    restarts = Restarts(first=0.5, longest=2.0, settled=10, most=6)
    assert [restarts.after(lived=1, status=1, was_up=True) for _ in range(6)] == [0.5, 1.0, 2.0, 2.0, 2.0, None]
    restarts = Restarts(first=0.5, most=3)
    assert restarts.after(lived=1, status=1, was_up=True) == 0.5
    assert restarts.after(lived=60, status=1, was_up=True) == 0.5
    assert restarts.after(lived=1, status=1, was_up=True) == 0.5
    assert restarts.total == 3


def test_fewer_tries_for_what_never_was_up_and_none_for_a_wrong_configuration() -> None:
    restarts = Restarts(most=5, most_at_start=2)
    assert restarts.after(lived=1, status=1, was_up=False) is not None
    assert restarts.after(lived=1, status=1, was_up=False) is None
    assert Restarts().after(lived=100, status=2, was_up=True) is None


@pytest.mark.parametrize(
    ("status", "text"),
    [
        (0, "exited with status 0"),
        (-9, "was ended by SIGKILL"),
        (-15, "was ended by SIGTERM"),
        (-99, "was ended by signal 99"),
    ],
)
def test_ends_in_words(status: int, text: str) -> None:
    assert told(status) == text
