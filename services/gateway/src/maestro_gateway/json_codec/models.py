"""Models as JSON: one shape, which clients of OpenAI and of Anthropic read as theirs. Pure: tables in, bytes out."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import orjson

from maestro.gateway.v1.http_pb2 import ListModelsRequest
from maestro.llm.v1.model_pb2 import Feature, Model, Support
from maestro_gateway.json_codec.decoder import short_names
from maestro_gateway.json_codec.encoder import plain
from maestro_sdk.errors import InvalidRequest, NotFound
from maestro_sdk.mesh.plan import find_route
from maestro_sdk.mesh.table import Route, Table

_FEATURES = short_names(Feature.DESCRIPTOR)
_SUPPORTS = short_names(Support.DESCRIPTOR)
_LARGEST_PAGE = 1000
_LONGEST_NAME = 256
_MESH = "maestro"


@dataclass(frozen=True, slots=True)
class Page:
    """Some models in a row, and whether more follow in the direction that was asked for."""

    models: list[Model]
    more: bool


def models_of(table: Table) -> list[Model]:
    """Every model of the mesh once, by id, also where several adapters serve it."""
    found: dict[str, Model] = {}
    for backend in table.backends.values():
        found.setdefault(backend.model, backend.message.model)
    return [found[name] for name in sorted(found)]


def page_of(models: list[Model], asked: ListModelsRequest) -> Page:
    """The page that was asked for, of models by id; all of them when nothing was said.

    A cursor is a place in the order, so one whose model has left meanwhile is as good as any. Raises `InvalidRequest`.
    """
    if asked.after_id and asked.before_id:
        raise InvalidRequest.at("before_id", "can't stand beside after_id: a page goes on in one direction")
    size = len(models)
    if asked.HasField("limit"):
        if not 1 <= asked.limit <= _LARGEST_PAGE:
            raise InvalidRequest.at("limit", f"must be between 1 and {_LARGEST_PAGE}")
        size = asked.limit
    if asked.before_id:
        before = [model for model in models if model.id < asked.before_id]
        return Page(before[-size:] if size else [], len(before) > size)
    after = [model for model in models if model.id > asked.after_id]
    return Page(after[:size], len(after) > size)


def encode_models(table: Table, asked: ListModelsRequest) -> bytes:
    """The models in OpenAI's and Anthropic's list shape with our facts, and what else a request's `model` may say."""
    page = page_of(models_of(table), asked)
    data = [_model_data(model) for model in page.models]
    return orjson.dumps(
        {
            "object": "list",
            "data": data,
            "has_more": page.more,
            "first_id": data[0]["id"] if data else None,
            "last_id": data[-1]["id"] if data else None,
            "routes": [_route_data(route) for name, route in sorted(table.routes.items()) if name not in table.aliases],
            "aliases": dict(sorted(table.aliases.items())),
        }
    )


def encode_model(table: Table, name: str) -> bytes:
    """What `name` stands for where a request says it: a model as the list has it, or a route in the same shape.

    Raises `NotFound` with what is known and similar, and `InvalidRequest` for a name of several models.
    """
    if len(name) > _LONGEST_NAME:
        raise NotFound(f"no model or route is named by {len(name)} characters; {_LONGEST_NAME} are the most")
    route = find_route(name, table)
    meant = table.aliases.get(name, name)
    if meant in table.routes:
        return orjson.dumps({**_shape(meant, _MESH, meant), "route": _route_data(table.routes[meant])})
    if not route.targets.entries:
        raise NotFound(f"{name!r} stands for {meant!r}, which no enabled adapter offers")
    # All backends of a route that is made of a model serve that model.
    return orjson.dumps(_model_data(route.targets.entries[0].backend.message.model))


def _model_data(model: Model) -> dict[str, Any]:
    return {
        **plain(model),
        **_shape(model.id, model.provider, model.name, model.retires),
        "max_input_tokens": model.context_window or None,
        "max_tokens": model.max_output_tokens or None,
        "features": {_FEATURES[entry.feature]: _SUPPORTS.get(entry.support, "none") for entry in model.features},
    }


def _route_data(route: Route) -> dict[str, Any]:
    return {
        "name": route.name,
        "strategy": route.strategy,
        "models": list(dict.fromkeys(entry.backend.model for entry in route.targets.entries)),
        "missing": list(route.targets.missing),
    }


def _shape(name: str, owner: str, shown: str, retires: str = "") -> dict[str, Any]:
    """What clients of both read; `retires` is a day, or empty."""
    return {
        "id": name,
        # OpenAI's. Clients of both want a day of release, and nobody tells it: Anthropic's word for that is the epoch.
        "object": "model",
        "owned_by": owner,
        "created": 0,
        "shutdown_date": retires or None,
        # Anthropic's. What is to retire answers until it is gone from the list.
        "type": "model",
        "display_name": shown,
        "created_at": "1970-01-01T00:00:00Z",
        "lifecycle": "deprecated" if retires else "active",
        "retires_at": f"{retires}T00:00:00Z" if retires else None,
        "max_input_tokens": None,
        "max_tokens": None,
    }
