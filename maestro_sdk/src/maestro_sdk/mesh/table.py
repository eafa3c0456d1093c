"""The route table as `plan` reads it: compiled once per version, so that a decision is a few dictionary look-ups."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from google.protobuf.duration_pb2 import Duration
from google.protobuf.timestamp_pb2 import Timestamp

from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.llm.v1.model_pb2 import Support
from maestro.llm.v1.usage_pb2 import Price
from maestro.router.v1 import router_pb2 as pb
from maestro_sdk.mesh.breaker import BreakerPolicy
from maestro_sdk.mesh.headroom import Allowance, allowance_of

DEFAULT_ROUTE = "default"
STRATEGIES = ("fallback", "weighted", "round_robin", "cost", "performance", "headroom", "capability")
"""Names of the strategies that order the targets of a route."""


@dataclass(frozen=True, slots=True)
class Rates:
    """Prices in US dollars per token, for estimates; the exact ones stand in the model. `minimum` is per call."""

    input: float
    output: float
    minimum: float


@dataclass(frozen=True, slots=True)
class Backend:
    """One model at one adapter.

    `native` and `able` (native or polyfilled) are bit masks of features; `until` and `since` (when the adapter began to
    serve) are Unix time, 0 for none. Unknown limits are 0, an unknown price is None.
    """

    id: str
    adapter: str
    address: str
    model: str
    provider: str
    native: int
    able: int
    window: int
    output_limit: int
    price: Rates | None
    tags: frozenset[str]
    state: pb.BackendState.ValueType
    state_reason: str
    until: float
    since: float
    regions: frozenset[str]
    account: str
    """The account at a provider that all models of an adapter share: "adapter:provider"."""
    allowance: Allowance | None
    """What the provider's rate limits leave, as it was told to the router last; None for unknown."""
    point: int
    """A hash of the id, to be mixed with that of a key."""
    message: pb.Backend


class Choice(NamedTuple):
    """A backend that may be tried, with its weight, and its estimated cost in US dollars; None where it is unknown.

    `number` is that of its target on the route, 0 for one that the route does not list.
    """

    backend: Backend
    weight: float
    cost: float | None
    number: int


@dataclass(frozen=True, slots=True)
class Entry:
    """A backend of a route; all entries of a tier are tried before those of the next.

    `number` is that of its target as the route lists them, from 1 on; 0 for one that the route does not list.
    """

    backend: Backend
    weight: float = 1.0
    tier: int = 0
    number: int = 0
    choice: Choice = field(init=False, repr=False, compare=False)
    """The entry as one that may be tried, without a cost: made once, not for each request."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "choice", Choice(self.backend, self.weight, None, self.number))


@dataclass(frozen=True, slots=True)
class Targets:
    """Backends in order of tier, then of the configuration; `missing` are models that no adapter offers."""

    entries: Sequence[Entry]
    missing: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Experiment:
    """Variants by name, with shares in percent. The subject is the value of `label`; empty: session, else tenant."""

    name: str
    label: str
    shares: Sequence[tuple[str, float]]
    variants: Mapping[str, Targets]


@dataclass(frozen=True, slots=True)
class Match:
    """Which requests take a route without naming it; what is empty fits all. `required` is a bit mask of features."""

    models: frozenset[str]
    tenants: frozenset[str]
    personas: frozenset[str]
    skills: frozenset[str]
    labels: Sequence[tuple[str, str]]
    required: int


@dataclass(frozen=True, slots=True)
class Hedge:
    """When a second backend is asked: `after` seconds, 0 for the first one's own 95th percentile."""

    after: float
    max_extra: float


@dataclass(frozen=True, slots=True)
class AnswerCache:
    """How long and up to which size answers are given again; another `seal` stands for another version of the route."""

    ttl: float
    max_bytes: int
    seal: bytes


@dataclass(frozen=True, slots=True)
class Policy:
    """What dispatch does when an attempt of a request is slow or fails. Times in seconds, 0 for none."""

    max_attempts: int = 3
    attempt_timeout: float = 0.0
    first_event_timeout: float = 0.0
    idle_timeout: float = 0.0
    total_timeout: float = 0.0
    failover_on: frozenset[ErrorReason.ValueType] = frozenset()
    failover_off: frozenset[ErrorReason.ValueType] = frozenset()
    retry_share: float = 0.2
    back_off: float = 0.05
    longest_back_off: float = 2.0
    hedge: Hedge | None = None
    resumes: bool = False
    """Whether another backend goes on with an answer that failed after content was handed on."""


@dataclass(frozen=True, slots=True)
class Residency:
    """Where requests of a tenant may be answered; an empty set allows all."""

    regions: frozenset[str]
    providers: frozenset[str]

    def refuses(self, backend: Backend) -> str:
        """Why a backend may not answer; empty when it may. One whose regions are unknown may be anywhere."""
        if self.providers and backend.provider not in self.providers:
            return f"answers by {backend.provider}; the tenant allows only {_listed(self.providers)}"
        if self.regions and not backend.regions:
            return f"its regions are unknown; the tenant allows only {_listed(self.regions)}"
        if self.regions and not backend.regions <= self.regions:
            return f"answers in {_listed(backend.regions)}; the tenant allows only {_listed(self.regions)}"
        return ""


@dataclass(frozen=True, slots=True)
class Route:
    """Backends under one name, and how its requests are treated."""

    name: str
    strategy: str
    targets: Targets
    quality: str
    strategies: Sequence[str]
    match: Match | None
    experiment: Experiment | None
    policy: Policy
    require_native: bool
    tier_strategies: Mapping[int, str]
    """Strategies of single tiers; all others have `strategy`."""
    loss_limit: float | None
    """Seconds without a router after which requests are refused; None: never."""
    cache: AnswerCache | None = None
    """None where every request is asked anew."""


@dataclass(frozen=True, slots=True)
class Table:
    """A version of the table. Routes are found by name; models by "provider/name", or by bare name where one has it."""

    version: int
    backends: Mapping[str, Backend]
    routes: Mapping[str, Route]
    models: Mapping[str, Route]
    ambiguous: Mapping[str, Sequence[str]]
    breaker: BreakerPolicy
    matching: Sequence[Route] = ()
    """Routes that take requests without being named, in the order in which they are asked."""
    pins: Mapping[str, str] = field(default_factory=dict[str, str])
    """Adapter by persona, "" for all."""
    aliases: Mapping[str, str] = field(default_factory=dict[str, str])
    """What each alias stands for."""
    residencies: Mapping[str, Residency] = field(default_factory=dict[str, Residency])
    """Where requests of a tenant may be answered, by tenant."""
    caches: bool = False
    """Whether any route gives answers again."""

    def names(self) -> list[str]:
        """What a request's `model` may say: routes first, then models."""
        return [*sorted(self.routes), *sorted(name for name in self.models if "/" in name)]


EMPTY = Table(0, {}, {}, {}, {}, BreakerPolicy())


def compile_table(message: pb.RouteTable) -> Table:
    """The table of a message; what a route names and no backend offers is kept in `Route.missing`."""
    backends = {backend.id: _backend(backend) for backend in message.backends}
    by_model: dict[str, list[Backend]] = {}
    for backend in backends.values():
        by_model.setdefault(backend.model, []).append(backend)
    routes = {route.name: _route(route, by_model, route) for route in message.routes}
    # A model that is named directly gets the limits of the default route, and every adapter that serves it.
    limits = next((route for route in message.routes if route.name == DEFAULT_ROUTE), pb.Route(max_attempts=3))
    models = {
        model: _route(pb.Route(strategy="fallback", targets=[pb.Target(model=model, weight=1)]), by_model, limits)
        for model in by_model
    }
    bare: dict[str, list[str]] = {}
    for model in by_model:
        bare.setdefault(model.split("/", 1)[1], []).append(model)
    ambiguous = {name: found for name, found in bare.items() if len(found) > 1}
    models |= {name: models[found[0]] for name, found in bare.items() if len(found) == 1 and name not in models}
    policy = BreakerPolicy.from_message(message.breaker) if message.HasField("breaker") else BreakerPolicy()
    matching = [route for route in routes.values() if route.match is not None]
    return Table(
        message.version,
        backends,
        routes,
        models,
        ambiguous,
        policy,
        matching,
        dict(message.pins),
        dict(message.aliases),
        {
            tenant: Residency(frozenset(found.regions), frozenset(found.providers))
            for tenant, found in message.residencies.items()
        },
        any(route.cache is not None for route in routes.values()),
    )


def _backend(message: pb.Backend) -> Backend:
    native = able = 0
    for entry in message.model.features:
        if entry.support == Support.SUPPORT_NATIVE:
            native |= 1 << entry.feature
        if entry.support in (Support.SUPPORT_NATIVE, Support.SUPPORT_POLYFILLED):
            able |= 1 << entry.feature
    return Backend(
        id=message.id,
        adapter=message.adapter,
        address=message.address,
        model=message.model.id,
        provider=message.model.provider,
        native=native,
        able=able,
        window=message.model.context_window,
        output_limit=message.model.max_output_tokens,
        price=_rates(message.model.price) if message.model.HasField("price") else None,
        tags=frozenset((*message.tags, *message.model.tags)),
        state=message.state,
        state_reason=message.state_reason,
        until=message.state_until.ToNanoseconds() / 1e9 if message.HasField("state_until") else 0.0,
        since=_seconds(message.serving_since),
        regions=frozenset(message.regions),
        account=f"{message.adapter}:{message.model.provider}",
        allowance=allowance_of(message.headroom, _seconds(message.headroom_time)),
        point=point_of(message.id),
        message=message,
    )


def point_of(text: str) -> int:
    """A hash of 64 bits that every process computes alike."""
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(sorted(names))


def _rates(price: Price) -> Rates:
    return Rates(float(price.input) / 1e6, float(price.output) / 1e6, float(price.minimum_charge or 0))


def _route(route: pb.Route, by_model: Mapping[str, Sequence[Backend]], limits: pb.Route) -> Route:
    return Route(
        name=route.name,
        strategy=_understood(route.strategy),
        targets=_targets(route.targets, by_model),
        quality=route.quality,
        strategies=tuple(route.strategies),
        match=_match(route.match) if route.HasField("match") else None,
        experiment=_experiment(route.experiment, by_model) if route.HasField("experiment") else None,
        policy=_policy(limits),
        require_native=limits.require_native,
        tier_strategies={tier: _understood(name) for tier, name in route.tier_strategies.items()},
        loss_limit=_seconds(limits.router_loss_after) if limits.on_router_loss == pb.ROUTER_LOSS_REFUSE else None,
        cache=_cache(route) if route.HasField("cache") else None,
    )


def _cache(route: pb.Route) -> AnswerCache:
    # The whole route: what it answered under other rules, or by other models, is not its answer any more.
    seal = hashlib.blake2b(route.SerializeToString(deterministic=True), digest_size=16).digest()
    return AnswerCache(_seconds(route.cache.ttl), route.cache.max_bytes, seal)


def _understood(strategy: str) -> str:
    """A strategy that this version knows: while a mesh is updated, a router may be newer than who reads its table."""
    return strategy if strategy in STRATEGIES else "fallback"


def _policy(route: pb.Route) -> Policy:
    usual = Policy()
    return Policy(
        max_attempts=max(1, route.max_attempts),
        attempt_timeout=_seconds(route.attempt_timeout),
        first_event_timeout=_seconds(route.first_event_timeout),
        idle_timeout=_seconds(route.idle_timeout),
        total_timeout=_seconds(route.total_timeout),
        failover_on=frozenset(route.failover_on),
        failover_off=frozenset(route.failover_off),
        retry_share=route.retry_share if route.HasField("retry_share") else usual.retry_share,
        back_off=_seconds(route.back_off) if route.HasField("back_off") else usual.back_off,
        longest_back_off=_seconds(route.longest_back_off)
        if route.HasField("longest_back_off")
        else usual.longest_back_off,
        hedge=Hedge(_seconds(route.hedge.after), route.hedge.max_extra) if route.HasField("hedge") else None,
        resumes=route.resume == pb.RESUME_CONTINUE,
    )


def _seconds(value: Duration | Timestamp) -> float:
    return value.ToNanoseconds() / 1e9


def _targets(targets: Iterable[pb.Target], by_model: Mapping[str, Sequence[Backend]]) -> Targets:
    ordered = sorted(enumerate(targets, 1), key=lambda numbered: numbered[1].tier)
    return Targets(
        [
            Entry(found, target.weight, target.tier, number)
            for number, target in ordered
            for found in by_model.get(target.model, ())
        ],
        [target.model for _, target in ordered if target.model not in by_model],
    )


def _match(match: pb.Match) -> Match:
    required = 0
    for feature in match.required:
        required |= 1 << feature
    return Match(
        frozenset(match.models),
        frozenset(match.tenants),
        frozenset(match.personas),
        frozenset(match.skills),
        sorted(match.labels.items()),
        required,
    )


def _experiment(experiment: pb.Experiment, by_model: Mapping[str, Sequence[Backend]]) -> Experiment:
    return Experiment(
        experiment.name,
        experiment.label,
        [(variant.name, variant.share) for variant in experiment.variants],
        {variant.name: _targets(variant.targets, by_model) for variant in experiment.variants},
    )
