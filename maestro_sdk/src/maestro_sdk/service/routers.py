"""The router's section of a configuration."""

from __future__ import annotations

import os
from typing import Annotated, Literal

from pydantic import Field

from maestro_sdk.service.values import Address, Duration, Settings

_Count = Annotated[int, Field(ge=1, le=1_000_000)]


class BreakerConfig(Settings):
    """When a backend is left alone, and for how long."""

    consecutive_failures: _Count = 5
    minimum_calls: _Count = 10
    failure_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5
    window: Annotated[Duration, Field(gt=0)] = 30.0
    open_time: Annotated[Duration, Field(gt=0)] = 10.0
    quota_open_time: Annotated[Duration, Field(gt=0)] = 300.0
    half_open_calls: _Count = 1


class QuarantineConfig(Settings):
    """When a backend that breaks the contract is left alone, and for how long."""

    breaches: _Count = 3
    window: Annotated[Duration, Field(gt=0)] = 300.0
    time: Annotated[Duration, Field(gt=0)] = 600.0


class RouterConfig(Settings):
    """The router's address; `refresh` is the pause between two readings of the adapters' models.

    `replicas` are routers that `maestro up` runs; `others` are addresses of routers elsewhere that share their state
    over the same NATS: gateways go to the next one when theirs is gone. `admission` tells which adapters may join
    beside the configured ones: none, those that announce themselves, or of those the ones that pass the core of the
    conformance suite.
    """

    address: Address = "127.0.0.1:50052"
    replicas: Annotated[int, Field(ge=1, le=9)] = 1
    others: tuple[Address, ...] = ()
    admission: Literal["configured", "verified", "announced"] = "configured"
    quarantine: QuarantineConfig = QuarantineConfig()
    refresh: Annotated[Duration, Field(gt=0)] = 30.0
    breaker: BreakerConfig = BreakerConfig()
    pin: str = Field(default_factory=lambda: os.environ.get("GATEWAY_PROVIDER", ""))
    """The one adapter that answers everything, as "claude" or "claude-only"; empty for the routes' own choice."""
    pins: dict[str, str] = Field(default_factory=dict[str, str])
    """The one adapter that answers a persona, by persona."""
