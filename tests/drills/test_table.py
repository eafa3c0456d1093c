"""Every row of the table at every door: cases run many at once, and each one reports under its own name."""

import asyncio
import time
from collections.abc import Mapping

import pytest
import pytest_asyncio
from drill_doors import Stand, ask
from drill_stage import Stage, chosen, prompt, run_all
from drill_table import CASES, OTHER, SECOND, WIRES, Case, differences

AT_ONCE = 24
"""Cases that run at once; those that wait for a stall run beside them, since they do nothing else."""


async def drill(case: Case, stage: Stage, stand: Stand) -> None:
    """One case. Raises `AssertionError` with all that is wrong."""
    first, second = case.wire, OTHER[case.wire]
    if case.fault.reply is not None:
        stage.script(case.name, first, case.fault.reply(WIRES[first]))
    stage.script(case.name, second, WIRES[second].text(SECOND))
    got = await ask(stand, case.door, prompt(case.name), model=case.target)
    calls = len(stage.seen(case.name, first))
    wrong = list(differences(case, got, calls, len(stage.seen(case.name, second))))
    assert not wrong, f"{'; '.join(wrong)}; the error is {got.error}"
    if case.fault.opens and case.route == "alone":
        # While it lasts, nobody asks there again.
        again = await ask(stand, case.door, prompt(case.name), model=case.target)
        assert (again.reason, len(stage.seen(case.name, first))) == ("NO_BACKEND", calls)
    stage.forget(case.name)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def outcomes(
    request: pytest.FixtureRequest, stage: Stage, calm_stand: Stand, figures: list[str]
) -> Mapping[str, str]:
    """What was wrong with each case that was asked for, by name."""
    names = chosen(request, test_outcome)
    begun = time.monotonic()

    async def run(name: str) -> None:
        await drill(CASES[name], stage, calm_stand)

    quick, slow = await asyncio.gather(
        run_all((name for name in names if not CASES[name].fault.slow), run, AT_ONCE),
        run_all((name for name in names if CASES[name].fault.slow), run, len(names)),
    )
    found = {**quick, **slow}
    failed = sum(map(bool, found.values()))
    figures.append(f"failure drills: {len(found)} cases, {failed} failures, {time.monotonic() - begun:.1f} s")
    return found


@pytest.mark.parametrize("name", CASES)
async def test_outcome(outcomes: Mapping[str, str], name: str):
    assert not outcomes[name], outcomes[name]
