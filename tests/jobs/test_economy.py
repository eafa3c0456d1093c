"""Jobs that ask for economy: a provider's own batch API, each batch sent once, and what it leaves runs as usual."""

from __future__ import annotations

from decimal import Decimal
from typing import Any, cast

import nats

from maestro.job.v1 import job_pb2 as pb
from maestro.llm.v1.batch_pb2 import BatchItem
from maestro_sdk.testing.chaos.provider import Providers, text_of
from maestro_sdk.testing.mesh import MeshProcess

from .batch_account import CHEAP, PRICE, Account
from .conftest import MODEL, Jobs, chat
from .drill import told_of


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
    own = [event.request_completed for event in await told_of(mesh, over) if event.HasField("request_completed")]
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


async def test_an_answer_is_kept_though_a_piece_of_its_question_is_lost(
    mesh: MeshProcess, jobs: Jobs, account: Account
):
    account.wire.takes = 60
    large = [
        BatchItem(item_id=name, chat=chat(f"[{name}] {'x' * 600_000}", model=CHEAP)) for name in ("r1450", "r1451")
    ]
    job = await jobs.create([*large, *questions(1452, 1)], economy=True, metadata={"team": "maps"})
    batch = await account.one("r1450")
    client = await cast("Any", nats).connect(f"nats://{mesh.address('nats')}")
    try:
        await client.jetstream().purge_stream("MAESTRO_JOB_PARTS", subject=f"maestro.jobs.parts.{job.job_id}.in.>")
    finally:
        await client.close()
    account.wire.finish(batch.batch_id, "expired", answered=1)
    over = await jobs.until(job.job_id, lambda found: found.state == pb.JOB_STATE_COMPLETED)
    assert over.progress == pb.JobProgress(total=3, succeeded=2, failed=1)
    found = {result.index: result for result in await jobs.listed(job.job_id)}
    # It was paid for; nobody knows any more what it was called, or what else was to be asked.
    assert texts(list(found.values())) == {0: text_of("r1450"), 2: text_of("r1452")}
    assert (found[0].item.item_id, found[0].economy) == ("0", True)
    assert "can't be read any more" in found[1].item.error.message
    own = [event.request_completed for event in await told_of(mesh, over) if event.HasField("request_completed")]
    assert [end.metadata["team"] for end in own] == ["maps"] * 2
    assert sum(Decimal(end.cost.usd) for end in own) == Decimal(over.usage.cost_usd) > 0


async def test_a_bound_on_cost_holds_for_batches(jobs: Jobs, account: Account):
    bounded = [BatchItem(chat=chat(f"[r{1400 + number}] go on", model=CHEAP, max_tokens=100)) for number in range(6)]
    # Each may cost 18 µ$ of input and 120 µ$ of output at most: there is room for three at a time.
    job = await jobs.create(bounded, economy=True, max_cost_usd="0.000450")
    results = [result async for result in jobs.results(job.job_id)]
    assert len(results) == 6
    spent = sum(Decimal(result.item.cost.usd) for result in results if result.item.HasField("cost"))
    assert spent <= Decimal("0.000450")
    assert {result.index for result in results if result.economy} == {0, 1, 2}
