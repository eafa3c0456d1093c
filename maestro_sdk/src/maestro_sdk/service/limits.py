"""The section of a configuration that limits callers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import Field, field_validator, model_validator

from maestro_sdk.service.values import Duration, Settings, Size

Count = Annotated[int, Field(ge=1, le=10**9, strict=True)]


class RateConfig(Settings):
    """At most `limit` in any span of `per`."""

    limit: Count
    per: Annotated[Duration, Field(ge=1, le=86400)] = 60.0


class CountConfig(Settings):
    """What is counted, at most; what is left out is not limited."""

    requests: RateConfig | None = None
    tokens: RateConfig | None = None
    concurrency: Count | None = None

    @property
    def counts(self) -> bool:
        """Whether anything is counted."""
        return self.requests is not None or self.tokens is not None or self.concurrency is not None

    @field_validator("requests", "tokens", mode="before")
    @classmethod
    def _read_rate(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"limit": value}
        if value is not None and not isinstance(value, dict | RateConfig):
            raise ValueError("is neither a number for a minute nor {limit: 100, per: 10s}")
        return cast("Any", value)


class ProviderLimitConfig(CountConfig):
    """Limits of what one provider is asked, by attempt: a request that fails over counts at each that it asks."""

    @model_validator(mode="before")
    @classmethod
    def _refuse_callers(cls, value: Any) -> Any:
        found = [name for name in ("jobs", "max_request", "max_part") if isinstance(value, dict) and name in value]
        if found:
            raise ValueError(f"{found[0]} is a limit of callers; at a provider count requests, tokens or concurrency")
        return cast("Any", value)


ProviderLimits = dict[str, ProviderLimitConfig]
"""By provider ("openai"), model ("openai/gpt-6-luna"), account ("eu:openai") or backend ("eu:openai/gpt-6-luna")."""


class LimitConfig(CountConfig):
    """Limits of one caller. Sizes are those of a request as the contract has it.

    `jobs` holds for tenants: at most so many of their jobs are under way at a time, and the others wait. `providers`
    hold for tenants too: what each may take of a provider.
    """

    jobs: Count | None = None
    max_request: Annotated[Size, Field(ge=1)] | None = None
    max_part: Annotated[Size, Field(ge=1)] | None = None
    providers: ProviderLimits = Field(default_factory=ProviderLimits)


class LimitsConfig(Settings):
    """Limits of tenants, keys, personas and providers; a request is held to all that it falls under.

    `every_tenant` and `every_key` hold for those that are not named. Keys are named by their identifiers or their names
    for people. Limits of a persona are each tenant's own. A request that does not say how long its answer may be is
    taken for one with `usual_output` tokens until it is over. Headers tell what is left; beside whole answers, which it
    costs 0.1 ms or so, only with `headers_on_success`. `providers` are what the whole mesh may take of each, all
    tenants together.
    """

    on_store_failure: Literal["allow", "deny"] = "allow"
    usual_output: Annotated[int, Field(ge=0, le=10**6)] = 1000
    headers_on_success: bool = True
    every_tenant: LimitConfig = LimitConfig()
    every_key: LimitConfig = LimitConfig()
    tenants: dict[str, LimitConfig] = Field(default_factory=dict[str, LimitConfig])
    keys: dict[str, LimitConfig] = Field(default_factory=dict[str, LimitConfig])
    personas: dict[str, LimitConfig] = Field(default_factory=dict[str, LimitConfig])
    providers: ProviderLimits = Field(default_factory=ProviderLimits)
