"""Backends, decisions and the health of providers as JSON. Pure: tables and messages in, bytes out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import orjson

from maestro.llm.v1.chat_pb2 import Warning  # noqa: A004 - the contract's name
from maestro.llm.v1.model_pb2 import Feature
from maestro.llm.v1.usage_pb2 import RateLimit
from maestro.router.v1 import router_pb2 as pb
from maestro_gateway.json_codec.decoder import short_names
from maestro_gateway.mesh import Routers
from maestro_sdk.errors import MaestroError, to_json
from maestro_sdk.mesh.breaker import Breaker, State
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.needs import Needs, unmask
from maestro_sdk.mesh.table import Backend, Table

_FEATURES = short_names(Feature.DESCRIPTOR)
_STATES = short_names(pb.BackendState.DESCRIPTOR)
_ADAPTER_STATES = short_names(pb.AdapterState.DESCRIPTOR)
_ABLE = (pb.BACKEND_STATE_ACTIVE, pb.BACKEND_STATE_HALF_OPEN)


@dataclass(frozen=True, slots=True)
class RouterView:
    """The router whose table is in force: its address, why it could not be asked or "", whether routing is degraded.

    `table_age` is in seconds since a router last stood behind the table.
    """

    address: str
    trouble: str
    degraded: bool
    table_age: float

    @classmethod
    def of(cls, routers: Routers, trouble: str) -> RouterView:
        """What the watcher knows now."""
        return cls(routers.address, trouble, routers.degraded, routers.table_age)


def encode_backends(
    backends: Iterable[pb.Backend],
    adapters: Iterable[pb.AdapterStatus] | None,
    table: Table,
    local: LocalState,
    now: float,
    router: RouterView,
) -> bytes:
    """The backends with their state, as the router has it and as this gateway's own breakers see it.

    `adapters` is None and `router.trouble` says why when the router could not be asked: then this is the last table.
    """
    return orjson.dumps(
        {
            "backends": [_backend_data(backend, local, now) for backend in backends],
            "adapters": None if adapters is None else [_adapter_data(adapter) for adapter in adapters],
            "source": "last_table" if router.trouble else "router",
            "router": _router_data(router, table),
        }
    )


def encode_decision(
    decision: pb.Decision, needs: Needs, refusal: MaestroError | None, warnings: Iterable[Warning]
) -> bytes:
    """A decision: every candidate with its reason, and the error that the request would get when none is kept.

    `warnings` tell what of the request nobody knows.
    """
    return orjson.dumps(
        {
            **decision_data(decision),
            "needs": {
                "model": needs.model or None,
                "features": [_FEATURES[feature] for feature in unmask(needs.required)],
                "input_tokens": needs.input_tokens,
                "max_tokens": needs.max_tokens or None,
            },
            "error": to_json(refusal)["error"] if refusal is not None else None,
            "warnings": [{"code": each.code, "message": each.message, "field": each.field} for each in warnings],
        }
    )


def decision_data(decision: pb.Decision) -> dict[str, Any]:
    """How the backends were chosen, and every candidate with its reason."""
    return {
        "route": decision.route or None,
        "strategy": decision.strategy or None,
        "experiment": decision.experiment or None,
        "variant": decision.variant or None,
        "table_version": decision.table_version or None,
        "candidates": [
            {
                "backend_id": candidate.backend_id or None,
                "model": candidate.model,
                "kept": candidate.kept,
                "reason": candidate.reason,
                "missing": [_FEATURES.get(feature, str(feature)) for feature in candidate.missing],
                "score": candidate.score if candidate.HasField("score") else None,
                "estimated_usd": candidate.estimated_usd if candidate.HasField("estimated_usd") else None,
            }
            for candidate in decision.candidates
        ],
    }


def encode_health(
    table: Table,
    adapters: Iterable[pb.AdapterStatus] | None,
    local: LocalState,
    now: float,
    switched_off: Sequence[tuple[str, str]],
    router: RouterView,
) -> bytes:
    """For every provider whether it can answer; `switched_off` are adapters that take no part, with the reason.

    A table that no router renews is no trouble of a provider: it stands beside them.
    """
    by_provider: dict[str, list[Backend]] = {}
    for backend in table.backends.values():
        by_provider.setdefault(backend.provider, []).append(backend)
    providers = [_health_data(name, backends, local, now) for name, backends in sorted(by_provider.items())]
    # Adapters whose models nobody knows yet: not a provider that is able, but a reason worth reading.
    silent = [_adapter_data(adapter) for adapter in adapters or () if not adapter.models]
    able = sum(provider["status"] != "down" for provider in providers)
    return orjson.dumps(
        {
            "status": "ok" if able == len(providers) and providers and not silent else "degraded" if able else "down",
            "providers": providers,
            "adapters_without_models": silent,
            "adapters_switched_off": [{"adapter": name, "reason": reason} for name, reason in switched_off],
            "router": _router_data(router, table),
        }
    )


def _router_data(router: RouterView, table: Table) -> dict[str, Any]:
    return {
        "address": router.address or None,
        "reachable": not router.trouble,
        "trouble": router.trouble or None,
        "degraded": router.degraded,
        "table_version": table.version,
        "table_age_seconds": round(router.table_age, 3),
    }


def _health_data(provider: str, backends: list[Backend], local: LocalState, now: float) -> dict[str, Any]:
    barred = {backend.id: local.bars(backend, now) for backend in backends}
    able = [backend for backend in backends if backend.state in _ABLE and not barred[backend.id]]
    troubles = {
        backend.id: backend.state_reason or (barred[backend.id] or (_STATES.get(backend.state, ""), 0.0))[0]
        for backend in backends
        if backend not in able
    }
    return {
        "provider": provider,
        "status": "ok" if not troubles else "degraded" if able else "down",
        "models_able": len(able),
        "models": len(backends),
        "adapters": sorted({backend.adapter for backend in backends}),
        "troubles": troubles,
    }


def _backend_data(backend: pb.Backend, local: LocalState, now: float) -> dict[str, Any]:
    account = f"{backend.adapter}:{backend.model.provider}"
    return {
        "id": backend.id,
        "adapter": backend.adapter,
        "model": backend.model.id,
        "provider": backend.model.provider,
        "state": _STATES.get(backend.state, "unknown"),
        "reason": backend.state_reason or None,
        "until": backend.state_until.ToJsonString() if backend.HasField("state_until") else None,
        "account": account,
        "account_wide": backend.account_wide,
        "regions": list(backend.regions),
        "tags": list(backend.tags),
        "headroom": _headroom_data(backend) if backend.HasField("headroom") else None,
        "here": {
            **_breaker_data(local.trouble(backend.id, now), now),
            "account": _breaker_data(local.trouble(account, now), now),
            "in_flight": local.load.in_flight.get(backend.id, 0),
        },
    }


def _breaker_data(breaker: Breaker | None, now: float) -> dict[str, Any]:
    """A breaker of this gateway; None for one that is closed."""
    state = breaker.state(now) if breaker is not None else State.CLOSED
    return {
        "breaker": state.value,
        "reason": breaker.reason or None if breaker is not None else None,
        "seconds_left": round(max(0.0, breaker.until - now), 3) if breaker and state is State.OPEN else None,
    }


def _headroom_data(backend: pb.Backend) -> dict[str, Any]:
    """What the provider's rate limits left when it was told."""
    told: dict[str, Any] = {"told": backend.headroom_time.ToJsonString()}
    for name in ("requests", "tokens"):
        if backend.headroom.HasField(name):
            limit: RateLimit = getattr(backend.headroom, name)
            told[name] = {
                "remaining": limit.remaining,
                "limit": limit.limit if limit.HasField("limit") else None,
                "reset_seconds": round(limit.reset.ToNanoseconds() / 1e9, 3) if limit.HasField("reset") else None,
            }
    return told


def _adapter_data(adapter: pb.AdapterStatus) -> dict[str, Any]:
    return {
        "name": adapter.name,
        "address": adapter.address,
        "announced": adapter.announced,
        "state": _ADAPTER_STATES.get(adapter.state, "unknown"),
        "reason": adapter.reason or None,
        "version": adapter.version or None,
        "providers": list(adapter.providers),
        "models": adapter.models,
    }
