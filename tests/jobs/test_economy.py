"""Jobs that ask for economy: a provider's own batch API, each batch sent once, and what it leaves runs as usual."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import AsyncIterator, Callable, Sequence
from decimal import Decimal
from typing import Any

import pytest
import pytest_asyncio

from maestro.job.v1 import job_pb2 as pb
from maestro.llm.v1.batch_pb2 import BatchItem
from maestro_sdk.testing import openai_chat
from maestro_sdk.testing.chaos.provider import Providers, text_of
from maestro_sdk.testing.chaos.record import read_events
from maestro_sdk.testing.faults import FaultServer, Seen, Step, Wait
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.openai_auxiliary import OpenAIAuxiliary, StoredBatch
from maestro_sdk.testing.wire import Answer, Tokens

from .conftest import MODEL, Jobs, chat

CHEAP = "openai/gpt-5.6-luna"
"""Has a batch API, at half the price."""
PRICE = Decimal("0.20") / 10**6, Decimal("1.20") / 10**6
_MARK = re.compile(r"\[(r\d+)\]")


class Wire(OpenAIAuxiliary):
    """Takes a batch at once, and tells that after `late` seconds."""

    late = 0.0

    def _create_batch(self, seen: Seen) -> Sequence[Step]:
        return [Wait(self.late), *super()._create_batch(seen)]


class Account:
    """The provider's account. `answered` counts answers of batches by mark; `failing` are marks with a bad status."""

    def __init__(self, server: FaultServer) -> None:
        self.answered: Counter[str] = Counter()
        self.failing: dict[str, int] = {}
        self.wire = Wire(server, answers=self._answer)

    def batches(self, mark: str) -> list[StoredBatch]:
        """The batches that hold a question with that mark."""
        found = [batch for batch in self.wire.batches.values() if batch.input_file_id in self.wire.files]
        return [batch for batch in found if f"[{mark}]".encode() in self.wire.files[batch.input_file_id].content]

    async def one(self, mark: str) -> StoredBatch:
        """The batch with that mark, as soon as the provider has it."""
        return (await until(lambda: self.batches(mark)))[0]

    def _answer(self, body: Any) -> tuple[int, Any]:
        found = _MARK.search(json.dumps(body))
        mark = found[1] if found else ""
        if mark in self.failing:
            return self.failing[mark], {"error": {"message": "not now", "type": "server_error", "code": None}}
        self.answered[mark] += 1
        seen = Seen("POST", openai_chat.PATH, "", {}, json.dumps(body).encode())
        answer = Answer(pieces=(text_of(mark),), tokens=Tokens(input=100, output=10))
        return 200, openai_chat.WIRE.document(answer, seen)


async def until(look: Callable[[], Any], timeout: float = 30.0) -> Any:
    """What `look` gives, as soon as it is something."""
    end = time.monotonic() + timeout
    while not (found := look()):
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.02)
    return found


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def wire(server: FaultServer) -> AsyncIterator[Account]:
    """The provider's account for all tests."""
    yield Account(server)


@pytest.fixture
def account(wire: Account, providers: Providers) -> Account:
    """The account of a test, whose batches take a moment."""
    wire.failing.clear()
    wire.answered.clear()
    wire.wire.takes, wire.wire.late = 0.2, 0.0
    return wire


def questions(first: int, count: int, model: str = CHEAP) -> list[BatchItem]:
    return [BatchItem(chat=chat(f"[r{number}] go on", model=model)) for number in range(first, first + count)]


def texts(results: list[pb.JobResult]) -> dict[int, str]:
    return {result.index: result.item.chat.parts[0].text.text for result in results if result.item.HasField("chat")}


async def test_items_go_to_the_batch_api_at_its_price(mesh: MeshProcess, jobs: Jobs, account: Account):
    items = [*questions(1000, 10), *questions(1010, 2, MODEL)]
    job = await jobs.create(items, economy=True, metadata={"team": "maps"})
    results = [result async for result in jobs.results(job.job_id)]
    assert texts(results) == {index: text_of(f"r{1000 + index}") for index in range(12)}
    assert {result.index for result in results if result.economy} == set(range(10))
    assert [result.runs for result in results] == [1] * 12
    full = 100 * PRICE[0] + 10 * PRICE[1]
    assert {Decimal(result.item.cost.usd) for result in results if result.economy} == {full / 2}
    over = await jobs.get(job.job_id)
    assert (over.state, over.progress) == (pb.JOB_STATE_COMPLETED, pb.JobProgress(total=12, succeeded=12))
    assert Decimal(over.usage.cost_usd) == sum(Decimal(result.item.cost.usd) for result in results)
    assert (over.usage.requests, over.usage.attempts) == (12, 12)
    assert len(account.batches("r1000")) == 1
    assert {result.item.item_id for result in results} == {str(index) for index in range(12)}
    ends = [event.request_completed for event in await read_events(mesh.address("nats"))]
    own = [end for end in ends if end.job_id == job.job_id]
    assert len(own) == 12
    assert {end.metadata["team"] for end in own} == {"maps"}
    assert sum(Decimal(end.cost.usd) for end in own) == Decimal(over.usage.cost_usd)


async def test_what_the_provider_leaves_runs_as_usual(jobs: Jobs, account: Account, providers: Providers):
    account.wire.takes = 60
    account.failing = {"r1101": 500, "r1102": 400}
    job = await jobs.create(questions(1100, 8), economy=True)
    batch = await account.one("r1100")
    account.wire.finish(batch.batch_id, "expired", answered=5)
    found = {result.index: result async for result in jobs.results(job.job_id)}
    assert texts(list(found.values())) == {index: text_of(f"r{1100 + index}") for index in range(8) if index != 2}
    assert {index for index, result in found.items() if result.economy} == {0, 2, 3, 4}
    assert found[2].state == pb.JOB_ITEM_STATE_FAILED
    assert [found[index].runs for index in range(8)] == [1, 2, 1, 1, 1, 2, 2, 2]
    assert [len(providers.of(f"r{1100 + index}")) for index in range(8)] == [0, 1, 0, 0, 0, 1, 1, 1]


async def test_a_batch_that_is_refused_runs_as_usual(jobs: Jobs, account: Account):
    account.wire.takes = 60
    job = await jobs.create(questions(1150, 3), economy=True)
    batch = await account.one("r1150")
    batch.errors = [{"code": "invalid_json_line", "message": "no", "line": 1, "param": None}]
    batch.status = "failed"
    results = [result async for result in jobs.results(job.job_id)]
    assert texts(results) == {index: text_of(f"r{1150 + index}") for index in range(3)}
    assert not any(result.economy for result in results)


async def test_a_cancelled_job_cancels_its_batch(jobs: Jobs, account: Account):
    account.wire.takes = 2
    job = await jobs.create(questions(1200, 4), economy=True)
    batch = await account.one("r1200")
    running = await jobs.until(job.job_id, lambda found: found.progress.running == 4)
    assert running.state == pb.JOB_STATE_RUNNING
    await jobs.cancel(job.job_id)
    over = await jobs.until(job.job_id, lambda found: found.state == pb.JOB_STATE_CANCELLED)
    assert over.progress == pb.JobProgress(total=4, cancelled=4)
    assert batch.status == "cancelled"
    assert not over.usage.requests


async def test_no_gateway_that_dies_sends_a_batch_twice(mesh: MeshProcess, jobs: Jobs, account: Account):
    account.wire.takes, account.wire.late = 1, 60
    job = await jobs.create(questions(1300, 6), economy=True)
    await account.one("r1300")
    # The provider has it, and no gateway has heard that.
    killed = [mesh.kill(name) for name in ("gateway", "gateway-2")]
    over = await jobs.until(job.job_id, lambda found: found.state == pb.JOB_STATE_COMPLETED, timeout=40)
    assert over.progress == pb.JobProgress(total=6, succeeded=6)
    assert texts(await jobs.listed(job.job_id)) == {index: text_of(f"r{1300 + index}") for index in range(6)}
    assert len(account.batches("r1300")) == 1
    assert set(account.answered.values()) == {1}
    for member in killed:
        await mesh.wait_restarted(member)


async def test_a_bound_on_cost_holds_for_batches(jobs: Jobs, account: Account):
    bounded = [BatchItem(chat=chat(f"[r{1400 + number}] go on", model=CHEAP, max_tokens=100)) for number in range(6)]
    # Each may cost 18 µ$ of input and 120 µ$ of output at most: there is room for three at a time.
    job = await jobs.create(bounded, economy=True, max_cost_usd="0.000450")
    results = [result async for result in jobs.results(job.job_id)]
    assert len(results) == 6
    spent = sum(Decimal(result.item.cost.usd) for result in results if result.item.HasField("cost"))
    assert spent <= Decimal("0.000450")
    assert {result.index for result in results if result.economy} == {0, 1, 2}
