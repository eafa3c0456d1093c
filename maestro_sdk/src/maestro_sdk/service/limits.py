"""The section of a configuration that limits callers."""

from __future__ import annotations

from typing import Annotated, Any, Literal, cast

from pydantic import Field, field_validator

from maestro_sdk.service.values import Duration, Settings, Size

Count = Annotated[int, Field(ge=1, le=10**9, strict=True)]


class RateConfig(Settings):
    """At most `limit` in any span of `per`."""

    limit: Count
    per: Annotated[Duration, Field(ge=1, le=86400)] = 60.0


class LimitConfig(Settings):
    """Limits of one caller; what is left out is not limited. Sizes are those of a request as the contract has it.

    `jobs` holds for tenants: at most so many of their jobs are under way at a time, and the others wait.
    """

    requests: RateConfig | None = None
    tokens: RateConfig | None = None
    concurrency: Count | None = None
    jobs: Count | None = None
    max_request: Annotated[Size, Field(ge=1)] | None = None
    max_part: Annotated[Size, Field(ge=1)] | None = None

    @field_validator("requests", "tokens", mode="before")
    @classmethod
    def _read_rate(cls, value: Any) -> Any:
        if isinstance(value, int) and not isinstance(value, bool):
            return {"limit": value}
        if value is not None and not isinstance(value, dict | RateConfig):
            raise ValueError("is neither a number for a minute nor {limit: 100, per: 10s}")
        return cast("Any", value)


class LimitsConfig(Settings):
    """Limits of tenants, keys and personas; a request is held to all that it falls under.

    `every_tenant` and `every_key` hold for those that are not named. Keys are named by their identifiers or their names
    for people. Limits of a persona are each tenant's own. A request that does not say how long its answer may be is
    taken for one with `usual_output` tokens until it is over. With `headers_on_success` headers tell what is left also
    beside whole answers, which costs them 0.1 ms or so; refusals and streams always have them.
    """

    on_store_failure: Literal["allow", "deny"] = "allow"
    usual_output: Annotated[int, Field(ge=0, le=10**6)] = 1000
    headers_on_success: bool = False
    every_tenant: LimitConfig = LimitConfig()
    every_key: LimitConfig = LimitConfig()
    tenants: dict[str, LimitConfig] = Field(default_factory=dict[str, LimitConfig])
    keys: dict[str, LimitConfig] = Field(default_factory=dict[str, LimitConfig])
    personas: dict[str, LimitConfig] = Field(default_factory=dict[str, LimitConfig])
