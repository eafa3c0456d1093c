"""What a decision costs: CPU time of `plan` with 20 backends and 10 routes, and of what stands around it.

Each case is measured in several rounds, and the quickest round counts: what other programs take away is not ours.
Exits with 1 when a decision costs more than the budget.

    python bench/plan.py [--rounds 7] [--calls 2000] [--budget 40]
"""

from __future__ import annotations

import argparse
import random
import sys
import time
from collections.abc import Callable

from maestro.llm.v1.chat_pb2 import ChatRequest, Routing
from maestro.llm.v1.message_pb2 import Role
from maestro.llm.v1.model_pb2 import Feature
from maestro.llm.v1.usage_pb2 import Headroom
from maestro.router.v1 import router_pb2 as pb
from maestro_sdk.errors import UpstreamError
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.needs import Needs, mask, needs_of
from maestro_sdk.mesh.pace import Pace
from maestro_sdk.mesh.plan import plan
from maestro_sdk.mesh.table import STRATEGIES, Table, compile_table
from maestro_sdk.testing.tables import backend, message, model

BACKENDS, ROUTES = 20, 10
NOW = 1_800_000_000.0
ADAPTERS = 5


def build(strategy: str) -> Table:
    """A table whose default route has all backends; the other routes take what matches, and never this request."""
    backends: list[pb.Backend] = []
    for number in range(BACKENDS):
        described = model(
            f"p{number % ADAPTERS}/m{number}", "TOOLS", "VISION", polyfilled=["JSON_SCHEMA"], window=200_000
        )
        described.price.effective_date, described.price.input, described.price.output = "2026-01-01", "3", "15"
        described.tags.append("frontier")
        found = backend(f"a{number % ADAPTERS}", described)
        found.regions.append("eu")
        backends.append(found)
    targets = [(found.model.id, float(n + 1)) for n, found in enumerate(backends)]
    names = ["default", *(f"r{n}" for n in range(1, ROUTES))]
    made = message(backends, dict.fromkeys(names, targets), strategy=strategy)
    for route in made.routes[1:]:
        route.match.personas.append(f"persona-{route.name}")
        route.match.tenants.extend(["one", "two"])
        route.match.labels["team"] = "core"
    default = made.routes[0]
    default.quality = "frontier"
    default.experiment.name = "trial"
    default.experiment.variants.add(name="other", share=10, targets=default.targets)
    made.residencies["acme"].regions.append("eu")
    return compile_table(made)


def know(table: Table, *, open_account: bool) -> LocalState:
    """What a gateway knows after some traffic: paces, headroom, and the breakers of all backends and accounts."""
    local = LocalState()
    local.adopt(table, NOW)
    local.router_seen = NOW
    for number, found in enumerate(table.backends.values()):
        local.load.in_flight[found.id] = number % 3
        pace = local.load.paces[found.id] = Pace()
        pace.observe(0.1 + number / 100, 1.0, 100, NOW)
        headroom = Headroom()
        headroom.requests.limit, headroom.requests.remaining, headroom.requests.reset.seconds = 1000, 500 + number, 60
        headroom.tokens.limit, headroom.tokens.remaining, headroom.tokens.reset.seconds = 10**6, 9 * 10**5, 60
        local.note_headroom(found.id, headroom, NOW)
        local.begin(found, NOW)
        local.succeed(found, NOW)
    if open_account:
        first = next(iter(table.backends.values()))
        gone = UpstreamError("the adapter does not answer", metadata={"origin": "transport"})
        for _ in range(5):
            local.begin(first, NOW)
            local.fail(first, gone, NOW)
    return local


def measure(call: Callable[[], object], rounds: int, calls: int) -> float:
    """Microseconds of CPU time per call, in the quickest round."""
    best = float("inf")
    for _ in range(rounds):
        begun = time.process_time_ns()
        for _ in range(calls):
            call()
        best = min(best, (time.process_time_ns() - begun) / calls / 1000)
    return best


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=2000)
    parser.add_argument("--budget", type=float, default=40.0, help="microseconds for one decision (default: 40)")
    options = parser.parse_args()
    required = mask([Feature.FEATURE_CHAT, Feature.FEATURE_STREAMING, Feature.FEATURE_TOOLS])
    plain = Needs("", required, Routing(), 1000, 500, tenant="acme")
    keyed = Needs("", required, Routing(session_key="session-1"), 1000, 500, tenant="acme")
    dice = random.Random(1).random
    worst = 0.0
    print(f"plan, {BACKENDS} backends, {ROUTES} routes: µs of CPU, best of {options.rounds} x {options.calls} calls")
    print(f"{'strategy':<14}{'plain':>9}{'session':>9}{'account open':>14}{'message()':>11}")
    for strategy in STRATEGIES:
        table = build(strategy)
        usual, broken = know(table, open_account=False), know(table, open_account=True)
        decision = plan(plain, table, usual, NOW, dice)
        times = [
            measure(lambda n=needs, s=state, t=table: plan(n, t, s, NOW, dice), options.rounds, options.calls)
            for needs, state in ((plain, usual), (keyed, usual), (plain, broken))
        ]
        shown = measure(decision.message, options.rounds, options.calls // 4)
        worst = max(worst, *times)
        print(f"{strategy:<14}{times[0]:>9.1f}{times[1]:>9.1f}{times[2]:>14.1f}{shown:>11.1f}")
    request = ChatRequest(system="You are brief.", routing=Routing(session_key="session-1"))
    for _ in range(3):
        request.messages.add(role=Role.ROLE_USER).parts.add().text.text = "Say hello to the far end. " * 20
    print(f"needs_of, three messages: {measure(lambda: needs_of(request, 'acme'), options.rounds, options.calls):.1f}")
    print(f"worst decision: {worst:.1f} µs, budget {options.budget:g} µs")
    return int(worst > options.budget)


if __name__ == "__main__":
    sys.exit(main())
