"""The data folder of a mesh: its key, its state, its logs, and the lock that says that it runs."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

MESH_TOKEN = "mesh-token"  # noqa: S105 - the name of a file
"""Name of the file that keeps the token of a mesh which was given none."""
_LEAST_SPACE = 16 * 2**10


@dataclass(frozen=True, slots=True)
class ProcessState:
    """One process as `maestro status` shows it. `since` is the time of its last change, in seconds since 1970."""

    name: str
    state: str
    pid: int | None
    address: str
    restarts: int
    since: float
    note: str = ""


@dataclass(frozen=True, slots=True)
class MeshState:
    """A mesh: `state` is starting, ready, stopping or failed."""

    state: str
    url: str
    admin: str
    pid: int
    started: float
    config: str
    processes: tuple[ProcessState, ...] = field(default=())

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> MeshState:
        """The state that `Folder.write_state` wrote."""
        values: dict[str, Any] = {**data, "processes": tuple(ProcessState(**each) for each in data["processes"])}
        return cls(**values)


class Folder:
    """Paths and small files below the data folder. Nobody but its owner can read what stands in it."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.run = root / "run"
        self.log = root / "log"
        self.nats = root / "nats"
        self._state = self.run / "state.json"
        self._lock = self.run / "lock"

    def create(self) -> None:
        """Makes the folders. Raises `OSError` where that is not possible."""
        for each in (self.root, self.run, self.log, self.nats):
            each.mkdir(mode=0o700, parents=True, exist_ok=True)

    def write(self, name: str, text: str) -> Path:
        """Writes a file of this run, readable by its owner only, and returns its path. Raises `OSError`."""
        path = self.run / name
        beside = path.with_name(f".{name}.{os.getpid()}")
        try:
            beside.write_text("")
            beside.chmod(0o600)
            beside.write_text(text)
            beside.replace(path)
        except OSError:
            with contextlib.suppress(OSError):
                beside.unlink()
            raise
        return path

    def is_full(self) -> bool:
        """Whether nothing can be written here for want of space."""
        return shutil.disk_usage(self.root).free < _LEAST_SPACE

    def lock(self) -> int | None:
        """Takes the lock and returns its descriptor, which holds it until this process ends; None when it is taken."""
        descriptor = os.open(self._lock, os.O_RDWR | os.O_CREAT, 0o600)
        for _ in range(10):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                time.sleep(0.01)  # somebody may only be looking, see `is_running`
            else:
                return descriptor
        os.close(descriptor)
        return None

    def is_running(self) -> bool:
        """Whether a supervisor holds the lock."""
        if not self._lock.exists():
            return False
        descriptor = os.open(self._lock, os.O_RDONLY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        finally:
            os.close(descriptor)
        return False

    def write_state(self, state: MeshState) -> None:
        """Makes `state` visible to the other commands."""
        self.write(self._state.name, json.dumps(asdict(state), indent=1))

    def read_state(self) -> MeshState | None:
        """The last state written, or None; whether it still holds is what `is_running` says."""
        try:
            return MeshState.from_json(json.loads(self._state.read_text()))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def development_key(self) -> str:
        """The key for development: made once, kept in a file that only its owner can read."""
        return _kept(self.root / "key", lambda: f"mk-{secrets.token_hex(16)}")

    def mesh_token(self) -> str:
        """The token of a mesh that was given none, kept likewise, so that processes started apart may have it, too."""
        return _kept(self.root / MESH_TOKEN, lambda: secrets.token_hex(32))


def _kept(path: Path, make: Callable[[], str]) -> str:
    """The secret in a file that only its owner can read, made where there is none."""
    try:
        if found := path.read_text().strip():
            return found
    except FileNotFoundError:
        pass
    made = make()
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(made + "\n")
    return made


class LogFile:
    """Appends lines; at `limit` bytes the file becomes `NAME.1`, and so on up to `keep` old ones.

    Where a line can't be written, on a full disk above all, it is lost, and nothing else is.
    """

    def __init__(self, path: Path, *, limit: int = 10 * 2**20, keep: int = 3) -> None:
        self._path = path
        self._limit = limit
        self._keep = keep
        # Without a buffer: what could not be written must not wait in one, and fail again when it is closed.
        self._file = path.open("ab", buffering=0)

    def write(self, line: bytes) -> None:
        with contextlib.suppress(OSError):
            self._append(line)

    def _append(self, line: bytes) -> None:
        self._file.write(line + b"\n")
        if self._file.tell() >= self._limit:
            self._file.close()
            for number in range(self._keep, 0, -1):
                older = self._path.with_name(f"{self._path.name}.{number}")
                newer = self._path.with_name(f"{self._path.name}.{number - 1}") if number > 1 else self._path
                if newer.exists():
                    newer.replace(older)
            self._file = self._path.open("ab", buffering=0)

    def close(self) -> None:
        self._file.close()
