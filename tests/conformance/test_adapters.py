"""The adapters of this repository conform, each as its own process."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

SCRIPT = Path(__file__).with_name("adapters.py")


def load() -> Any:
    """The script as a module: its table says what there is to prove."""
    spec = importlib.util.spec_from_file_location("conformance_adapters", SCRIPT)
    assert spec
    assert spec.loader
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


ADAPTERS = load().ADAPTERS


def test_no_adapter_is_left_out() -> None:
    folders = Path(__file__).parents[2].joinpath("services").glob("adapter-*")
    assert {f"adapter-{adapter.name}" for adapter in ADAPTERS} == {folder.name for folder in folders}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("adapter", ADAPTERS, ids=lambda adapter: adapter.title)
def test_it_conforms(adapter: Any, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), adapter.title, "--report", str(tmp_path / "report.json")]
    script = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    document = json.loads((tmp_path / "report.json").read_text())
    reports = document["reports"]
    assert [report["model"] for report in reports] == list(adapter.models)
    cases = [case for report in reports for case in (*report["cases"], *report["scenarios"])]
    assert [case for case in cases if case["verdict"] in {"failed", "blocked", "untested"}] == []
    assert document["passed"], script.stdout
    assert script.returncode == 0, script.stdout + script.stderr
    # Nothing is proven by an empty list; a model that only embeds has few cases.
    proven = [report["summary"]["proven"] for report in reports]
    assert min(proven) >= 10
    assert max(proven) >= 35
    driven = [report["scenario_summary"]["proven"] for report in reports if report["scenarios"]]
    assert len(driven) == len(adapter.upstreams)
    assert all(number >= 80 for number in driven)
    # All that speak to a provider are driven; the built-in models of `local` have none.
    assert bool(driven) == (adapter.oblige is not None)
