"""Tenants with limits and budgets on three gateways: counted over all of them, and while they are killed."""

from __future__ import annotations

import asyncio
import itertools
import random
import time
from collections.abc import AsyncIterator, Sequence
from decimal import Decimal
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from maestro.job.v1 import job_pb2 as pb
from maestro.llm.v1.batch_pb2 import BatchItem
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro_sdk.testing.chaos.provider import Providers, Weather
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.mesh import MeshProcess
from maestro_sdk.testing.redis import RedisServer, find_redis

from .batch_account import CHEAP, Account
from .conftest import CONFIG, KEYS, LONG, Jobs, chat, questions

GATEWAYS = ("gateway", "gateway-2", "gateway-3")
MOST = 2
JOBS = 30 if LONG else 8
_LEASE = 2.0
_HELD = 6.0
"""Seconds for which the provider holds the first items, unless their gateway is killed before."""
_EACH = Decimal("0.000138")
"""The most that an item of the tests may cost, about: 100 tokens of output, and its question."""

pytestmark = pytest.mark.skipif(find_redis() is None, reason="neither redis-server nor valkey-server is installed")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def limited(server: FaultServer, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[MeshProcess]:
    """A mesh of three gateways, where one tenant has few jobs at a time and another one a budget."""
    environment = {
        **{f"KEY_{name.upper()}": key for name, key in KEYS.items()},
        "PROVIDERS": server.url,
        "OPENAI_API_KEY": "sk-test",
    }
    keys = [{**key, "scopes": ["jobs", "admin"]} for key in CONFIG["gateway"]["keys"]]
    async with RedisServer() as store:
        config: dict[str, Any] = {
            **CONFIG,
            "gateway": {"replicas": len(GATEWAYS), "keys": keys},
            "limits": {"tenants": {"acme": {"jobs": MOST}}},
            "store": {"url": store.url, "lease": f"{_LEASE}s", "timeout": "2s"},
            "budgets": {"maps": {"tenants": ["globex"], "period": "month", "usd": "0.001000", "wait": "0.2s"}},
        }
        async with MeshProcess(tmp_path_factory.mktemp("limited"), config, environment) as running:
            yield running


async def clients(mesh: MeshProcess, tenant: str) -> AsyncIterator[Jobs]:
    client = Jobs(mesh, tenant)
    yield client
    await client.close()


@pytest_asyncio.fixture(loop_scope="session")
async def acme(limited: MeshProcess, providers: Providers) -> AsyncIterator[Jobs]:
    """The tenant with few jobs at a time."""
    async for client in clients(limited, "acme"):
        yield client


@pytest_asyncio.fixture(loop_scope="session")
async def globex(limited: MeshProcess, providers: Providers) -> AsyncIterator[Jobs]:
    """The tenant with a budget."""
    async for client in clients(limited, "globex"):
        yield client


async def kill_in_turn(mesh: MeshProcess, done: asyncio.Event, dice: random.Random) -> int:
    """Kills one gateway after the other, at random moments; the number of those killed."""
    killed = 0
    for name in itertools.cycle(GATEWAYS) if LONG else GATEWAYS:
        await asyncio.wait((asyncio.ensure_future(done.wait()),), timeout=dice.uniform(0.3, 1.0))
        if done.is_set():
            break
        member = mesh.kill(name)
        killed += 1
        await mesh.wait_restarted(member, timeout=60)
    return killed


async def test_two_jobs_of_a_tenant_at_a_time_whoever_dies(
    limited: MeshProcess, acme: Jobs, globex: Jobs, providers: Providers, figures: list[str]
):
    providers.weather["openai"] = Weather(late=1.0, lateness=_HELD)
    begun = time.monotonic()
    jobs = [await acme.create(questions(6, f"p{number}q"), max_runs=10) for number in range(JOBS)]
    async with asyncio.timeout(_HELD):
        while len(providers.calls) < 6 * MOST:
            await asyncio.sleep(0.02)
    # The provider takes its time for those, and another tenant does not wait for them.
    providers.weather["openai"] = Weather(late=1.0, lateness=0.2)
    other = await globex.create([BatchItem(chat=chat("[o1] go on", model=CHEAP, max_tokens=100))])
    waited = await globex.wait(other.job_id, 60)
    assert {(await acme.get(job.job_id)).state for job in jobs[MOST:]} == {pb.JobState.JOB_STATE_QUEUED}
    done = asyncio.Event()
    killing = asyncio.create_task(kill_in_turn(limited, done, random.Random(7)))
    try:
        over = [await acme.wait(job.job_id, 120 + JOBS) for job in jobs]
    finally:
        done.set()
        killed = await killing
    figures.append(
        f"{JOBS} jobs of a tenant that may have {MOST} under way, {killed} of {len(GATEWAYS)} gateways killed, "
        f"{time.monotonic() - begun:.1f} s: at most {most_at_once(over)} under way at a time"
    )
    assert [job.progress for job in over] == [pb.JobProgress(total=6, succeeded=6)] * JOBS
    assert most_at_once(over) == MOST
    assert waited.progress.succeeded == 1
    assert killed > 0


async def test_a_batch_holds_its_budget_until_it_is_over(limited: MeshProcess, globex: Jobs, account: Account):
    account.wire.takes = 3600
    spent = (await balance(limited))[0]
    job = await globex.create(bounded(1500, 5), economy=True)
    await account.one("r1500")
    held = (await balance(limited))[1]
    assert 5 * _EACH * Decimal("0.8") < held < 5 * _EACH * Decimal("1.2")
    for member in [limited.kill(name) for name in GATEWAYS]:
        await limited.wait_restarted(member)
    # Whoever follows the batch now holds it again, and what others want beside it is refused.
    await told(limited, held)
    await asyncio.sleep(2 * _LEASE)
    assert (await balance(limited))[1] == held
    second = await globex.create(bounded(1510, 4), economy=True)
    await account.one("r1510")
    refused = await globex.until(second.job_id, lambda found: found.progress.failed == 2, timeout=30)
    assert refused.progress.running == 2
    reasons = {result.item.error.reason for result in await listed(globex, second)}
    assert reasons == {ErrorReason.ERROR_REASON_BUDGET_EXHAUSTED}
    for mark in ("r1500", "r1510"):
        [batch] = account.batches(mark)
        account.wire.finish(batch.batch_id, "completed")
    over = [await globex.wait(each.job_id, 60) for each in (job, second)]
    assert [each.progress.succeeded for each in over] == [5, 2]
    await told(limited, Decimal(0))
    cost = sum(Decimal(each.usage.cost_usd) for each in over)
    assert (await balance(limited))[0] - spent == cost > 0


async def test_a_batch_that_is_cancelled_gives_its_budget_back(limited: MeshProcess, globex: Jobs, account: Account):
    account.wire.takes = 2
    await told(limited, Decimal(0))
    spent = (await balance(limited))[0]
    job = await globex.create(bounded(1520, 3), economy=True)
    await account.one("r1520")
    assert (await balance(limited))[1] > 0
    await globex.cancel(job.job_id)
    await globex.wait(job.job_id, 30)
    await told(limited, Decimal(0))
    assert (await balance(limited))[0] == spent


def bounded(first: int, count: int) -> list[BatchItem]:
    """Items of a known greatest cost."""
    return [
        BatchItem(chat=chat(f"[r{number}] go on", model=CHEAP, max_tokens=100))
        for number in range(first, first + count)
    ]


async def listed(client: Jobs, job: pb.Job) -> Sequence[pb.JobResult]:
    """The results that are there now."""
    request = pb.ListJobResultsRequest(job_id=job.job_id)
    return (await client.stub.ListJobResults(request, metadata=client.key, timeout=10)).results


async def balance(mesh: MeshProcess) -> tuple[Decimal, Decimal]:
    """What was spent of the budget, and what is held, in US dollars, as soon as a gateway can tell."""
    headers = {"authorization": f"Bearer {KEYS['globex']}"}
    async with asyncio.timeout(30), aiohttp.ClientSession(mesh.url, headers=headers) as http:
        while True:
            async with http.get("/v1/budgets") as response:
                body = await response.json(content_type=None)
                if response.status != 503:
                    break
            await asyncio.sleep(0.1)
    assert response.status == 200, body
    [found] = body["budgets"]
    return Decimal(found.get("spent_usd") or 0), Decimal(found.get("held_usd") or 0)


async def told(mesh: MeshProcess, held: Decimal) -> None:
    """Waits until so much is held."""
    end = time.monotonic() + 30
    while (found := (await balance(mesh))[1]) != held:
        assert time.monotonic() < end, f"{found} is held, not {held}"
        await asyncio.sleep(0.1)


def most_at_once(jobs: Sequence[pb.Job]) -> int:
    """The most of these jobs that were under way at the same moment."""
    moments = [(job.start_time.ToNanoseconds(), 1) for job in jobs]
    moments += [(job.end_time.ToNanoseconds(), -1) for job in jobs]
    return max(itertools.accumulate(change for _, change in sorted(moments)))
