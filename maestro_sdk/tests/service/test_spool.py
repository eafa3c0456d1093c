"""The queue on disk: order, bounds, and what is left after a death at any byte."""

from __future__ import annotations

import os
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TypeAlias

import pytest

from maestro_sdk.service.spool import Spool

RECORDS = [b"one", b"", b"three" * 100, b"four"]
Open: TypeAlias = Callable[..., Spool]


@pytest.fixture
def opened(tmp_path: Path) -> Generator[Open]:
    """Opens the spool of the test again and again, the one before is closed first unless it is to be `kept` open."""
    open_ones: list[Spool] = []

    def open_one(limit: int = 10_000, *, kept: bool = False) -> Spool:
        while open_ones and not kept:
            open_ones.pop().close()
        open_ones.append(Spool(tmp_path / "a.events", limit).open())
        return open_ones[-1]

    yield open_one
    for spool in open_ones:
        spool.close()


def test_records_come_back_in_order_also_after_a_restart(opened: Open) -> None:
    spool = opened()
    assert spool.append(RECORDS) == len(RECORDS)
    assert spool.peek(2) == RECORDS[:2]
    spool.drop(RECORDS[:1])
    spool = opened()
    assert (len(spool), spool.peek(9)) == (3, RECORDS[1:])
    spool.drop(RECORDS[1:])
    assert (len(spool), spool.peek(9)) == (0, [])
    assert spool.path.exists()
    assert opened().append([]) == 0


def test_a_death_in_the_middle_of_writing_costs_only_the_torn_record(opened: Open) -> None:
    spool = opened()
    spool.append(RECORDS)
    whole = spool.path.read_bytes()
    for cut in range(1, len(RECORDS[-1]) + 8 + 1):
        spool = opened()
        spool.path.write_bytes(whole[:-cut])
        spool = opened()
        assert spool.peek(9) == RECORDS[:-1]
        assert spool.append([b"next"]) == 1
        assert spool.peek(9) == [*RECORDS[:-1], b"next"]


def test_a_record_that_was_changed_ends_the_queue(opened: Open) -> None:
    spool = opened()
    spool.append(RECORDS)
    data = bytearray(spool.path.read_bytes())
    data[data.index(b"three")] ^= 1
    spool.path.write_bytes(data)
    assert opened().peek(9) == RECORDS[:2]


def test_a_foreign_file_is_put_aside(opened: Open, tmp_path: Path) -> None:
    (tmp_path / "a.events").write_text("somebody's notes")
    spool = opened()
    spool.append(RECORDS)
    assert spool.peek(9) == RECORDS
    assert (tmp_path / "a.unreadable").read_text() == "somebody's notes"


def test_the_bound_holds_and_freed_space_is_used_again(opened: Open) -> None:
    spool = opened(1000)
    record, other = b"x" * 92, b"y" * 92
    assert spool.append([record] * 20) == 9
    assert spool.append([record]) == 0
    spool.drop([record] * 6)
    assert spool.append([other] * 20) == 6
    assert spool.path.stat().st_size <= 1000
    assert spool.peek(20) == [record] * 3 + [other] * 6
    assert opened(1000).peek(20) == [record] * 3 + [other] * 6


def test_two_processes_take_two_files(opened: Open, tmp_path: Path) -> None:
    first, second = opened(), opened(kept=True)
    assert (first.path, second.path) == (tmp_path / "a.events", tmp_path / "a-1.events")
    first.append(RECORDS)
    second.append(RECORDS[:1])
    assert (first.peek(9), second.peek(9)) == (RECORDS, RECORDS[:1])


def test_a_long_record_is_read_whole(opened: Open) -> None:
    spool = opened(10**7)
    long = os.urandom(3_000_000)
    spool.append([b"a", long, b"b"])
    assert spool.peek(9) == [b"a", long, b"b"]
