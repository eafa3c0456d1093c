"""Models, backends, decisions and the health of providers as JSON. Pure: tables and messages in, bytes out."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import orjson

from maestro.llm.v1.model_pb2 import Feature, Model, Support
from maestro.router.v1 import router_pb2 as pb
from maestro_gateway.json_codec.decoder import short_names
from maestro_gateway.json_codec.encoder import plain
from maestro_sdk.errors import MaestroError, to_json
from maestro_sdk.mesh.breaker import State
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.needs import Needs, unmask
from maestro_sdk.mesh.table import Backend, Table

_FEATURES = short_names(Feature.DESCRIPTOR)
_SUPPORTS = short_names(Support.DESCRIPTOR)
_STATES = short_names(pb.BackendState.DESCRIPTOR)
_ADAPTER_STATES = short_names(pb.AdapterState.DESCRIPTOR)
_ABLE = (pb.BACKEND_STATE_ACTIVE, pb.BACKEND_STATE_HALF_OPEN)


def models_of(table: Table) -> list[Model]:
    """Every model of the mesh once, by id, also where several adapters serve it."""
    found: dict[str, Model] = {}
    for backend in table.backends.values():
        found.setdefault(backend.model, backend.message.model)
    return [found[name] for name in sorted(found)]


def encode_models(table: Table) -> bytes:
    """The models in OpenAI's list shape with our facts beside it, and what else a request's `model` may say."""
    return orjson.dumps(
        {
            "object": "list",
            "data": [_model_data(model) for model in models_of(table)],
            "routes": [
                {
                    "name": route.name,
                    "strategy": route.strategy,
                    "models": list(dict.fromkeys(entry.backend.model for entry in route.targets.entries)),
                    "missing": list(route.targets.missing),
                }
                for name, route in sorted(table.routes.items())
                if name not in table.aliases
            ],
            "aliases": dict(sorted(table.aliases.items())),
        }
    )


def encode_backends(
    backends: Iterable[pb.Backend],
    adapters: Iterable[pb.AdapterStatus] | None,
    table: Table,
    local: LocalState,
    now: float,
    router_trouble: str,
) -> bytes:
    """The backends with their state, as the router has it and as this gateway's own breakers see it.

    `adapters` is None and `router_trouble` says why when the router could not be asked: then this is the last table.
    """
    return orjson.dumps(
        {
            "backends": [_backend_data(backend, local, now) for backend in backends],
            "adapters": None if adapters is None else [_adapter_data(adapter) for adapter in adapters],
            "source": "last_table" if router_trouble else "router",
            "router": {
                "reachable": not router_trouble,
                "trouble": router_trouble or None,
                "table_version": table.version,
            },
        }
    )


def encode_decision(decision: pb.Decision, needs: Needs, refusal: MaestroError | None) -> bytes:
    """A decision: every candidate with its reason, and the error that the request would get when none is kept."""
    return orjson.dumps(
        {
            "route": decision.route or None,
            "strategy": decision.strategy,
            "experiment": decision.experiment or None,
            "variant": decision.variant or None,
            "table_version": decision.table_version,
            "needs": {
                "model": needs.model or None,
                "features": [_FEATURES[feature] for feature in unmask(needs.required)],
                "input_tokens": needs.input_tokens,
                "max_tokens": needs.max_tokens or None,
            },
            "candidates": [
                {
                    "backend_id": candidate.backend_id or None,
                    "model": candidate.model,
                    "kept": candidate.kept,
                    "reason": candidate.reason,
                    "missing": [_FEATURES[feature] for feature in candidate.missing],
                    "score": candidate.score if candidate.HasField("score") else None,
                    "estimated_usd": candidate.estimated_usd if candidate.HasField("estimated_usd") else None,
                }
                for candidate in decision.candidates
            ],
            "error": to_json(refusal)["error"] if refusal is not None else None,
        }
    )


def encode_health(
    table: Table,
    adapters: Iterable[pb.AdapterStatus] | None,
    local: LocalState,
    now: float,
    switched_off: Sequence[tuple[str, str]],
) -> bytes:
    """For every provider whether it can answer; `switched_off` are adapters that take no part, with the reason."""
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
        }
    )


def _health_data(provider: str, backends: list[Backend], local: LocalState, now: float) -> dict[str, Any]:
    able = [backend for backend in backends if backend.state in _ABLE and local.breaker(backend.id).admits(now)]
    troubles = {
        backend.id: backend.state_reason or local.breaker(backend.id).reason or _STATES.get(backend.state, "")
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


def _model_data(model: Model) -> dict[str, Any]:
    data = plain(model)
    data.update(object="model", owned_by=model.provider)
    data["features"] = {_FEATURES[entry.feature]: _SUPPORTS.get(entry.support, "none") for entry in model.features}
    return data


def _backend_data(backend: pb.Backend, local: LocalState, now: float) -> dict[str, Any]:
    breaker = local.breaker(backend.id)
    state = breaker.state(now)
    return {
        "id": backend.id,
        "adapter": backend.adapter,
        "model": backend.model.id,
        "provider": backend.model.provider,
        "state": _STATES.get(backend.state, "unknown"),
        "reason": backend.state_reason or None,
        "until": backend.state_until.ToJsonString() if backend.HasField("state_until") else None,
        "tags": list(backend.tags),
        "here": {
            "breaker": state.value,
            "reason": breaker.reason or None if state is not State.CLOSED else None,
            "seconds_left": round(max(0.0, breaker.until - now), 3) if state is State.OPEN else None,
            "in_flight": local.load.in_flight.get(backend.id, 0),
        },
    }


def _adapter_data(adapter: pb.AdapterStatus) -> dict[str, Any]:
    return {
        "name": adapter.name,
        "state": _ADAPTER_STATES.get(adapter.state, "unknown"),
        "reason": adapter.reason or None,
        "version": adapter.version or None,
        "providers": list(adapter.providers),
        "models": adapter.models,
    }
