"""Runs tests as two pytest processes side by side: `halves.py` all but the proofs, `halves.py proofs` the proofs.

Each half waits much of its time, so that both together take little longer than the longer one. The lines of the second
half follow those of the first; the last line counts both. Exit code: 0 when no test of either half failed.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

# Whole meshes under load whose processes are killed: they take as long as everything else together.
PROOFS = (
    ("tests/chaos", "tests/events", "tests/jobs", "tests/usage"),
    ("tests/audit", "tests/budgets", "tests/isolation", "tests/peers", "tests/replicas", "tests/resume"),
)
_ADAPTERS = sorted(str(path) for path in Path("services").glob("adapter-*"))
HALVES = (
    ("maestro_sdk/tests", "services/gateway", "services/router"),
    (*_ADAPTERS, "tests", *(f"--ignore={folder}" for half in PROOFS for folder in half)),
)
_COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed|warnings?|deselected)\b")
_INTERRUPTED = 130


def main() -> int:
    """Runs both halves, prints their output, and the sum of their counts."""
    halves = PROOFS if sys.argv[1:] == ["proofs"] else HALVES
    begun = time.monotonic()
    with tempfile.TemporaryFile("w+") as kept:
        pytest = (sys.executable, "-m", "pytest")
        second = subprocess.Popen((*pytest, *halves[1]), stdout=kept, stderr=subprocess.STDOUT)
        lines: list[str] = []
        try:
            with subprocess.Popen((*pytest, *halves[0]), stdout=subprocess.PIPE, text=True) as first:
                for line in first.stdout or ():
                    print(line, end="", flush=True)
                    lines.append(line)
            second.wait()
        except KeyboardInterrupt:
            second.wait()
            return _INTERRUPTED
        kept.seek(0)
        rest = kept.readlines()
    print("".join(rest), end="")
    counts = count(lines) + count(rest)
    told = ", ".join(f"{number} {what}" for what, number in sorted(counts.items(), reverse=True))
    print(f"both halves: {told} in {time.monotonic() - begun:.0f} s")
    return first.returncode or second.returncode


def count(lines: list[str]) -> Counter[str]:
    """The counts of a run, from the last line of its output that has any."""
    for line in reversed(lines):
        if " in " in line and (found := _COUNT.findall(line)):
            return Counter({what: int(number) for number, what in found})
    return Counter()


if __name__ == "__main__":
    sys.exit(main())
