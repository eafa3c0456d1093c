"""The ledger is sealed into one hash chain for each tenant, each entry once, whoever seals and whatever dies."""

from __future__ import annotations

import asyncio
import hashlib
import json
import subprocess
import sys
from contextlib import AsyncExitStack
from pathlib import Path

from maestro.usage.v1.usage_pb2 import AUDIT_OUTCOME_SUCCEEDED, AuditRecord
from maestro_gateway.audit.chain import STREAM, subject_of
from maestro_gateway.ledger.stream import ensure_ledger
from maestro_sdk.audit import Head, canonical_form, prove, record_hash, to_json

from .sealing import FOREVER, Book, a_book, a_sealer, completed, counts


def ids(records: list[AuditRecord]) -> list[str]:
    return [record.request_id for record in records]


async def test_each_tenant_has_a_chain_of_its_own(tmp_path: Path) -> None:
    async with a_book(tmp_path) as book:
        await book.write(*(completed(n, "acme" if n % 3 else "globex") for n in range(30)))
        async with a_sealer(book):
            acme, globex = await book.sealed(20), await book.sealed(10, "globex")
    assert ids(acme) == [f"req-{n}" for n in range(30) if n % 3]
    assert ids(globex) == [f"req-{n}" for n in range(0, 30, 3)]
    for records in (acme, globex):
        chain = prove(records)
        assert (chain.broken, chain.records, chain.first, chain.anchor) == (None, len(records), 1, "")
    record = acme[0]
    assert (record.operation, record.method, record.target) == ("chat", "/v1/chat", "default")
    assert (record.key_id, record.principal, record.client_address) == ("key_1", "ada", "10.0.0.7")
    assert (record.user_agent, record.outcome) == ("test", AUDIT_OUTCOME_SUCCEEDED)
    assert record.latency.ToMilliseconds() == 250


def test_the_canonical_form_is_what_the_documents_say() -> None:
    record = AuditRecord(record_id="r1", sequence=7, tenant="acme", outcome=AUDIT_OUTCOME_SUCCEEDED, previous_hash="00")
    record.metadata.update({"\ue000": "b", "\U0001f600": "a", "n": '1"\n\x01/é'})
    record.time.FromJsonString("2026-03-01T10:00:00.120Z")
    record.hash = "is left out"
    wanted = (
        '{"metadata":{"n":"1\\"\\n\\u0001/é","\U0001f600":"a","\ue000":"b"},"outcome":"AUDIT_OUTCOME_SUCCEEDED",'
        '"previous_hash":"00","record_id":"r1","sequence":"7","tenant":"acme","time":"2026-03-01T10:00:00.120Z"}'
    )
    assert canonical_form(record).decode() == wanted
    assert record_hash(record) == hashlib.sha256(wanted.encode()).hexdigest()
    assert json.loads(wanted)["sequence"] == "7"


async def test_the_program_of_the_documents_proves_an_export(tmp_path: Path) -> None:
    async with a_book(tmp_path) as book:
        await book.write(*(completed(n) for n in range(5)))
        async with a_sealer(book):
            records = await book.sealed(5)
    text = (Path(__file__).parents[3] / "docs" / "audit.md").read_text(encoding="utf-8")
    program = text.partition("```python\n")[2].partition("```")[0]
    lines = [json.dumps(to_json(record), ensure_ascii=False) + "\n" for record in records]
    changed = [*lines[:3], lines[3].replace("10.0.0.7", "10.0.0.8"), lines[4]]
    results: dict[str, tuple[int, str]] = {}
    for name, content in {"good": lines, "changed": changed, "missing": [*lines[:2], *lines[3:]]}.items():
        file = tmp_path / name
        file.write_text("".join(content), encoding="utf-8")
        done = await asyncio.to_thread(
            subprocess.run,
            [sys.executable, "-I", "-c", program, str(file)],
            capture_output=True,
            text=True,
            check=False,
        )
        results[name] = (done.returncode, done.stderr.rstrip().rpartition(" ")[2])
    assert results == {"good": (0, ""), "changed": (1, "4"), "missing": (1, "4")}


async def test_many_sealers_at_once_make_one_record_of_each_entry(tmp_path: Path) -> None:
    async with a_book(tmp_path) as book, AsyncExitStack() as stack:
        # A lease that is over at once is none: all of them work on the same entries all the time.
        sealers = [await stack.enter_async_context(a_sealer(book, lease=0.0)) for _ in range(4)]
        for begin in range(0, 300, 60):
            await book.write(*(completed(n) for n in range(begin, begin + 60)))
        records = await book.sealed(300)
        assert sum(await counts(*sealers, wanted=300)) == 300
    assert ids(records) == [f"req-{n}" for n in range(300)]
    assert prove(records).broken is None


async def test_usually_one_of_them_seals(tmp_path: Path) -> None:
    async with a_book(tmp_path) as book, a_sealer(book) as one, a_sealer(book) as other:
        for begin in range(0, 50, 10):
            await book.write(*(completed(n) for n in range(begin, begin + 10)))
            await book.sealed(begin + 10)
        assert sorted(await counts(one, other, wanted=50)) == [0, 50]


async def test_the_next_one_goes_on_where_another_died(tmp_path: Path) -> None:
    async with a_book(tmp_path) as book:
        for life in range(4):
            await book.write(*(completed(n) for n in range(life * 50, life * 50 + 50)))
            async with a_sealer(book) as sealer, asyncio.timeout(15):
                while sealer.sealed < 25:
                    await asyncio.sleep(0)
            # Left in the middle of a batch, perhaps with a record on its way.
        async with a_sealer(book):
            records = await book.sealed(200)
    assert ids(records) == [f"req-{n}" for n in range(200)]
    assert prove(records).broken is None


async def test_nats_is_killed_while_they_seal(tmp_path: Path) -> None:
    async with a_book(tmp_path) as book, a_sealer(book) as one, a_sealer(book) as other:
        await book.write(*(completed(n) for n in range(150)))
        async with asyncio.timeout(15):
            while one.sealed + other.sealed < 20:
                await asyncio.sleep(0)
        await book.server.kill()
        await book.server.start()
        records = await book.sealed(150)
        await book.write(*(completed(n) for n in range(150, 160)))
        records = await book.sealed(160)
    assert ids(records) == [f"req-{n}" for n in range(160)]
    assert prove(records).broken is None


async def test_what_the_ledger_holds_twice_gets_one_record(tmp_path: Path) -> None:
    twice, late = completed(1), completed(2, ago=3600)
    async with a_book(tmp_path) as book:
        await book.write(twice, late, completed(3), twice, known_again=False)
        async with a_sealer(book):
            await book.sealed(3)
        # Another gateway seals what an even later delivery brings.
        await book.write(late, twice, completed(4), late, known_again=False)
        async with a_sealer(book):
            await book.sealed(4)
            await book.write(twice, completed(5), known_again=False)
            records = await book.sealed(5)
    assert ids(records) == ["req-1", "req-2", "req-3", "req-4", "req-5"]


async def test_late_duplicates_are_found_among_all_records(tmp_path: Path) -> None:
    late = completed(1, ago=3600)
    async with a_book(tmp_path) as book:
        await book.write(late, *(completed(n) for n in range(2, 6)))
        async with a_sealer(book):
            await book.sealed(5)
        await book.write(late, completed(6), known_again=False)
        async with a_sealer(book, learned=0):
            records = await book.sealed(6)
    assert ids(records) == [f"req-{n}" for n in range(1, 7)]


async def test_a_ledger_that_was_made_anew_is_sealed_behind_the_old_one(tmp_path: Path) -> None:
    async with a_book(tmp_path) as book:
        await book.write(*(completed(n) for n in range(5)))
        async with a_sealer(book):
            await book.sealed(5)
            await book.js.delete_stream("MAESTRO_LEDGER")
            await book.write(*(completed(n) for n in range(5, 8)))
            await ensure_ledger(book.client, FOREVER)
            records = await book.sealed(8)
    assert ids(records) == [f"req-{n}" for n in range(8)]
    assert prove(records).broken is None


async def test_pruning_leaves_an_anchor_and_the_newest_record(tmp_path: Path) -> None:
    async with a_book(tmp_path) as book:
        await book.write(*(completed(n) for n in range(6)), *(completed(n, "globex") for n in range(3)))
        async with a_sealer(book):
            before = await book.sealed(6)
            await book.sealed(3, "globex")
        async with a_sealer(book, lambda tenant: 0.0 if tenant == "acme" else FOREVER):
            async with asyncio.timeout(10):
                while len(await book.records()) > 1:
                    await asyncio.sleep(0.02)
            await book.write(completed(6))
            records = await book.sealed(2)
        assert len(await book.records("globex")) == 3
    chain = prove(records)
    assert (chain.broken, chain.records, chain.first) == (None, 2, 6)
    assert chain.anchor == before[4].hash == records[0].previous_hash


async def tampered(book: Book, *records: AuditRecord) -> list[AuditRecord]:
    """Puts other records in the place of a chain, past everything that guards it."""
    await book.js.purge_stream(STREAM, subject=subject_of("acme"))
    for record in records:
        await book.js.publish(subject_of("acme"), record.SerializeToString())
    return await book.records()


async def test_tampering_is_found_and_named(tmp_path: Path) -> None:
    async with a_book(tmp_path) as book:
        await book.write(*(completed(n) for n in range(5)))
        async with a_sealer(book):
            one, two, three, four, five = await book.sealed(5)
        head = Head(five.sequence, five.hash)

        def copy(record: AuditRecord, **changes: str) -> AuditRecord:
            changed = AuditRecord.FromString(record.SerializeToString())
            for name, value in changes.items():
                setattr(changed, name, value)
            return changed

        changed = copy(three, principal="eve")
        resealed = copy(three, principal="eve")
        resealed.hash = record_hash(resealed)
        found: dict[str, int] = {}
        for what, records in {
            "changed": (one, two, changed, four, five),
            "changed with its hash": (one, two, resealed, four, five),
            "missing": (one, two, four, five),
            "reordered": (one, two, four, three, five),
            "twice": (one, two, three, three, four, five),
            "end taken away": (one, two, three),
        }.items():
            broken = prove(await tampered(book, *records), head).broken
            found[what] = broken.sequence if broken is not None else 0
        assert prove(await tampered(book, one, two, three, four, five), head).broken is None
    assert found == {
        "changed": 3,
        "changed with its hash": 4,
        "missing": 3,
        "reordered": 3,
        "twice": 3,
        "end taken away": 4,
    }
