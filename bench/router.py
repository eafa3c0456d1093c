"""What deciding for everybody costs: CPU time of the router while the mesh answers as much as this machine can.

Gateways decide by the router's table, so a request costs the router no call: it gets reports in batches, and sends a
table when something changes. The load is plain chats on an upstream that answers at once; time is what `/proc` charges
to the router. Linux with two cores.

    python bench/router.py [--seconds 5] [--rounds 3]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

from smoke import Case, cpu_seconds, mesh, put_load, upstream

CASE = Case("unary, 32 at once", stream=False, prompt="hello", connections=32)
RATE = 500.0
"""Requests per second that the figure is scaled to."""
LIMIT = 0.05
"""Most of a core that the router may use at that rate."""


def main() -> int:
    """Exit code: 1 when the router uses more than the limit, or a call failed."""
    parser = argparse.ArgumentParser(description="Measure the CPU time of the router under load.")
    parser.add_argument("--rounds", type=int, default=3, help="times that the load is run (default 3)")
    parser.add_argument("--seconds", type=float, default=5.0, help="length of one load (default 5)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, upstream() as provider, mesh(provider, Path(folder)) as target:
        put_load(target, CASE, 1.0)  # warm-up, not counted
        router = target.processes["router"]
        before = cpu_seconds(router)
        time.sleep(arguments.seconds)
        idle = (cpu_seconds(router) - before) / arguments.seconds
        rounds = [put_load(target, CASE, arguments.seconds) for _ in range(arguments.rounds)]
    # Sums, since the kernel counts in steps of 10 ms.
    calls, taken = sum(found["calls"] for found in rounds), sum(found["seconds"] for found in rounds)
    rate = calls / taken
    used = sum(found["cpu"]["router"] * found["calls"] for found in rounds)
    each = max(0.0, used - idle * taken) / calls
    share = idle + each * RATE
    failed = sum(sum(found["errors"].values()) for found in rounds)
    print(f"router at rest: {idle:.2%} of a core")
    print(f"router at {rate:.0f} requests/s: {idle + each * rate:.2%} of a core, {each * 1e6:.0f} µs per request")
    print(f"router at {RATE:.0f} requests/s: {share:.2%} of a core (at most {LIMIT:.0%}); {failed} calls failed")
    return 1 if failed or share > LIMIT else 0


if __name__ == "__main__":
    sys.exit(main())
