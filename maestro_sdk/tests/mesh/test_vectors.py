"""Which backends of a decision give comparable vectors, whatever else routes, tenants and operators say."""

from __future__ import annotations

from typing import Any

import pytest

from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedRequest
from maestro.router.v1 import router_pb2 as pb
from maestro_sdk.errors import MaestroError
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.needs import needs_of_embedding
from maestro_sdk.mesh.plan import Plan, plan, refusal
from maestro_sdk.mesh.table import compile_table
from maestro_sdk.mesh.vectors import keep_comparable
from maestro_sdk.testing.tables import backend, message, model

SMALL, ELSEWHERE, LARGE = "p0/small", "p1/small", "p2/large"


def described(**states: Any) -> pb.RouteTable:
    """A route over two places of one model, and another model; `states` are those of adapters."""
    backends = [
        backend(f"a{number}", model(name, "EMBEDDINGS"), **states.get(f"a{number}", {}))
        for number, name in enumerate((SMALL, ELSEWHERE, LARGE))
    ]
    return message(backends, {"default": [(SMALL, 1.0), (ELSEWHERE, 1.0), (LARGE, 1.0)]})


def decide(table: pb.RouteTable, tenant: str = "", named: str = "", **routing: Any) -> Plan:
    request = EmbedRequest(model=named, inputs=[EmbedInput(text="hello")])
    if routing:
        request.routing.SetInParent()
        for name, value in routing.items():
            getattr(request.routing, name).extend(value)
    needs = needs_of_embedding(request, tenant)
    return keep_comparable(plan(needs, compile_table(table), LocalState(), 1000.0, lambda: 0.0))


def kept(found: Plan) -> list[str]:
    return [ranked.choice.backend.id for ranked in found.kept]


def refused(found: Plan) -> MaestroError:
    return refusal(found, found.needs, 1000.0)


def test_all_places_of_the_one_model():
    found = decide(described())
    assert kept(found) == ["a0:p0/small", "a1:p1/small"]
    assert [drop.backend.id for drop in found.dropped] == ["a2:p2/large"]
    assert [candidate.kept for candidate in found.message().candidates] == [True, True, False]


def test_who_names_a_model_gets_it():
    assert kept(decide(described(), named=LARGE)) == ["a2:p2/large"]


def test_a_breaker_does_not_change_what_the_vectors_are():
    shut = {"state": pb.BACKEND_STATE_OPEN, "reason": "failing", "until": 1005.0}
    found = decide(described(a0=shut, a1=shut))
    assert kept(found) == []
    error = refused(found)
    # Waiting helps: the model comes back, and the other one is no help.
    assert (error.reason, error.retry_after) == ("NO_BACKEND", pytest.approx(5.0))


def test_excluding_the_provider_does_not_either():
    assert kept(decide(described(), exclude_providers=["p0"])) == ["a1:p1/small"]
    assert kept(decide(described(), exclude_providers=["p0", "p1"])) == []
    assert kept(decide(described(), prefer_providers=["p2", "p1"])) == ["a1:p1/small", "a0:p0/small"]


def test_a_pin_holds_and_mixes_nothing():
    table = described()
    table.pins[""] = "a1"
    assert kept(decide(table)) == ["a1:p1/small"]
    table.pins[""] = "a2"
    found = decide(table)
    assert kept(found) == []
    assert "can't be compared with those of small" in refused(found).message


def test_residency_holds_and_mixes_nothing():
    table = described()
    table.residencies["acme"].providers.extend(["p1"])
    table.residencies["globex"].providers.extend(["p2"])
    assert kept(decide(table, "acme")) == ["a1:p1/small"]
    assert kept(decide(table, "globex")) == []
    assert kept(decide(table, "other")) == ["a0:p0/small", "a1:p1/small"]


def test_weights_choose_among_places_only():
    table = described()
    table.routes[0].strategy = "weighted"
    for target, weight in zip(table.routes[0].targets, (1.0, 1.0, 1000.0), strict=True):
        target.weight = weight
    assert set(kept(decide(table))) == {"a0:p0/small", "a1:p1/small"}
