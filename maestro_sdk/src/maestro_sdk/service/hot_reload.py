"""What of a configuration may change while a mesh runs, and how a change of its file is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, cast

import yaml

from maestro_sdk.service.config_file import display_name
from maestro_sdk.service.consistency import contradictions
from maestro_sdk.service.settings import Config, ConfigError, Problem, load

POLL = 0.5
"""Seconds between two looks at the file; a change is taken once the file stays as it is from one look to the next."""
HOT = (
    *("routes", "aliases", "tenants", "limits", "budgets"),
    *("router.breaker", "router.quarantine", "router.pin", "router.pins"),
)
"""Sections that may change while the mesh runs. Addresses, adapters and keys need a restart of those they concern."""

_EMPTY = "says nothing, so a mesh that runs stays as it is; start it anew to have the defaults"


async def changes(file: Path | None, asked: asyncio.Event) -> AsyncIterator[None]:
    """Yields each time that `file` has changed, and when `asked` is set, which it clears."""
    taken = seen = _stamp(file)
    while True:
        with suppress(TimeoutError):
            async with asyncio.timeout(POLL):
                await asked.wait()
        now = _stamp(file)
        # A file that is being written is not read: half of it might be a valid one.
        if asked.is_set() or (now == seen and now != taken):
            asked.clear()
            taken = now
            yield
        seen = now


def reread(file: Path | None) -> Config:
    """The configuration of a running mesh, read again: as `load`, but a file that says nothing is refused.

    At a start it means the defaults. Later it is what a full disk or an editor left, and would take all rules away.
    """
    with suppress(OSError, ValueError, yaml.YAMLError):  # `load` tells these, with their lines
        if file is not None and yaml.compose(file.read_text(encoding="utf-8"), Loader=yaml.SafeLoader) is None:
            raise ConfigError([Problem(display_name(file), "", _EMPTY)])
    return load(file)


def merge(current: Config, fresh: Config) -> Config:
    """`current` with the hot sections of `fresh`. Raises `ConfigError` when they contradict what stays."""
    router = current.router.model_copy(
        update={
            "breaker": fresh.router.breaker,
            "quarantine": fresh.router.quarantine,
            "pin": fresh.router.pin,
            "pins": fresh.router.pins,
        }
    )
    merged = current.model_copy(
        update={
            "routes": fresh.routes,
            "aliases": fresh.aliases,
            "tenants": fresh.tenants,
            "limits": fresh.limits,
            "budgets": fresh.budgets,
            "router": router,
        }
    )
    if wrong := list(contradictions(merged)):
        raise ConfigError([fresh.problem_at(".".join(map(str, path)), message) for path, message in wrong])
    return merged


def differences(one: Any, other: Any, path: str = "") -> Iterator[str]:
    """The dotted paths at which two plain values differ, without what stands there."""
    if isinstance(one, dict) and isinstance(other, dict):
        left, right = cast("dict[str, Any]", one), cast("dict[str, Any]", other)
        for key in sorted({*left, *right}):
            yield from differences(left.get(key), right.get(key), f"{path}.{key}" if path else key)
    elif one != other:
        yield path


def changed_paths(current: Config, fresh: Config) -> tuple[list[str], list[str]]:
    """The dotted paths that differ: those that `merge` takes, and those that need a restart."""
    changed = list(differences(_plain(current), _plain(fresh)))
    return [path for path in changed if _is_hot(path)], [path for path in changed if not _is_hot(path)]


def _plain(config: Config) -> dict[str, Any]:
    return config.model_dump(mode="json", exclude_none=True)


def _is_hot(path: str) -> bool:
    return any(path == section or path.startswith(f"{section}.") for section in HOT)


def _stamp(file: Path | None) -> tuple[int, int, int] | None:
    """What changes when the file does; None while there is none."""
    if file is None:
        return None
    try:
        found = file.stat()
    except OSError:
        return None
    return found.st_mtime_ns, found.st_size, found.st_ino
