"""Runs the tests in parts: `parts.py` all but the proofs, `parts.py proofs` the proofs.

A part waits much of its time, so that two pytest processes together take little longer than one; who is done takes the
next part, so that both are done at nearly the same time, on any machine. A proof has the machine for itself: its
clients load all cores. Each folder of whole meshes is a part, since its meshes run till its pytest ends.

A part's output is printed when it has ended; the last line counts all. Exit code: 0 when no test of any part failed.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass
from pathlib import Path

AT_ONCE, PROOFS_AT_ONCE = (int(os.environ.get("TESTS_AT_ONCE", usual)) for usual in ("2", "1"))
"""Parts at a time."""

# Whole meshes under load whose processes are killed: they take as long as everything else together.
PROOFS = (
    "tests/isolation",
    "tests/chaos",
    "tests/jobs",
    "tests/events",
    "tests/peers",
    "tests/resume",
    "tests/budgets",
    "tests/replicas",
    "tests/usage",
    "tests/audit",
)
# Long ones first, and folders that need no mesh beside those that do. What is not named here comes last, so that no
# folder is left out.
FIRST = (
    ("services/gateway",),
    ("tests/ingress",),
    ("tests/e2e",),
    ("maestro_sdk/tests",),
    ("tests/drills",),
    ("tests/openapi",),
    tuple(sorted(str(path) for path in Path("services").iterdir() if path.name != "gateway" and path.is_dir())),
    ("tests/files", "tests/envoy"),
    ("tests/conformance", "tests/matrix"),
)
_COUNT = re.compile(r"(\d+) (passed|failed|errors?|skipped|xfailed|xpassed|warnings?|deselected)\b")
_INTERRUPTED = 130


@dataclass(frozen=True, slots=True)
class Ended:
    """A part that has ended."""

    folders: Sequence[str]
    code: int
    output: str
    seconds: float


def main() -> int:
    """Runs all parts, prints what they print, and the sum of their counts."""
    proofs = sys.argv[1:] == ["proofs"]
    parts = [(folder,) for folder in PROOFS] if proofs else everyday()
    begun = time.monotonic()
    counts: Counter[str] = Counter()
    code = 0
    with ThreadPoolExecutor(PROOFS_AT_ONCE if proofs else AT_ONCE) as pool:
        try:
            for future in as_completed([pool.submit(run, part) for part in parts]):
                ended = future.result()
                print(ended.output, end="")
                print(f"{' '.join(ended.folders)}: {ended.seconds:.0f} s, exit code {ended.code}\n", flush=True)
                counts += count(ended.output)
                code = code or ended.code
        except KeyboardInterrupt:
            # Those that run were interrupted, too, and end by themselves.
            pool.shutdown(cancel_futures=True)
            return _INTERRUPTED
    told = ", ".join(f"{number} {what}" for what, number in sorted(counts.items(), reverse=True))
    print(f"all {len(parts)} parts: {told} in {time.monotonic() - begun:.0f} s")
    return code


def run(part: Sequence[str]) -> Ended:
    """Runs the tests of some folders in a pytest of their own."""
    begun = time.monotonic()
    command = (sys.executable, "-m", "pytest", *part)
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    return Ended(part, done.returncode, done.stdout, time.monotonic() - begun)


def everyday() -> list[Sequence[str]]:
    """The parts without the proofs."""
    named = {*PROOFS, *(folder for part in FIRST for folder in part)}
    rest = sorted({str(test.parent) for test in Path("tests").glob("*/test_*.py")} - named)
    return [*FIRST, *((folder,) for folder in rest)]


def count(output: str) -> Counter[str]:
    """The counts of a run, from the last line of its output that has any."""
    for line in reversed(output.splitlines()):
        if " in " in line and (found := _COUNT.findall(line)):
            return Counter({what: int(number) for number, what in found})
    return Counter()


if __name__ == "__main__":
    sys.exit(main())
