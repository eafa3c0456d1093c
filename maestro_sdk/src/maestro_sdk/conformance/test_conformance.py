"""The suite under pytest: one test per case, all read from one run."""

from __future__ import annotations

import asyncio
import json
import os
from pathlib import Path

import pytest

from maestro_sdk.conformance.outcome import Verdict
from maestro_sdk.conformance.report import Report
from maestro_sdk.conformance.suite import CASES, prove
from maestro_sdk.conformance.target import TIMEOUT
from maestro_sdk.service.meshes import TOKEN_VARIABLE
from maestro_sdk.service.peer import Peer


@pytest.fixture(scope="session")
def report(request: pytest.FixtureRequest) -> Report:
    """The run against `--maestro-target`; written to `--maestro-report` where given."""
    config = request.config
    address = config.getoption("--maestro-target")
    if not address:
        pytest.fail("say what to prove: --maestro-target HOST:PORT", pytrace=False)
    found = asyncio.run(
        prove(
            str(address),
            model=str(config.getoption("--maestro-model") or ""),
            timeout=float(config.getoption("--maestro-timeout") or TIMEOUT),
            key=str(config.getoption("--maestro-key") or ""),
            peer=Peer.showing(str(config.getoption("--maestro-token") or os.environ.get(TOKEN_VARIABLE, ""))),
        )
    )
    if file := config.getoption("--maestro-report"):
        Path(str(file)).write_text(json.dumps(found.as_json(), indent=2) + "\n", encoding="utf-8")
    return found


@pytest.mark.timeout(0)
@pytest.mark.parametrize("name", [case.name for case in CASES])
def test_case(name: str, report: Report) -> None:
    """Passes when the case is proven; skipped when the server does not claim its feature."""
    outcome = report.of_case(name)
    if outcome.verdict is Verdict.NOT_DECLARED:
        pytest.skip(f"{outcome.feature} is not declared")
    if not outcome.good:
        where = f"\n  where:    {outcome.where}" if outcome.where else ""
        said = f"{outcome.title}: {outcome.verdict.value}\n  seen:     {outcome.seen}{where}"
        pytest.fail(f"{said}\n  contract: {outcome.contract}", pytrace=False)
