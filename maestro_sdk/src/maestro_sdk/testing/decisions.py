"""Decisions for tests: a small mesh that each case changes a little, and what was decided as text."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maestro.llm.v1.chat_pb2 import Routing
from maestro.llm.v1.model_pb2 import Feature, Model
from maestro.llm.v1.usage_pb2 import Headroom
from maestro.router.v1 import router_pb2 as pb
from maestro_sdk.errors import MaestroError, NoBackend, ProviderQuota, RateLimited, UpstreamError
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.needs import Needs, feature_list, mask
from maestro_sdk.mesh.pace import Pace
from maestro_sdk.mesh.plan import plan, refusal
from maestro_sdk.mesh.table import compile_table
from maestro_sdk.testing.tables import backend, model

NOW = 1_700_000_000.0
"""When the decisions are made, in Unix time."""


def _model(name: str, native: str, prices: tuple[str, str] | None, tags: str = "", **more: Any) -> Model:
    described = model(name, *native.split(), **more)
    described.tags.extend(tags.split())
    if prices:
        described.price.effective_date, described.price.input, described.price.output = "2023-01-01", *prices
    return described


def _backends() -> dict[str, pb.Backend]:
    """Six backends under their short names: each differs in what can decide about it."""
    gpt = _model("openai/gpt", "TOOLS JSON_SCHEMA", ("3", "12"), "frontier", window=8_000)
    made = {
        "opus": backend("claude", _model("anthropic/opus", "TOOLS VISION", ("15", "75"), "frontier", window=200_000)),
        "gpt": backend("openai", gpt),
        "gpt-eu": backend("east", gpt),
        "flash": backend("vertex", _model("google/flash", "TOOLS VISION JSON_SCHEMA", ("0.3", "2.5"), window=100_000)),
        "haiku": backend("claude", _model("anthropic/haiku", "TOOLS VISION", ("1", "5"), "fast", window=200_000)),
        "tiny": backend("local", _model("local/tiny", "", None, polyfilled=("TOOLS", "JSON_SCHEMA"), window=4_000)),
    }
    for name, regions in {"opus": "eu us", "haiku": "eu us", "gpt": "us", "gpt-eu": "eu", "tiny": "eu"}.items():
        made[name].regions.extend(regions.split())
    return made


@dataclass(slots=True)
class World:
    """A mesh before it is decided: its table as a message, what the process knows by itself, and the dice."""

    backends: dict[str, pb.Backend] = field(default_factory=_backends)
    table: pb.RouteTable = field(default_factory=lambda: pb.RouteTable(version=7))
    local: LocalState = field(default_factory=LocalState)
    dice: Callable[[], float] = lambda: 0.5
    after: list[Callable[[World], None]] = field(default_factory=list[Callable[["World"], None]])
    """What is done once the process has adopted the table."""

    def __post_init__(self) -> None:
        self.route("default", "opus gpt flash tiny")
        self.local.router_seen = NOW

    def route(self, name: str, targets: str, strategy: str = "fallback") -> pb.Route:
        """The route of this name with these targets, as "opus*3 gpt@1": weight 3, and tier 1."""
        found = next((route for route in self.table.routes if route.name == name), None)
        if found is None:
            found = self.table.routes.add(name=name)
        found.strategy, found.max_attempts = strategy, 3
        del found.targets[:]
        found.targets.extend(self.targets(targets))
        return found

    def targets(self, described: str) -> list[pb.Target]:
        """Targets in short; what is no short name of a backend is a model that nobody offers."""
        made: list[pb.Target] = []
        for word in described.split():
            rest, _, tier = word.partition("@")
            name, _, weight = rest.partition("*")
            known = self.backends.get(name)
            made.append(
                pb.Target(model=known.model.id if known else name, weight=float(weight or 1), tier=int(tier or 0))
            )
        return made


Change = Callable[[World], object]
"""What a case changes in the mesh."""


def targets(described: str, strategy: str = "fallback", *, route: str = "default", **tiers: str) -> Change:
    """Other targets and strategy of a route; `t1="cost"` gives tier 1 a strategy of its own."""

    def change(world: World) -> None:
        made = world.route(route, described, strategy)
        made.tier_strategies.update({int(name[1:]): value for name, value in tiers.items()})

    return change


def sets(route: str = "default", **fields: Any) -> Change:
    """Sets fields of a route: plain values, lists, or a `Match`."""

    def change(world: World) -> None:
        found = next(each for each in world.table.routes if each.name == route)
        for name, value in fields.items():
            match value:
                case pb.Match():
                    found.match.CopyFrom(value)
                case list():
                    getattr(found, name).extend(value)
                case _:
                    setattr(found, name, value)

    return change


def experiment(share: float, described: str, *, label: str = "") -> Change:
    """An experiment on the default route whose variant "new" gets these targets."""

    def change(world: World) -> None:
        variant = pb.Variant(name="new", share=share, targets=world.targets(described))
        world.table.routes[0].experiment.MergeFrom(pb.Experiment(name="trial", label=label, variants=[variant]))

    return change


def pins(**adapters: str) -> Change:
    """Pins by persona; `everything` pins all."""
    return lambda world: world.table.pins.update(
        {"" if persona == "everything" else persona: adapter for persona, adapter in adapters.items()}
    )


def resides(tenant: str, *, regions: str = "", providers: str = "") -> Change:
    """Bounds a tenant."""
    bounds = pb.Residency(regions=regions.split(), providers=providers.split())
    return lambda world: world.table.residencies[tenant].CopyFrom(bounds)


def state(name: str, word: str, reason: str = "", until: float | None = None) -> Change:
    """The state of a backend in the table; `until` is seconds from now."""

    def change(world: World) -> None:
        found = world.backends[name]
        found.state, found.state_reason = pb.BackendState.Value(f"BACKEND_STATE_{word}"), reason
        if until is not None:
            found.state_until.FromNanoseconds(int((NOW + until) * 1e9))

    return change


def gone(*names: str) -> Change:
    """Backends that no adapter offers."""
    return lambda world: [world.backends.pop(name) for name in names]


def _later(change: Callable[[World], object]) -> Change:
    return lambda world: world.after.append(lambda known: (change(known), None)[1])


def fails(name: str, error: MaestroError, times: int = 1, *, ago: float = 0.0) -> Change:
    """Calls that failed at a backend, seconds ago."""

    def change(world: World) -> None:
        found = compile_table(world.table).backends[world.backends[name].id]
        for _ in range(times):
            world.local.begin(found, NOW - ago)
            world.local.fail(found, error, NOW - ago)

    return _later(change)


def trying(name: str) -> Change:
    """A call to a backend is under way."""

    def change(world: World) -> None:
        found = compile_table(world.table).backends[world.backends[name].id]
        world.local.begin(found, NOW)

    return _later(change)


def busy(**calls: int) -> Change:
    """Calls under way, by backend."""
    return _later(
        lambda world: world.local.load.in_flight.update({world.backends[n].id: count for n, count in calls.items()})
    )


def paced(**paces: tuple[float, float]) -> Change:
    """Seconds to the first event and tokens per second, by backend."""

    def change(world: World) -> None:
        for name, (first, rate) in paces.items():
            known = world.local.load.paces[world.backends[name].id] = Pace()
            known.first, known.rate = first, rate

    return _later(change)


def _headroom(requests: tuple[int, ...], tokens: tuple[int, ...], reset: float | None) -> Headroom:
    made = Headroom()
    for limit, told in ((made.requests, requests), (made.tokens, tokens)):
        if told:
            limit.remaining = told[0]
            if len(told) > 1:
                limit.limit = told[1]
            if reset is not None:
                limit.reset.FromNanoseconds(int(reset * 1e9))
    return made


def left(
    name: str,
    requests: tuple[int, ...] = (),
    tokens: tuple[int, ...] = (),
    *,
    reset: float | None = 60.0,
    ago: float = 0.0,
    by_router: bool = False,
) -> Change:
    """What a provider told that its limits leave, as (remaining, limit) or (remaining,): here, or to the router."""
    headroom = _headroom(requests, tokens, reset)

    def in_table(world: World) -> None:
        world.backends[name].headroom.CopyFrom(headroom)
        world.backends[name].headroom_time.FromNanoseconds(int((NOW - ago) * 1e9))

    if by_router:
        return in_table
    return _later(lambda world: world.local.note_headroom(world.backends[name].id, headroom, NOW - ago))


def lost(limit: float, seen: float | None) -> Change:
    """The default route demands a router; the last sign of one is so many seconds old, None: never."""

    def change(world: World) -> None:
        route = world.table.routes[0]
        route.on_router_loss = pb.ROUTER_LOSS_REFUSE
        route.router_loss_after.FromNanoseconds(int(limit * 1e9))
        world.local.router_seen = NOW - seen if seen is not None else 0.0

    return change


def rolls(*numbers: float) -> Change:
    """What the dice give, one after the other."""

    def change(world: World) -> None:
        world.dice = iter(numbers).__next__

    return change


BROKEN = UpstreamError("broken")
GONE = UpstreamError("the adapter does not answer", metadata={"origin": "transport"})
QUOTA = ProviderQuota("credit used up")
SLOW_DOWN = RateLimited("slow down", retry_after=20.0)


def asks(
    name: str = "",
    features: str = "",
    *,
    tenant: str = "",
    tokens: int = 1000,
    answer: int = 0,
    labels: Mapping[str, str] | None = None,
    **routing: Any,
) -> Needs:
    """The needs of a chat: features as "TOOLS VISION", and the fields of its routing."""
    if "required" in routing:
        routing["required"] = [Feature.Value(f"FEATURE_{word}") for word in routing["required"].split()]
    bits = mask(Feature.Value(f"FEATURE_{word}") for word in ("CHAT", *features.split()))
    return Needs(name, bits, Routing(**routing), tokens, answer, tenant, labels or {})


def explain(needs: Needs, changes: Sequence[Change]) -> str:
    """What is decided, as text: kept backends in their order, dropped ones, and the error where none is left."""
    world = World()
    for change in changes:
        change(world)
    world.table.backends.extend(world.backends.values())
    table = compile_table(world.table)
    world.local.adopt(table, NOW)
    for step in world.after:
        step(world)
    try:
        decision = plan(needs, table, world.local, NOW, world.dice)
    except MaestroError as error:
        return _say(error)
    shown = decision.message()
    trial = f", {shown.experiment}: {shown.variant or 'as the route has it'}" if shown.experiment else ""
    lines = [f"{'route ' + shown.route if shown.route else 'model ' + needs.model} by {shown.strategy}{trial}"]
    number = 0
    for found in shown.candidates:
        number += found.kept
        score = f", score {found.score:.4g}" if found.HasField("score") else ""
        cost = f", ${float(found.estimated_usd):.6f}" if found.HasField("estimated_usd") else ""
        missing = f" {feature_list(mask(found.missing))}" if found.missing else ""
        place = f"{number}." if found.kept else " -"
        lines.append(f"  {place} {found.backend_id or found.model}  {found.reason}{missing}{score}{cost}")
    if not decision.kept:
        lines.append(_say(refusal(decision, needs, NOW)))
    return "\n".join(lines)


def _say(error: MaestroError) -> str:
    wait = f", again in {error.retry_after:.0f} s" if error.retry_after is not None else ""
    helps = ", waiting does not help" if isinstance(error, NoBackend) and not error.retryable else ""
    metadata = {name: value for name, value in error.metadata.items() if name not in ("tried", "known")}
    more = f"\n  {json.dumps(metadata, sort_keys=True)}" if metadata else ""
    fields = "".join(f"\n  {violation.field}: {violation.message}" for violation in error.violations)
    return f"  {error.reason}{wait}{helps}: {error.message}{fields}{more}"
