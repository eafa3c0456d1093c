"""A changed configuration is applied as a whole, or rejected with its reasons."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
import yaml
from google.protobuf.message import Message

from maestro.event.v1.event_pb2 import ConfigRejected, ConfigReloaded
from maestro_router.reload import Reload
from maestro_sdk.mesh.table import STRATEGIES
from maestro_sdk.service.hot_reload import differences, merge
from maestro_sdk.service.settings import Config, ConfigError, load

BASE: dict[str, Any] = {
    "adapters": {"a": {"address": "127.0.0.1:1"}, "b": {"address": "127.0.0.1:2"}},
    "routes": {"default": {"targets": ["p/one"]}},
    "aliases": {},
}


class Bench:
    """A configuration file that is followed, and what came of it."""

    def __init__(self, folder: Path) -> None:
        self.file = folder / "maestro.yaml"
        self.write(BASE)
        self.applied: list[Config] = []
        self.events: list[Message] = []
        self.reload = Reload(load(self.file), self.applied.append, lambda subject, payload: self.events.append(payload))

    def write(self, document: dict[str, Any] | str) -> None:
        text = document if isinstance(document, str) else yaml.safe_dump(document)
        fresh = self.file.with_suffix(".new")
        fresh.write_text(text)
        fresh.replace(self.file)

    async def run(self, body: Callable[[], Awaitable[None]]) -> None:
        watching = asyncio.create_task(self.reload.run())
        try:
            await body()
        finally:
            watching.cancel()
            with suppress(asyncio.CancelledError):
                await watching


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


def changed(**sections: Any) -> dict[str, Any]:
    return {**BASE, **sections}


def test_routes_are_taken_at_once_and_told(bench: Bench) -> None:
    bench.write(changed(routes={"default": {"targets": ["p/two"]}}, aliases={"fast": "p/two"}))
    bench.reload.read()
    assert [target.model for target in bench.applied[0].routes["default"].targets] == ["p/two"]
    assert bench.applied[0].aliases == {"fast": "p/two"}
    (event,) = bench.events
    assert isinstance(event, ConfigReloaded)
    assert list(event.changed_paths) == ["aliases.fast", "routes.default.targets"]
    assert len(event.digest) == 64


def test_what_needs_a_restart_waits_for_it(bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
    adapters = {**BASE["adapters"], "a": {"address": "127.0.0.1:9"}}
    bench.write(changed(adapters=adapters, router={"pin": "b", "address": "127.0.0.1:7"}))
    bench.reload.read()
    assert bench.applied[0].router.pin == "b"
    assert bench.applied[0].adapters["a"].address == "127.0.0.1:1"
    assert bench.applied[0].router.address == "127.0.0.1:50052"
    assert "needs a restart to take effect: adapters.a.address, router.address" in caplog.text


def test_the_same_again_is_no_change(bench: Bench) -> None:
    bench.write(changed(routes={"default": {"targets": [{"model": "p/one", "weight": 1.0}]}}))
    bench.reload.read()
    assert not bench.applied
    assert not bench.events


EMPTY = "says nothing, so a mesh that runs stays as it is; start it anew to have the defaults"
LUCK = """\
adapters: {a: {address: 'h:1'}}
routes:
  default:
    strategy: luck
    targets: [p/one]
aliases: {}
"""
STRANGER = """\
adapters: {a: {address: 'h:1'}, c: {address: 'h:2'}}
router:
  pin: c
routes: {default: {targets: [p/one]}}
"""


@pytest.mark.parametrize(
    ("document", "line", "path", "message"),
    [
        (LUCK, 4, "routes.default.strategy", f"'luck' is not one of {', '.join(STRATEGIES)}"),
        ("routes: [", None, "", "not YAML: expected the node content, but found '<stream end>'"),
        # The file knows the adapter, but the mesh that runs does not.
        (STRANGER, 3, "router.pin", "'c' is not an adapter; there are: a, b"),
    ],
)
def test_a_wrong_file_changes_nothing(bench: Bench, document: str, line: int | None, path: str, message: str) -> None:
    bench.write(document)
    bench.reload.read()
    assert not bench.applied
    (event,) = bench.events
    assert isinstance(event, ConfigRejected)
    problem = event.problems[0]
    assert (problem.path, problem.message) == (path, message)
    if line is not None:
        assert (Path(problem.file).name, problem.line) == ("maestro.yaml", line)
    bench.write(changed(aliases={"fast": "p/one"}))
    bench.reload.read()
    assert bench.applied[0].aliases == {"fast": "p/one"}


def test_a_file_that_is_gone_changes_nothing(bench: Bench) -> None:
    bench.file.unlink()
    bench.reload.read()
    assert isinstance(bench.events[0], ConfigRejected)
    assert bench.events[0].problems[0].message == "there is no such file"


@pytest.mark.parametrize("text", ["", "\n", "# routes: {}\n"])
def test_a_file_that_was_emptied_changes_nothing(bench: Bench, text: str) -> None:
    """A full disk or an editor that stops midway leaves one, and the defaults would let tenants out of their bounds."""
    bench.write(text)
    bench.reload.read()
    assert not bench.applied
    assert isinstance(bench.events[0], ConfigRejected)
    assert bench.events[0].problems[0].message == EMPTY


async def test_a_change_of_the_file_is_noticed(bench: Bench) -> None:
    async def body() -> None:
        await asyncio.sleep(0)  # The watch has begun.
        bench.write(changed(aliases={"fast": "p/one"}))
        async with asyncio.timeout(10):
            while not bench.applied:
                await asyncio.sleep(0.02)

    await bench.run(body)
    assert [config.aliases for config in bench.applied] == [{"fast": "p/one"}]


def test_pins_to_strangers_contradict_what_stays(bench: Bench) -> None:
    fresh = load(bench.file).model_copy(update={"aliases": {"x": "x"}})
    with pytest.raises(ConfigError) as caught:
        merge(load(bench.file), fresh)
    assert "goes round in a circle: x → x" in str(caught.value)


def test_differences_name_places_and_no_values() -> None:
    one = {"a": {"b": 1, "c": [1]}, "d": "secret"}
    assert list(differences(one, {"a": {"b": 2, "c": [1]}, "e": 1})) == ["a.b", "d", "e"]
