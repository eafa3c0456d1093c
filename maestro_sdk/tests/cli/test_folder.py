"""The data folder: lock, state, logs; and the ports of this machine."""

from __future__ import annotations

import errno
import io
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from maestro_sdk.cli.console import Console
from maestro_sdk.cli.folder import Folder, LogFile, MeshState, ProcessState
from maestro_sdk.cli.ports import Listener, find_conflicts
from maestro_sdk.service.free_ports import find_free_ports


@pytest.fixture
def folder(tmp_path: Path) -> Folder:
    found = Folder(tmp_path / "data")
    found.create()
    return found


def test_one_supervisor_per_folder(folder: Folder) -> None:
    assert not folder.is_running()
    descriptor = folder.lock()
    assert descriptor is not None
    code = """
import sys
from pathlib import Path
from maestro_sdk.cli.folder import Folder
folder = Folder(Path(sys.argv[1]))
print(folder.is_running(), folder.lock())
"""
    command = [sys.executable, "-c", code, str(folder.root)]
    assert subprocess.run(command, capture_output=True, text=True, check=True).stdout.split() == ["True", "None"]
    os.close(descriptor)
    assert not folder.is_running()


def test_state_survives_and_broken_state_is_none(folder: Folder) -> None:
    process = ProcessState("gateway", "ready", 7, "127.0.0.1:1", 0, 1.5, "")
    state = MeshState("ready", "http://127.0.0.1:8080", "http://127.0.0.1:9901", 3, 1.0, "/x/maestro.yaml", (process,))
    folder.write_state(state)
    assert folder.read_state() == state
    assert (folder.run / "state.json").stat().st_mode & 0o777 == 0o600
    (folder.run / "state.json").write_text('{"state": "ready"')
    assert folder.read_state() is None


def test_nobody_else_reads_the_folder(folder: Folder) -> None:
    assert {path.stat().st_mode & 0o777 for path in (folder.root, folder.run, folder.log, folder.nats)} == {0o700}


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has a device that is always full")
def test_a_line_that_finds_no_space_is_lost_and_nothing_else() -> None:
    log = LogFile(Path("/dev/full"))
    for _ in range(3):
        log.write(b"x" * 10_000)
    log.close()
    # Nor was the full file put aside for a fresh one.
    assert Path("/dev/full").is_char_device()


def test_a_console_on_a_full_disk_goes_on_when_there_is_space_again() -> None:
    class Disk(io.StringIO):
        full = True

        def flush(self) -> None:
            if self.full:
                raise OSError(errno.ENOSPC, "No space left on device")

    disk = Disk()
    console = Console(disk)
    console.problem("held up")
    disk.full = False
    console.problem("told")
    assert disk.getvalue().endswith("told\n")


def test_a_state_that_could_not_be_written_leaves_nothing_behind(folder: Folder) -> None:
    (folder.run / "state.json").mkdir()
    with pytest.raises(OSError, match=r"state\.json"):
        folder.write("state.json", "{}")
    assert [path.name for path in folder.run.iterdir()] == ["state.json"]


def test_logs_rotate_and_lose_no_line(tmp_path: Path) -> None:
    log = LogFile(tmp_path / "a.log", limit=100, keep=2)
    for number in range(30):
        log.write(b"line %02d" % number)
    log.close()
    names = ["a.log.2", "a.log.1", "a.log"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(names)
    lines = b"".join((tmp_path / name).read_bytes() for name in names).split()[1::2]
    assert lines == [b"%02d" % number for number in range(30 - len(lines), 30)]
    assert len(lines) >= 24


def test_conflict_names_port_program_setting_and_owner() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        [line] = find_conflicts([Listener("envoy", "envoy.address", f"127.0.0.1:{port}")])
    assert line.startswith(f"port {port} for envoy (envoy.address) is in use by ")
    assert line.endswith(f"(process {os.getpid()})")


def test_no_conflict_on_free_ports_nor_on_port_0() -> None:
    listeners = [Listener("x", "y", f"127.0.0.1:{port}") for port in (0, *find_free_ports(3))]
    assert find_conflicts(listeners) == []


def test_address_of_another_machine_is_a_conflict() -> None:
    [line] = find_conflicts([Listener("envoy", "envoy.address", "192.0.2.1:8080")])
    assert line == "port 8080 for envoy (envoy.address) on '192.0.2.1': Cannot assign requested address"


def test_free_ports_differ_and_are_none_of_those_for_outgoing_connections() -> None:
    found = set(find_free_ports(50))
    assert len(found) == 50
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    if first > 20000:
        assert max(found) < first
