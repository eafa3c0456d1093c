"""`maestro up` with the real Envoy, NATS and services, on free ports; and the other commands beside it."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from typer.testing import CliRunner, Result

from maestro_sdk.cli.api import Api, ApiError
from maestro_sdk.cli.app import app
from maestro_sdk.cli.folder import Folder, MeshState
from maestro_sdk.testing.chaos.record import read_events

pytestmark = pytest.mark.timeout(180)
CONFIG = """
version: 1
gateway: {keys: [{tenant: development, key: {env: MAESTRO_KEY}}]}
adapters:
  local: {module: maestro_adapter_local, address: 127.0.0.1:50065, settings: {offline: {pace: 10ms}}}
  claude: {module: maestro_adapter_claude, address: 127.0.0.1:50061, enabled: {env: ANTHROPIC_API_KEY}}
routes: {default: {targets: [local/offline]}}
aliases: {fast: local/offline}
grace: 20s
"""
PRIVATE = ("MAESTRO_", "ANTHROPIC_", "OPENAI_")


class Maestro:
    """The command, with a configuration and a data folder of its own."""

    def __init__(self, root: Path) -> None:
        self.file = root / "maestro.yaml"
        self.file.write_text(CONFIG)
        self.data = root / "data"
        self.folder = Folder(self.data)
        self._environment = {name: value for name, value in os.environ.items() if not name.startswith(PRIVATE)}

    def run(self, *arguments: str, text: str = "", **more: str) -> subprocess.CompletedProcess[str]:
        command = [sys.executable, "-m", "maestro_sdk.cli", *arguments]
        environment = self._environment | more
        return subprocess.run(
            command, env=environment, cwd=self.data.parent, input=text, capture_output=True, text=True, check=False
        )

    def ask(self, *arguments: str, text: str = "") -> Result:
        """A client command, in this process: most of its time would be Python's start."""
        hidden = dict.fromkeys(name for name in os.environ if name.startswith(PRIVATE))
        return CliRunner().invoke(app, [*arguments, "--data", str(self.data)], input=text, env=hidden)

    def up(self) -> subprocess.CompletedProcess[str]:
        return self.run("up", "--detach", "--port", "0", "--free-ports", "--data", str(self.data))

    def status(self) -> dict[str, Any]:
        return json.loads(self.ask("status", "--json").stdout)

    def pids(self) -> dict[str, int]:
        state = self.folder.read_state()
        assert state is not None
        return {each.name: each.pid for each in state.processes if each.pid} | {"supervisor": state.pid}


@pytest.fixture(scope="module")
def maestro(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Maestro]:
    found = Maestro(tmp_path_factory.mktemp("mesh"))
    yield found
    found.run("down", "--data", str(found.data))


@pytest.fixture
def mesh(maestro: Maestro) -> Maestro:
    """The mesh, running; it is started where the test before has stopped it."""
    if not maestro.folder.is_running():
        result = maestro.up()
        assert result.returncode == 0, result.stdout + result.stderr
    return maestro


def is_alive(pid: int) -> bool:
    """Whether a process runs; one that has ended and waits to be reaped does not."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def key_of(mesh: Maestro) -> str:
    return (mesh.data / "key").read_text().strip()


def test_ready_in_one_line_and_answering(maestro: Maestro) -> None:
    result = maestro.up()
    assert result.returncode == 0, result.stdout + result.stderr
    *progress, ready = result.stdout.splitlines()
    state = maestro.folder.read_state()
    assert state is not None
    assert ready == f"ready  {state.url}  key: {key_of(maestro)}"
    assert {line.split()[1] for line in progress} == {"nats", "adapter-local", "router", "gateway", "envoy"}
    answer = Api(state.url, key_of(maestro)).post("/v1/chat", {"messages": [{"role": "user", "content": "hello"}]})
    assert (answer["provider"], answer["finish_reason"]) == ("local", "stop")
    with pytest.raises(ApiError) as caught:
        Api(state.url, "mk-wrong").get("/v1/models")
    assert (caught.value.status, caught.value.reason) == (401, "UNAUTHENTICATED")
    assert (maestro.data / "key").stat().st_mode & 0o777 == 0o600
    commands = [Path(f"/proc/{pid}/cmdline").read_text() for pid in maestro.pids().values()]
    assert not [command for command in commands if key_of(maestro) in command]


def test_status(mesh: Maestro) -> None:
    status = mesh.status()
    assert (status["state"], status["health"]["status"], status["trouble"]) == ("ready", "ok", None)
    assert {each["state"] for each in status["processes"]} == {"ready"}
    assert {each["name"]: each["pid"] for each in status["processes"]} | {"supervisor": status["pid"]} == mesh.pids()
    shown = mesh.ask("status")
    assert shown.exit_code == 0
    assert "ANTHROPIC_API_KEY is not set" in shown.stdout


def test_chat_models_explain(mesh: Maestro) -> None:
    result = mesh.run("chat", "--data", str(mesh.data), "hello", "there")
    assert (result.returncode, result.stderr) == (0, "")
    assert "“hello there”" in result.stdout
    assert result.stdout.endswith("\n")
    assert "“from a pipe”" in mesh.ask("chat", text="from a pipe\n").stdout
    assert "“ponder this”" in mesh.ask("chat", "ponder", "-", text="this").stdout
    unknown = mesh.ask("chat", "-m", "no/such", "hello")
    assert (unknown.exit_code, unknown.stdout) == (1, "")
    assert unknown.stderr.startswith("NOT_FOUND: ")
    assert mesh.ask("chat", text=" \n").exit_code == 2
    assert "local/offline" in mesh.ask("models").stdout
    models = json.loads(mesh.ask("models", "--json").stdout)
    assert models["aliases"] == {"fast": "local/offline"}
    explained = json.loads(mesh.ask("explain", "--json", "-m", "fast").stdout)
    assert [each["model"] for each in explained["candidates"] if each["kept"]] == ["local/offline"]
    assert mesh.ask("explain", "-m", "no/such", "hello").exit_code == 1
    wrong = mesh.ask("models", "--key", "mk-wrong")
    assert (wrong.exit_code, wrong.stderr.startswith("UNAUTHENTICATED: ")) == (1, True)


def test_a_changed_file_takes_effect_while_the_mesh_runs(mesh: Maestro) -> None:
    state = mesh.folder.read_state()
    assert state is not None
    before, api = mesh.pids(), Api(state.url, key_of(mesh))

    def wait_for(done: Callable[[], bool]) -> None:
        end = time.monotonic() + 20
        while not done():
            assert time.monotonic() < end
            time.sleep(0.05)

    def aliases() -> list[str]:
        return sorted(api.get("/v1/models")["aliases"])

    try:
        mesh.file.write_text(CONFIG.replace("aliases: {fast", "aliases: {quick: local/offline, fast"))
        wait_for(lambda: aliases() == ["fast", "quick"])
        assert api.post("/v1/chat", {"model": "quick", "messages": [{"role": "user", "content": "hi"}]})["text"]
        mesh.file.write_text(CONFIG.replace("aliases: {fast", "aliases: {loop: loop, fast"))
        os.kill(before["supervisor"], signal.SIGHUP)
        log = mesh.folder.log / "maestro.log"
        wait_for(lambda: "configuration rejected, the old one stays" in log.read_text())
        assert "aliases.loop: goes round in a circle: loop → loop" in log.read_text()
        assert ("supervisor", "aliases.loop", "goes round in a circle: loop → loop") in rejections(state)
        assert aliases() == ["fast", "quick"]
    finally:
        mesh.file.write_text(CONFIG)
    wait_for(lambda: aliases() == ["fast"])
    assert mesh.pids() == before


def test_a_configuration_that_can_not_be_handed_on_ends_nothing(mesh: Maestro) -> None:
    before, log, handed = mesh.pids(), mesh.folder.log / "maestro.log", mesh.folder.run / "maestro.yaml"
    last = handed.read_text()

    def hang_up_until(done: Callable[[], bool]) -> None:
        os.kill(before["supervisor"], signal.SIGHUP)
        end = time.monotonic() + 20
        while not done():
            assert time.monotonic() < end
            time.sleep(0.05)

    handed.unlink()
    handed.mkdir()  # as a full disk has it: nothing can be written there
    hang_up_until(lambda: "can't be handed on, the old one stays" in log.read_text())
    handed.rmdir()
    hang_up_until(handed.is_file)
    assert handed.read_text() == last
    assert mesh.pids() == before


def rejections(state: MeshState) -> list[tuple[str, str, str]]:
    """Service, path and message of every problem of a configuration that the stream of events tells, the last first."""
    nats = next(each.address for each in state.processes if each.name == "nats")

    async def read() -> list[tuple[str, str, str]]:
        async with asyncio.timeout(20):
            while True:
                events = await read_events(nats, quiet=0.3)
                told = [event.config_rejected for event in events if event.kind == "config.rejected"]
                if told:
                    return [(each.service, problem.path, problem.message) for each in told for problem in each.problems]

    return asyncio.run(read())


def test_a_second_mesh_in_the_same_folder_is_told_where_the_first_is(mesh: Maestro) -> None:
    pids = mesh.pids()
    result = mesh.up()
    state = mesh.folder.read_state()
    assert state is not None
    assert result.returncode == 0
    assert result.stdout.startswith(f"already running  {state.url} (process {state.pid}, ready)")
    assert mesh.pids() == pids


def test_a_killed_adapter_comes_back(mesh: Maestro) -> None:
    before = mesh.pids()
    os.kill(before["adapter-local"], signal.SIGKILL)
    end = time.monotonic() + 30
    while True:
        status = mesh.status()
        adapter = next(each for each in status["processes"] if each["name"] == "adapter-local")
        if (adapter["state"], adapter["restarts"]) == ("ready", 1) and status["health"]["status"] == "ok":
            break
        assert time.monotonic() < end, status
        time.sleep(0.05)
    assert adapter["note"].startswith("was ended by SIGKILL")
    after = mesh.pids()
    assert after.pop("adapter-local") != before.pop("adapter-local")
    assert after == before


def test_a_state_that_can_not_be_written_ends_nothing(mesh: Maestro) -> None:
    before = mesh.pids()
    api = Api(mesh.status()["url"], key_of(mesh))
    state = mesh.folder.run / "state.json"
    state.unlink()
    state.mkdir()  # even root can't put a file in its place
    try:
        os.kill(before["adapter-local"], signal.SIGKILL)
        until(lambda: answers(api))
        assert is_alive(before["supervisor"])
    finally:
        state.rmdir()
    until(state.exists)
    assert mesh.pids()["adapter-local"] != before["adapter-local"], "what happened meanwhile is told now"


def answers(api: Api) -> bool:
    """Whether a chat that needs the adapter is answered."""
    try:
        answer = api.post("/v1/chat", {"model": "fast", "messages": [{"role": "user", "content": "hello"}]})
    except ApiError:
        return False
    return answer["finish_reason"] == "stop"


def until(holds: Callable[[], bool]) -> None:
    """Waits for something that takes some seconds at most."""
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.1)


def test_down_lets_a_running_stream_end(mesh: Maestro) -> None:
    state = mesh.folder.read_state()
    assert state is not None
    pids = mesh.pids()
    parts = urlsplit(state.url)
    # The offline model repeats what it was told, a word every 10 ms: some seconds in all.
    body = json.dumps({"stream": True, "messages": [{"role": "user", "content": "word " * 400}]})
    connection = http.client.HTTPConnection(parts.hostname or "", parts.port, timeout=60)
    connection.request("POST", "/v1/chat", body, {"authorization": f"Bearer {key_of(mesh)}"})
    with contextlib.closing(connection), connection.getresponse() as response, ThreadPoolExecutor() as threads:
        assert (response.status, response.readline()) == (200, b"event: started\n")
        stopping = threads.submit(mesh.run, "down", "--data", str(mesh.data))
        lines = response.read().splitlines()
        result = stopping.result()
    assert b"event: finish" in lines
    assert lines[-2:] == [b"data: [DONE]", b""]
    assert (result.returncode, result.stdout) == (0, "stopped\n")
    assert [name for name, pid in pids.items() if is_alive(pid)] == []
    again = mesh.ask("down")
    assert (again.exit_code, again.stdout) == (0, "not running\n")
    assert mesh.ask("status").exit_code == 1


def test_killing_the_supervisor_leaves_nobody(mesh: Maestro) -> None:
    pids = mesh.pids()
    os.kill(pids["supervisor"], signal.SIGKILL)
    end = time.monotonic() + 15
    while left := [name for name, pid in pids.items() if is_alive(pid)]:
        assert time.monotonic() < end, left
        time.sleep(0.05)
    assert mesh.ask("down").stdout == "not running\n"


def test_a_port_in_use_is_one_line(maestro: Maestro) -> None:
    data = str(maestro.data.with_name("other"))
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        result = maestro.run("up", "--detach", "--port", str(port), "--free-ports", "--data", data)
    assert result.returncode == 1
    assert result.stdout.splitlines()[0].startswith(f"port {port} for envoy (envoy.address) is in use by ")


def test_a_wrong_configuration_does_not_start(maestro: Maestro, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text("version: 1\ngateway:\n  max_body: much\n  pong: 3\n")
    result = maestro.run("up", "--config", str(file), "--data", str(tmp_path / "data"))
    assert result.returncode == 1
    lines = result.stdout.splitlines()
    assert len(lines) == 2
    assert {line.split(": ")[0].rpartition(":")[2] for line in lines} == {"3", "4"}
    assert not (tmp_path / "data").exists()
    checked = maestro.run("config", "check", str(file))
    assert (checked.returncode, checked.stdout.splitlines()) == (1, lines)
    assert checked.stderr == "2 problems\n"
    fine = maestro.run("config", "check")
    assert (fine.returncode, fine.stdout) == (0, "fine: adapters local; off: claude\n")


def test_an_adapter_with_wrong_settings_stops_the_start_with_its_own_words(maestro: Maestro, tmp_path: Path) -> None:
    file = tmp_path / "wrong.yaml"
    file.write_text(CONFIG.replace("pace: 10ms", "pace: often"))
    data = str(tmp_path / "data")
    began = time.monotonic()
    result = maestro.run("up", "--config", str(file), "--port", "0", "--free-ports", "--data", data)
    assert result.returncode == 1
    assert "adapter-local exited with status 2" in result.stdout
    assert "pace" in result.stdout
    assert "the mesh did not start" in result.stdout
    assert time.monotonic() - began < 30
