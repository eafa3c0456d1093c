"""The file of the last table tells neither of a newer table than it holds, nor gives up when it can't be written."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from maestro.router.v1.router_pb2 import RouteTable
from maestro_sdk.mesh.snapshot import Snapshot


def kept(path: Path) -> int | None:
    """The version in the file; None without one."""
    found = Snapshot(path).load()
    return found[0].version if found else None


def test_tables_that_follow_each_other_are_written_once(tmp_path: Path) -> None:
    path = tmp_path / "routes.binpb"
    snapshot = Snapshot(path)
    for version in (1, 2, 3):
        snapshot.keep(RouteTable(version=version), 100.0 + version / 10)
    assert kept(path) == 1
    renewed = path.stat().st_mtime_ns
    snapshot.confirm(100.9)
    assert path.stat().st_mtime_ns == renewed, "table 1 is no longer what a router stands behind"
    snapshot.confirm(101.2)
    assert kept(path) == 3


def test_what_could_not_be_written_is_written_later(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / "gateway" / "routes.binpb"
    Snapshot(path).keep(RouteTable(version=1), 10.0)
    snapshot, beside = Snapshot(path), path.with_suffix(".new")
    beside.mkdir()  # nothing can be written there, as on a full disk
    renewed = path.stat().st_mtime_ns
    with caplog.at_level(logging.WARNING):
        snapshot.keep(RouteTable(version=2), 100.0)
        for second in range(101, 131):
            snapshot.confirm(float(second))
    assert (kept(path), path.stat().st_mtime_ns) == (1, renewed)
    assert len(caplog.records) == 1, "it is told once, not every second"
    beside.rmdir()
    snapshot.confirm(132.0)
    assert kept(path) == 2
