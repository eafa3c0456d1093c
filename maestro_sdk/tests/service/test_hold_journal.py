"""What a process holds is on its disk: its next life tells it, and the file stays small."""

from __future__ import annotations

from pathlib import Path

from maestro_sdk.service.store.holds import Outcome
from maestro_sdk.service.store.journal import HoldJournal
from maestro_sdk.service.store.memory_holds import MemoryHolds

from .test_holds import balance, hold, reserve, seeded, share


async def test_what_a_process_held_when_it_died_is_told_by_its_next_life(tmp_path: Path) -> None:
    path = tmp_path / "gateway" / "holds.journal"
    before = HoldJournal(path)
    first = MemoryHolds(print, before)
    await seeded(first)
    running, ended, safe, undone = hold(share(4)), hold(share(3)), hold(share(2)), hold(share(1))
    for wish in (running, ended, safe, undone):
        assert (await reserve(first, wish)).outcome is Outcome.TAKEN
    first.settle(ended, 1, 0, b"its own end")
    first.settle(safe, 1, 0, b"safe")
    first.forget([safe.id])
    first.undo(undone)
    assert HoldJournal(path).open() == {}, "nobody reads the journal of one that lives"
    before.close()
    with path.open("ab") as file:
        file.write(b"\x10\x00torn")
    journal = HoldJournal(path)
    second = MemoryHolds(print, journal)
    assert (await reserve(second, hold(share(1)))).busy, "what it has to tell is not in the ledger"
    for _ in range(2):
        told = {found.id: found.record for found in await second.orphans(9)}
        assert told == {running.id: running.record, ended.id: b"its own end"}
    second.forget([running.id, ended.id])
    assert not (await reserve(second, hold(share(1)))).busy
    await seeded(second, 5)
    assert await balance(second) == (5, 0, 0, 0)
    journal.close()
    assert HoldJournal(path).open() == {}
    assert path.stat().st_size == 0


def test_a_journal_does_not_grow_for_ever(tmp_path: Path) -> None:
    journal = HoldJournal(tmp_path / "holds.journal", limit=2000)
    journal.open()
    journal.put("stays", b"x" * 50)
    for number in range(500):
        journal.put(str(number), b"y" * 100)
        journal.end([str(number)])
        assert (tmp_path / "holds.journal").stat().st_size < 2300
    journal.close()
    assert HoldJournal(tmp_path / "holds.journal").open() == {"stays": b"x" * 50}


def test_a_journal_without_anything_open_is_emptied_now_and_then(tmp_path: Path) -> None:
    path = tmp_path / "holds.journal"
    journal = HoldJournal(path)
    journal.open()
    sizes: list[int] = []
    for number in range(1000):
        journal.put(str(number), b"y" * 300)
        journal.end([str(number)])
        sizes.append(path.stat().st_size)
    assert max(sizes) <= 2**16
    assert 4 <= sizes.count(0) <= 6, "each time costs more than a record does"
