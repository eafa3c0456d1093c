"""The page of capabilities is what the adapters tell now."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("capabilities.py")


@pytest.mark.timeout(120)
def test_the_page_is_fresh() -> None:
    script = subprocess.run(
        [sys.executable, str(SCRIPT), "check"], capture_output=True, text=True, timeout=100, check=False
    )
    assert script.returncode == 0, script.stdout + script.stderr
