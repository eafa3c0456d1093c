"""Configuration, catalogue and the condition of backends become one route table. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.llm.v1.model_pb2 import Feature, Model
from maestro.router.v1 import router_pb2 as pb
from maestro_router.conditions import Conditions
from maestro_sdk.service.routes import MatchConfig, RouteConfig, TargetConfig
from maestro_sdk.service.settings import BreakerConfig, Config

DEVELOPMENT = "development"
"""Tag of models that stand in where no real one is configured. They never stand in for one that is down."""


@dataclass(frozen=True, slots=True)
class Adapter:
    """What is known of one adapter. `models` stays as it was last seen while the adapter is down."""

    name: str
    address: str
    state: pb.AdapterState.ValueType = pb.ADAPTER_STATE_DOWN
    reason: str = "not reached yet"
    version: str = ""
    providers: Sequence[str] = ()
    models: Sequence[Model] = ()
    since: float = 0.0
    """Unix time since when it serves; 0 while it does not."""
    started: float = 0.0
    """Unix time at which its process came up, as it says itself; 0 for unknown."""
    regions: Sequence[str] = ()
    announced: bool = False
    """Whether it joined by announcement."""

    def status(self) -> pb.AdapterStatus:
        """The adapter as the contract has it."""
        return pb.AdapterStatus(
            name=self.name,
            address=self.address,
            state=self.state,
            reason=self.reason,
            version=self.version,
            providers=self.providers,
            models=len(self.models),
            announced=self.announced,
        )


def backend_id(adapter: str, model: str) -> str:
    """The identifier of a model at an adapter."""
    return f"{adapter}:{model}"


def compile_routes(
    config: Config,
    adapters: Mapping[str, Adapter],
    conditions: Conditions,
    version: int,
    now: float,
) -> pb.RouteTable:
    """The table. `now` is Unix time in seconds."""
    table = pb.RouteTable(version=version, breaker=_breaker_policy(config.router.breaker))
    table.time.FromNanoseconds(int(now * 1e9))
    development: set[str] = set()
    for adapter in adapters.values():
        for model in adapter.models:
            if DEVELOPMENT in model.tags:
                development.add(model.id)
            table.backends.append(_backend(adapter, model, conditions, now))
    table.backends.sort(key=lambda backend: backend.id)
    configured = {provider for adapter in adapters.values() for provider in adapter.providers}
    # An adapter that was never reached may serve any provider: nothing stands in for it on a guess.
    unseen = any(not adapter.providers and not adapter.announced for adapter in adapters.values())
    for name, route in config.routes.items():
        message = table.routes.add(name=name, strategy=route.strategy, max_attempts=route.max_attempts)
        message.first_event_timeout.FromNanoseconds(int(route.first_event_timeout * 1e9))
        message.idle_timeout.FromNanoseconds(int(route.idle_timeout * 1e9))
        message.total_timeout.FromNanoseconds(int(route.total_timeout * 1e9))
        message.quality = route.quality
        message.strategies.extend(route.strategies)
        message.tier_strategies.update(route.tier_strategies)
        _add_policy(route, message)

        def usable(targets: Iterable[TargetConfig]) -> list[pb.Target]:
            real = [
                target.model
                for target in targets
                if target.model not in development and (unseen or _provider(target.model) in configured)
            ]
            return [
                pb.Target(model=target.model, weight=target.weight, tier=target.tier)
                for target in targets
                if target.model not in development or not real
            ]

        message.targets.extend(usable(route.targets))
        if route.match is not None:
            _describe(route.match, message.match)
        if route.experiment is not None:
            message.experiment.name, message.experiment.label = route.experiment.name, route.experiment.label
            for variant, side in route.experiment.variants.items():
                message.experiment.variants.add(name=variant, share=side.share, targets=usable(side.targets))
    table.pins.update({persona: adapter.removesuffix("-only") for persona, adapter in config.router.pins.items()})
    if config.router.pin:
        table.pins[""] = config.router.pin.removesuffix("-only")
    table.aliases.update({alias: config.resolve(alias) for alias in config.aliases})
    for tenant, policy in config.tenants.items():
        if policy.regions or policy.providers:
            table.residencies[tenant].CopyFrom(pb.Residency(regions=policy.regions, providers=policy.providers))
    by_name = {route.name: route for route in table.routes}
    for alias in config.aliases:
        target = config.resolve(alias)
        if target in by_name:
            copy = table.routes.add()
            copy.CopyFrom(by_name[target])
            copy.ClearField("match")
            copy.name = alias
        else:
            limits = by_name.get("default")
            copy = table.routes.add()
            if limits is not None:
                copy.CopyFrom(limits)
                for field in ("targets", "match", "experiment", "quality", "strategies", "tier_strategies", "cache"):
                    copy.ClearField(field)
            copy.name, copy.strategy = alias, "fallback"
            copy.max_attempts = copy.max_attempts or 3
            copy.targets.add(model=target, weight=1)
    return table


def _backend(adapter: Adapter, model: Model, conditions: Conditions, now: float) -> pb.Backend:
    name = backend_id(adapter.name, model.id)
    backend = pb.Backend(
        id=name,
        adapter=adapter.name,
        address=adapter.address,
        model=model,
        regions=adapter.regions,
    )
    if adapter.since:
        backend.serving_since.FromNanoseconds(int(adapter.since * 1e9))
    serving_trouble = None if adapter.state == pb.ADAPTER_STATE_SERVING else adapter.reason
    conditions.describe(backend, f"{adapter.name}:{model.provider}", serving_trouble, now)
    return backend


def _add_policy(route: RouteConfig, message: pb.Route) -> None:
    if route.attempt_timeout is not None:
        message.attempt_timeout.FromNanoseconds(int(route.attempt_timeout * 1e9))
    message.failover_on.extend(ErrorReason.Value(f"ERROR_REASON_{name}") for name in route.failover.on)
    message.failover_off.extend(ErrorReason.Value(f"ERROR_REASON_{name}") for name in route.failover.off)
    message.retry_share = route.retry.share
    message.back_off.FromNanoseconds(int(route.retry.back_off * 1e9))
    message.longest_back_off.FromNanoseconds(int(route.retry.longest_back_off * 1e9))
    if route.hedge is not None:
        message.hedge.max_extra = route.hedge.max_extra
        if route.hedge.after is not None:
            message.hedge.after.FromNanoseconds(int(route.hedge.after * 1e9))
    if route.cache is not None:
        message.cache.max_bytes = route.cache.max_bytes
        message.cache.ttl.FromNanoseconds(int(route.cache.ttl * 1e9))
    message.resume = pb.RESUME_CONTINUE if route.resume == "continue" else pb.RESUME_FAIL
    message.require_native = route.require_native
    message.on_router_loss = pb.ROUTER_LOSS_REFUSE if route.on_router_loss == "refuse" else pb.ROUTER_LOSS_SERVE
    message.router_loss_after.FromNanoseconds(int(route.router_loss_after * 1e9))


def _describe(match: MatchConfig, message: pb.Match) -> None:
    message.models.extend(match.models)
    message.tenants.extend(match.tenants)
    message.personas.extend(match.personas)
    message.skills.extend(match.skills)
    message.labels.update(match.labels)
    message.required.extend(Feature.Value(f"FEATURE_{name}") for name in match.required)


def _breaker_policy(config: BreakerConfig) -> pb.BreakerPolicy:
    policy = pb.BreakerPolicy(
        consecutive_failures=config.consecutive_failures,
        minimum_calls=config.minimum_calls,
        failure_ratio=config.failure_ratio,
        half_open_calls=config.half_open_calls,
    )
    policy.window.FromNanoseconds(int(config.window * 1e9))
    policy.open_time.FromNanoseconds(int(config.open_time * 1e9))
    policy.quota_open_time.FromNanoseconds(int(config.quota_open_time * 1e9))
    return policy


def _provider(model: str) -> str:
    return model.split("/", 1)[0]
