"""NATS and the store go away under load where nobody is let through without them: who has limits is refused clearly."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from maestro_sdk.testing.redis import find_redis

from .outage import Asked, Load, key_of
from .test_outage import CLIENTS, OUTAGES, SECONDS, Stage, answers, balanced, exact, settled, staged

pytestmark = pytest.mark.skipif(find_redis() is None, reason="neither redis-server nor valkey-server is installed")
TENANTS = ("paid", "free")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def strict(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Stage]:
    """A mesh with `on_store_failure: deny`."""
    async with staged(tmp_path_factory.mktemp("deny"), "deny") as stage:
        yield stage


async def refusal(stage: Stage, load: Load, until: float) -> tuple[int, str, str]:
    """How a tenant with limits is refused over REST: status, reason, retry-after."""
    headers = {"authorization": f"Bearer {key_of('paid')}"}
    async with aiohttp.ClientSession(stage.mesh.url, headers=headers) as http:
        while (begun := time.monotonic()) < until:
            text = f"paid:by hand {begun}"
            body = {"model": "fake/model", "messages": [{"role": "user", "content": text}], "metadata": {"n": text}}
            async with http.post("/v1/chat", json={**body, "max_tokens": 1}) as answer:
                found = await answer.json()
                failure = "" if answer.status == 200 else found["error"]["message"]
                load.asked.append(Asked(text, "paid", "unary", begun, time.monotonic(), failure))
                if failure:
                    return answer.status, found["error"]["reason"], answer.headers.get("retry-after", "")
    raise AssertionError("nobody was refused while the store was away")


async def test_only_who_has_limits_is_refused(strict: Stage, figures: list[str]) -> None:
    spans: dict[str, tuple[float, float]] = {}
    async with Load(strict.mesh, TENANTS, CLIENTS) as load:
        await answers(load, 20)
        for name, outage in OUTAGES.items():
            begun = time.monotonic()
            away = asyncio.create_task(outage(strict))
            assert await refusal(strict, load, begun + SECONDS + 10) == (503, "NO_BACKEND", "1")
            await away
            until = time.monotonic()
            spans[name] = begun, until
            async with asyncio.timeout(60):
                # Who has limits is let through again once the store is back.
                while not any(each.tenant == "paid" and not each.failure and each.begun > until for each in load.asked):
                    await asyncio.sleep(0.02)
            await answers(load, 20)
    for name, (begun, until) in spans.items():
        for tenant in TENANTS:
            within = [each for each in load.asked if each.tenant == tenant and begun <= each.begun < until]
            refused = [each.failure for each in within if each.failure]
            figures.append(
                f"deny, NATS and store {name} for {until - begun:.1f} s: {tenant}: {len(within) - len(refused)} of "
                f"{len(within)} answered, {len(refused)} refused with 503"
            )
            assert bool(refused) == (tenant == "paid"), refused[:3]
            assert all("can't be checked" in failure for failure in refused), refused[:3]
    for tenant in TENANTS:
        entries = await settled(strict, load, tenant)
        exact(strict, load, tenant, entries, killed=False)
    spent = strict.provider.charged("paid")
    balance = await balanced(strict, "paid", spent)
    assert balance is not None
    assert (balance.usd, balance.held_usd) == (spent, 0)
    figures.append(f"  then the ledger of both equals the meter, the budget has {spent} nano-dollars and 0 held")
