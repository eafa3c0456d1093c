"""The two ways to run the suite, and its report."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

from maestro_sdk.conformance.outcome import Verdict
from maestro_sdk.conformance.report import matrix
from maestro_sdk.conformance.suite import CASES, prove
from maestro_sdk.testing.flawed_servicer import serve_flawed
from maestro_sdk.testing.flaws import Flaw
from maestro_sdk.testing.servers import free_port


async def call(*command: str, folder: Path) -> tuple[int, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable, *command, cwd=folder, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT
    )
    said, _ = await process.communicate()
    return process.returncode or 0, said.decode()


def written(file: Path) -> Any:
    return json.loads(file.read_text())


async def test_the_command_reports(tmp_path: Path) -> None:
    file = tmp_path / "report.json"
    async with serve_flawed(None) as address:
        code, said = await call("-m", "maestro_sdk.cli", "conformance", address, "--report", str(file), folder=tmp_path)
    assert code == 0, said
    assert "obliging/model conforms: 55 proven, 2 not declared" in said
    report = written(file)
    assert (report["format"], report["passed"], report["model"]) == ("maestro.conformance/1", True, "obliging/model")
    assert report["summary"] == {"proven": 55, "failed": 0, "blocked": 0, "not_declared": 2, "untested": 0}
    cases = {case["name"]: case for case in report["cases"]}
    assert set(cases) == {case.name for case in CASES}
    assert (cases["seed"]["feature"], cases["seed"]["support"], cases["health"]["kind"]) == ("SEED", "native", "core")


async def test_the_command_fails_and_says_why(tmp_path: Path) -> None:
    async with serve_flawed(Flaw.NO_FINISH) as address:
        code, said = await call("-m", "maestro_sdk.cli", "conformance", address, folder=tmp_path)
    assert code == 1
    lines = [line.strip() for line in said.splitlines()]
    start = lines.index("FAILED finish_last: exactly one `finish`, last")
    seen, where, contract = lines[start + 1 : start + 4]
    assert seen == "seen      status OK without a `finish` event"
    assert where == "where     StreamChat “count”"
    assert contract.startswith("contract  chat.proto StreamChat: success is exactly one `finish` event, last")


async def test_pytest_runs_a_test_per_case(tmp_path: Path) -> None:
    pytest_ = ("-m", "pytest", "--pyargs", "maestro_sdk.conformance", "-q", "-p", "no:cacheprovider")
    async with serve_flawed(Flaw.SHUFFLED) as address:
        file = tmp_path / "report.json"
        options = ("--maestro-target", address, "--maestro-report", str(file))
        code, said = await call(*pytest_, *options, folder=tmp_path)
    assert code == 1, said
    # Blocked cases are red as well: nothing of the core is skipped.
    assert f"4 failed, {len(CASES) - 6} passed, 2 skipped" in said, said
    assert "seen:     5 stands before 4" in said
    assert written(file)["summary"]["failed"] == 1


async def test_a_wrong_model_and_a_dead_address_are_told() -> None:
    async with serve_flawed(None) as address:
        report = await prove(address, model="obliging/other")
    assert not report.passed
    assert (
        report.of_case("answers").seen
        == "there is no model 'obliging/other'; there are: obliging/embedder, obliging/model"
    )
    assert report.of_case("health").verdict is Verdict.PROVEN


async def test_models_stand_side_by_side() -> None:
    async with serve_flawed(None) as good, serve_flawed(Flaw.UNSEEDED) as flawed:
        reports = [await prove(good), await prove(flawed)]
    rows = {line.split()[0]: line.split()[1:] for line in matrix(reports).splitlines()[1:]}
    assert rows["core"] == ["25/25", "proven", "25/25", "proven"]
    assert (rows["SEED"], rows["TEMPERATURE"]) == (["proven", "FAILED"], ["none", "none"])


async def test_nobody_home() -> None:
    report = await prove(f"127.0.0.1:{free_port()}", timeout=1)
    assert {outcome.verdict for outcome in report.outcomes} == {Verdict.BLOCKED}
    assert "nothing answers" in report.of_case("health").seen
