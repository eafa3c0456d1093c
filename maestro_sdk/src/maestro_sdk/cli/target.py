"""Which mesh a client command talks to: `--url` and `--key`, else the environment, else the mesh of the data folder."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from maestro_sdk.cli.folder import Folder
from maestro_sdk.cli.up import configured, running
from maestro_sdk.service.settings import ConfigError

URL_VARIABLE = "MAESTRO_URL"
KEY_HELP = "Key to ask with; here everybody on the machine can see it, in the environment nobody else."
"""Of the option `--key`. Arguments stand in the list of processes, and nothing portable takes them out of it."""


class NoTarget(Exception):
    """There is no mesh to talk to; the text says what to do."""


@dataclass(frozen=True, slots=True)
class Target:
    """A mesh and the key to ask it with."""

    url: str
    key: str | None


def data_folder(data: Path | None, file: Path | None = None, environment: Mapping[str, str] = os.environ) -> Folder:
    """The data folder: `--data`, else what the configuration says. Raises `NoTarget` when that can't be read."""
    if data is not None:
        return Folder(data.absolute())
    try:
        return Folder(configured(file, None, environment).data)
    except ConfigError as error:
        raise NoTarget(f"{error}\nor name the data folder with --data") from None


def find_target(
    url: str | None, key: str | None, data: Path | None, environment: Mapping[str, str] = os.environ
) -> Target:
    """The mesh to talk to. Raises `NoTarget`."""
    url = url or environment.get(URL_VARIABLE)
    key = key or environment.get("MAESTRO_KEY")
    if url:
        return Target(url if "://" in url else f"http://{url}", key)
    folder = data_folder(data, None, environment)
    state = running(folder)
    if state is None:
        raise NoTarget(f"no mesh is running with its data in {folder.root}: start one with `maestro up`, or give --url")
    return Target(state.url, key or _key_of(folder, environment))


def _key_of(folder: Folder, environment: Mapping[str, str]) -> str | None:
    try:
        return (folder.root / "key").read_text().strip() or None
    except OSError:
        pass
    try:
        keys = configured(folder.run / "maestro.yaml", None, environment).gateway.keys
    except ConfigError:
        return None
    return next((value for entry in keys if (value := entry.key.get(environment))), None)
