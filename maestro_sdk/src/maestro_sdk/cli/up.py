"""`maestro up` and `maestro down`: from a configuration to a running mesh and back."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from rich.text import Text

from maestro_sdk.cli.console import Console
from maestro_sdk.cli.folder import Folder, MeshState
from maestro_sdk.cli.mesh import START_LIMIT, Mesh
from maestro_sdk.cli.ports import find_conflicts
from maestro_sdk.cli.programs import KEY_VARIABLE, Program, freed, listeners, moved, programs
from maestro_sdk.cli.rendering import TemplateError
from maestro_sdk.cli.replicas import introduced, replicas
from maestro_sdk.service.free_ports import find_free_ports
from maestro_sdk.service.meshes import TOKEN_VARIABLE
from maestro_sdk.service.settings import Config, ConfigError, load


@dataclass(frozen=True, slots=True)
class Options:
    """What the caller of `maestro up` asks for; None leaves it to the configuration."""

    file: Path | None = None
    data: Path | None = None
    port: int | None = None
    free_ports: bool = False
    detach: bool = False


def configured(file: Path | None, data: Path | None, environment: Mapping[str, str]) -> Config:
    """The configuration, with another data folder where one is given. Raises `ConfigError`."""
    config = load(file, environment)
    return config if data is None else config.replaced({"data": str(data.absolute())})


def start(options: Options, environment: Mapping[str, str], console: Console) -> int:
    """Starts a mesh; returns the exit code: at the end of the mesh, or with `detach` when it is ready."""
    try:
        config = configured(options.file, options.data, environment)
        config = moved(config, environment, port=options.port, free=find_free_ports)
        if options.free_ports:
            config = freed(config, environment, free=find_free_ports)
        folder = Folder(config.data)
        folder.create()
        if folder.lock() is None:
            return _tell_running(folder, console)
        if conflicts := find_conflicts(listeners(config, environment)):
            for line in conflicts:
                console.problem(line)
            console.say("stop that process, set another address, or use --port and --free-ports")
            return 1
        environment, key, shown = with_key(config, folder, environment)
        environment = with_mesh_token(config, folder, environment)
        further = replicas(config, find_free_ports)
        config = introduced(config, further)
        run = programs(config, further, folder, environment)
    except ConfigError as error:
        for problem in error.problems:
            console.problem(str(problem))
        return 1
    except OSError as error:
        console.problem(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        return 1
    except TemplateError as error:
        console.problem(str(error))
        return 1
    if not config.enabled_adapters(environment):
        console.say("no adapter is enabled: no model will answer", "yellow")
    if options.detach:
        return _start_behind(config, run, folder, console, key, shown)
    mesh = Mesh(config, run, folder, console, key)
    return asyncio.run(mesh.run(lambda: _tell_ready(console, mesh.url, shown)))


def with_key(
    config: Config, folder: Folder, environment: Mapping[str, str]
) -> tuple[Mapping[str, str], str | None, str]:
    """The environment, with a key for development where one is wanted; the key to ask with; how to show it."""
    keys = [entry.key for entry in config.gateway.keys]
    if any(key.env == KEY_VARIABLE for key in keys) and not environment.get(KEY_VARIABLE, "").strip():
        environment = {**environment, KEY_VARIABLE: folder.development_key()}
    for key in keys:
        if value := key.get(environment):
            # Keys of real tenants are not for the terminal; their place is.
            return (
                environment,
                value,
                value if key.env == KEY_VARIABLE else f"${key.env}" if key.env else f"<{key.file}>",
            )
    return environment, None, "none"


def with_mesh_token(config: Config, folder: Folder, environment: Mapping[str, str]) -> Mapping[str, str]:
    """The environment, with a token for the mesh where its processes would have nothing to show each other."""
    named = any(token.env == TOKEN_VARIABLE for token in config.mesh.tokens)
    if not named or config.mesh.tls is not None or any(token.get(environment) for token in config.mesh.tokens):
        return environment
    return {**environment, TOKEN_VARIABLE: folder.mesh_token()}


def stop(folder: Folder, console: Console, *, limit: float) -> int:
    """Stops the mesh of a data folder and waits until it is gone; after `limit` seconds it is killed."""
    state = folder.read_state()
    if not folder.is_running() or state is None:
        console.say("not running")
        return 0
    os.kill(state.pid, signal.SIGTERM)
    if _wait_gone(folder, limit):
        console.say("stopped")
        return 0
    console.problem(f"the mesh did not stop within {limit:.0f} s; killing it")
    os.kill(state.pid, signal.SIGKILL)
    return 0 if _wait_gone(folder, 10) else 1


def _wait_gone(folder: Folder, limit: float) -> bool:
    end = time.monotonic() + limit
    while folder.is_running():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


def _tell_ready(console: Console, url: str, key: str) -> None:
    console.say(Text.assemble(("ready", "bold green"), f"  {url}  key: {key}"))


def _tell_running(folder: Folder, console: Console) -> int:
    state = folder.read_state()
    where = f"{state.url} (process {state.pid}, {state.state})" if state else "in another process"
    console.say(f"already running  {where}; data in {folder.root}; stop it with: maestro down")
    return 0


def _start_behind(
    config: Config, run: list[Program], folder: Folder, console: Console, key: str | None, shown: str
) -> int:
    """Starts the mesh in a process of its own, shows its progress, and returns when it is ready or has failed."""
    began = time.monotonic()
    sys.stdout.flush()
    # No thread has started yet, so a fork is safe; it saves half a second of another Python. The lock goes along.
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = _run_behind(config, run, folder, key)
        finally:
            os._exit(code)
    told: set[str] = set()
    while time.monotonic() - began < START_LIMIT + 60:
        state = folder.read_state()
        if state is not None and state.pid == child:
            for process in state.processes:
                if process.state == "ready" and process.name not in told:
                    told.add(process.name)
                    console.up(process.name, time.monotonic() - began)
            if state.state == "ready":
                console.waiting([])
                _tell_ready(console, state.url, shown)
                return 0
            console.waiting(
                [each.name for each in state.processes if each.name not in told] or ["an answer through Envoy"]
            )
        if os.waitpid(child, os.WNOHANG)[0]:
            break
        time.sleep(0.03)
    console.waiting([])
    log = folder.log / "maestro.log"
    if log.exists():
        for line in log.read_text(errors="replace").splitlines()[-20:]:
            console.say(f"  {line}")
    if folder.is_full():
        console.problem(f"no space is left for {folder.root}")
    console.problem(f"the mesh did not start; more in {folder.log}")
    return 1


def _run_behind(config: Config, run: list[Program], folder: Folder, key: str | None) -> int:
    os.setsid()
    null = os.open(os.devnull, os.O_RDONLY)
    log = os.open(folder.log / "maestro.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    os.dup2(null, 0)
    os.dup2(log, 1)
    os.dup2(log, 2)
    mesh = Mesh(config, run, folder, Console(lines=False), key)
    return asyncio.run(mesh.run(lambda: None))


def running(folder: Folder) -> MeshState | None:
    """The state of the mesh that runs in a data folder, or None."""
    return folder.read_state() if folder.is_running() else None
