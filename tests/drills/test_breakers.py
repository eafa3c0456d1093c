"""Which failures close a backend's door, after how many calls, and that it stays closed until its time is over."""

import asyncio
import datetime
import time
from collections.abc import Mapping
from typing import Any

import pytest
import pytest_asyncio
from drill_config import STRICT_BREAKER
from drill_doors import Stand, ask
from drill_stage import Stage, chosen, prompt, run_all
from drill_table import BREAKER_CASES, WIRES, BreakerCase

LIMIT = int(STRICT_BREAKER["consecutive_failures"])
ASKED = LIMIT + 3
AT_ONCE = 12


async def drill(case: BreakerCase, stage: Stage, stand: Stand) -> None:
    """One case. Raises `AssertionError`."""
    assert case.fault.reply is not None
    stage.script(case.name, case.wire, case.fault.reply(WIRES[case.wire]))
    told = [await ask(stand, case.door, prompt(case.name), model=case.target) for _ in range(ASKED)]
    limit = case.calls(LIMIT)
    reasons = [got.reason for got in told]
    calls = len(stage.seen(case.name, case.wire))
    assert calls == (limit or ASKED), f"{calls} calls at the provider, not {limit or ASKED}; the answers were {reasons}"
    refused = told[limit:] if limit is not None else []
    assert {got.reason for got in refused} <= {"NO_BACKEND"}, f"the answers were {reasons}"
    assert all(float(got.error.get("retry_after", 0)) > 0 for got in refused), "nobody says when to come back"
    stage.forget(case.name)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def outcomes(request: pytest.FixtureRequest, stage: Stage, stand: Stand, figures: list[str]) -> Mapping[str, str]:
    """What was wrong with each case that was asked for, by name."""
    names = chosen(request, test_effect)
    found = await run_all(names, lambda name: drill(BREAKER_CASES[name], stage, stand), AT_ONCE)
    figures.append(f"effects on breakers: {len(found)} cases, {sum(map(bool, found.values()))} failures")
    return found


@pytest.mark.parametrize("name", BREAKER_CASES)
async def test_effect(outcomes: Mapping[str, str], name: str):
    assert not outcomes[name], outcomes[name]


async def look_up(stand: Stand, backend_id: str) -> Mapping[str, Any]:
    """A backend as `GET /v1/router/backends` shows it."""
    told = (await stand.caller.get("/v1/router/backends")).json()["backends"]
    [found] = [backend for backend in told if backend["id"] == backend_id]
    return found


async def test_a_held_back_backend_is_shown_with_reason_and_end(stage: Stage, stand: Stand):
    case, model = "breaker, shown", "openai/blind"
    stage.script(case, "openai", WIRES["openai"].error(500))
    for _ in range(LIMIT):
        await ask(stand, "rest", prompt(case), model="blind-alone")
    async with asyncio.timeout(1):
        while (shown := await look_up(stand, f"openai:{model}"))["state"] != "open":
            await asyncio.sleep(0.02)
    assert "failures in a row" in shown["reason"]
    ends = datetime.datetime.fromisoformat(shown["until"]).timestamp()
    assert 0 < ends - time.time() <= 2
    # Its time passes, and one call that succeeds closes it.
    stage.script(case, "openai", WIRES["openai"].text("well again"))
    async with asyncio.timeout(10):
        while (await ask(stand, "rest", prompt(case), model="blind-alone")).reason:
            await asyncio.sleep(0.05)
    stage.forget(case)


async def test_a_key_that_is_refused_holds_back_all_models_of_its_account(stage: Stage, stand: Stand):
    case = "breaker, account"
    stage.script(case, "openai", WIRES["openai"].error(401))
    stage.script(case, "anthropic", WIRES["anthropic"].text("from the other account"))
    assert (await ask(stand, "rest", prompt(case), model="openai/mixed")).reason == "PROVIDER_AUTH"
    got = await ask(stand, "rest", prompt(case), model="openai/hedged")
    assert (got.reason, len(stage.seen(case, "openai"))) == ("NO_BACKEND", 1)
    assert "account" in got.error["message"]
    assert (await ask(stand, "rest", prompt(case), model="mixed")).text == "from the other account"
    # Somebody renews the key.
    stage.script(case, "openai", WIRES["openai"].text("well again"))
    async with asyncio.timeout(10):
        while any(
            [(await ask(stand, "rest", prompt(case), model=f"openai/{name}")).reason for name in ("mixed", "hedged")]
        ):
            await asyncio.sleep(0.05)
    stage.forget(case)
