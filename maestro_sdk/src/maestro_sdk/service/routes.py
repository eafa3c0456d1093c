"""The routes of a configuration: which requests they take, and which models in which order."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from maestro_sdk.service.values import Duration, FeatureName, ModelName, Settings, Size

Strategy = Literal["fallback", "weighted", "round_robin", "cost", "performance", "headroom", "capability"]
"""How the targets of a tier are ordered."""


FailoverReason = Literal[
    "CONTEXT_TOO_LONG",
    "PROVIDER_AUTH",
    "NOT_FOUND",
    "RATE_LIMITED",
    "PROVIDER_QUOTA",
    "OVERLOADED",
    "UPSTREAM_ERROR",
    "TIMEOUT",
    "STREAM_BROKEN",
    "CONTENT_POLICY",
    "OUTPUT_INVALID",
]
"""Errors that lie with a backend, so that another one may do better. Faults of the caller are not among them."""


class TargetConfig(Settings):
    """One model of a route; `weight` is its share under the strategy `weighted`. One tier is tried after the other."""

    model: ModelName
    weight: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 1.0
    tier: Annotated[int, Field(ge=0, le=99)] = 0

    @model_validator(mode="before")
    @classmethod
    def _accept_text(cls, value: Any) -> Any:
        return {"model": value} if isinstance(value, str) else value


class MatchConfig(Settings):
    """Which requests take a route without naming it: those that fit every list given here.

    `models` are names that a request's `model` gives; without them only requests that name no model fit.
    """

    models: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    personas: tuple[str, ...] = ()
    skills: tuple[str, ...] = ()
    labels: dict[str, str] = Field(default_factory=dict[str, str])
    required: tuple[FeatureName, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if not any(getattr(self, name) for name in type(self).model_fields):
            raise ValueError("says nothing: name models, tenants, personas, skills, labels or required features")
        return self


class VariantConfig(Settings):
    """One side of an experiment: `share` of the subjects in percent, and the models that they get."""

    share: Annotated[float, Field(gt=0, le=100)]
    targets: Annotated[tuple[TargetConfig, ...], Field(min_length=1)]


class ExperimentConfig(Settings):
    """Compares models. The subject is the value of `label`; without one the session, and the tenant else."""

    name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$")]
    label: str = ""
    variants: Annotated[dict[str, VariantConfig], Field(min_length=1)]

    @model_validator(mode="after")
    def _check(self) -> Self:
        total = sum(variant.share for variant in self.variants.values())
        if total > 100:
            raise ValueError(f"the shares of the variants add up to {total:g} percent")
        return self


class FailoverConfig(Settings):
    """Errors by reason: after those of `on` another backend is tried even where the error does not ask for it, after
    those of `off` none is. All others decide for themselves."""

    on: tuple[FailoverReason, ...] = ()
    off: tuple[FailoverReason, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        if both := set(self.on) & set(self.off):
            raise ValueError(f"{', '.join(sorted(both))} stands under `on` and `off`")
        return self


class RetryConfig(Settings):
    """Retries once every target had its turn: `share` of the requests may have one; pauses double each time."""

    share: Annotated[float, Field(ge=0, le=1)] = 0.2
    back_off: Annotated[Duration, Field(gt=0)] = 0.05
    longest_back_off: Annotated[Duration, Field(gt=0)] = 2.0


class HedgeConfig(Settings):
    """A second backend is asked when the first has not begun to answer `after` that time; None: its 95th percentile.

    `max_extra` bounds what second attempts may add to what the route spends.
    """

    after: Annotated[Duration, Field(gt=0)] | None = None
    max_extra: Annotated[float, Field(gt=0, le=1)] = 0.1


class AnswerCacheConfig(Settings):
    """An answer is given again to the same request of the same tenant for `ttl`; one above `max_bytes` is not kept."""

    ttl: Annotated[Duration, Field(ge=1, le=7 * 86400)]
    max_bytes: Annotated[Size, Field(ge=1, le=2 * 2**20)] = 256 * 1024


class RouteConfig(Settings):
    """How requests for a name are spread over models.

    `quality` is a tag that every backend must have; `strategies` are those that a request may ask for instead of
    `strategy`, all when empty; `tier_strategies` are those of single tiers, by number.
    """

    strategy: Strategy = "fallback"
    targets: Annotated[tuple[TargetConfig, ...], Field(min_length=1)]
    match: MatchConfig | None = None
    quality: str = ""
    strategies: tuple[Strategy, ...] = ()
    tier_strategies: dict[Annotated[int, Field(ge=0, le=99)], Strategy] = Field(default_factory=dict[int, Strategy])
    experiment: ExperimentConfig | None = None
    require_native: bool = False
    max_attempts: Annotated[int, Field(ge=1, le=100)] = 3
    attempt_timeout: Annotated[Duration, Field(gt=0)] | None = None
    first_event_timeout: Annotated[Duration, Field(gt=0)] = 120.0
    idle_timeout: Annotated[Duration, Field(gt=0)] = 120.0
    total_timeout: Annotated[Duration, Field(gt=0)] = 600.0
    failover: FailoverConfig = FailoverConfig()
    retry: RetryConfig = RetryConfig()
    hedge: HedgeConfig | None = None
    resume: Literal["fail", "continue"] = "fail"
    cache: AnswerCacheConfig | None = None
    on_router_loss: Literal["serve", "refuse"] = "serve"
    router_loss_after: Annotated[Duration, Field(ge=0)] = 60.0
