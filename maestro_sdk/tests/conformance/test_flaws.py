"""The suite on an adapter with one flaw at a time: exactly the case that the flaw breaks fails."""

from __future__ import annotations

import asyncio

import pytest

from maestro_sdk.conformance.outcome import Verdict
from maestro_sdk.conformance.report import Report
from maestro_sdk.conformance.suite import CASES, prove
from maestro_sdk.testing.flawed_servicer import serve_flawed
from maestro_sdk.testing.flaws import Flaw
from maestro_sdk.testing.obliging import EMBEDDER

pytestmark = pytest.mark.timeout(300)  # the first test waits for some ninety runs of the suite


def failed(report: Report) -> list[str]:
    return [outcome.name for outcome in report.outcomes if outcome.verdict is Verdict.FAILED]


async def test_without_a_flaw_everything_claimed_is_proven() -> None:
    async with serve_flawed(None) as address:
        report = await prove(address, timeout=10)
    assert (report.passed, failed(report)) == (True, [])
    left = {outcome.name for outcome in report.outcomes if outcome.verdict is not Verdict.PROVEN}
    assert left == {"audio", "temperature"}


async def test_a_model_that_only_embeds_is_proven() -> None:
    async with serve_flawed(None) as address:
        report = await prove(address, model=EMBEDDER, timeout=10)
    assert (report.passed, failed(report)) == (True, [])
    proven = {outcome.name for outcome in report.outcomes if outcome.verdict is Verdict.PROVEN}
    serving = {"health", "reflection", "info", "models"}
    embedding = {"embeddings", "many_inputs", "dimensions", "embedding_usage", "embedding_refusals"}
    assert proven == serving | embedding | {"undeclared_services"}
    assert report.of_case("undeclared_services").seen == "Chat"


@pytest.fixture(scope="module")
def reports() -> dict[Flaw, Report]:
    """The report on each flaw; several at a time, since most of their time is waiting."""

    async def look(flaw: Flaw, turn: asyncio.Semaphore) -> Report:
        async with turn, serve_flawed(flaw) as address:
            return await prove(address, model=flaw.model, timeout=4)

    async def look_at_all() -> list[Report]:
        turn = asyncio.Semaphore(8)
        return await asyncio.gather(*(look(flaw, turn) for flaw in Flaw))

    return dict(zip(Flaw, asyncio.run(look_at_all()), strict=True))


@pytest.mark.parametrize("flaw", list(Flaw), ids=lambda flaw: flaw.name.lower())
def test_a_flaw_fails_its_case_and_no_other(flaw: Flaw, reports: dict[Flaw, Report]) -> None:
    report = reports[flaw]
    assert failed(report) == [flaw.case]
    assert not report.passed
    outcome = report.of_case(flaw.case)
    assert outcome.seen
    assert outcome.contract


def test_every_case_is_broken_by_a_flaw() -> None:
    # Sound can only be shown to be taken: that it is understood can't be told from a second of silence.
    assert {case.name for case in CASES} - {flaw.case for flaw in Flaw} == {"audio"}
