"""The adapters of this repository conform, each as its own process."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("adapters.py")
MODELS = {
    "claude": ["anthropic/claude-opus-5-5", "anthropic/claude-sonnet-5"],
    "openai": ["openai/gpt-4.1", "openai/gpt-5.1"],
    "local": ["local/offline"],
}


@pytest.mark.timeout(180)
@pytest.mark.parametrize("adapter", list(MODELS))
def test_it_conforms(adapter: str, tmp_path: Path) -> None:
    command = [sys.executable, str(SCRIPT), adapter, "--reports", str(tmp_path)]
    script = subprocess.run(command, capture_output=True, text=True, timeout=150, check=False)
    reports = [json.loads(file.read_text()) for file in sorted(tmp_path.iterdir())]
    assert [report["model"] for report in reports] == MODELS[adapter]
    wrong = [
        case for report in reports for case in report["cases"] if case["verdict"] in {"failed", "blocked", "untested"}
    ]
    assert not wrong
    assert script.returncode == 0, script.stdout + script.stderr
    # Nothing is proven by an empty list.
    assert all(report["summary"]["proven"] >= 35 for report in reports)
