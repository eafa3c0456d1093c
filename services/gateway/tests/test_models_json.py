"""How REST tells of models, by pages and one by one."""

from __future__ import annotations

from typing import Any

import orjson
import pytest

from maestro.gateway.v1.http_pb2 import ListModelsRequest
from maestro.router.v1 import router_pb2 as pb
from maestro_gateway.json_codec.models import encode_model, encode_models
from maestro_sdk.errors import InvalidRequest, NoBackend, NotFound
from maestro_sdk.mesh.table import EMPTY, Table, compile_table
from maestro_sdk.testing.tables import backend, message, model


def table() -> Table:
    retiring = model("b/old")
    retiring.retires = "2027-01-31"
    # One model at two adapters, and two of one bare name.
    offered = [backend("one", model("a/new")), backend("two", model("a/new")), backend("two", retiring)]
    offered += [backend("two", model(name)) for name in ("a/same", "b/same", "c/a/b")]
    found = message(offered, {"default": [("a/new", 1), ("b/old", 1)], "b/same": [("a/new", 1)]})
    found.aliases.update({"new": "a/new", "usual": "default", "away": "z/none"})
    for alias, targets in (("new", ["a/new"]), ("usual", ["a/new", "b/old"]), ("away", ["z/none"])):
        found.routes.append(pb.Route(name=alias, targets=[pb.Target(model=target, weight=1) for target in targets]))
    return compile_table(found)


IDS = ["a/new", "a/same", "b/old", "b/same", "c/a/b"]


def told(name: str) -> dict[str, Any]:
    return orjson.loads(encode_model(table(), name))


@pytest.mark.parametrize(
    ("name", "meant"), [("a/new", "a/new"), ("old", "b/old"), ("c/a/b", "c/a/b"), ("a/b", "c/a/b"), ("new", "a/new")]
)
def test_a_model_is_told_of_as_in_the_list(name: str, meant: str) -> None:
    listed = {entry["id"]: entry for entry in orjson.loads(encode_models(table(), ListModelsRequest()))["data"]}
    assert list(listed) == IDS
    assert told(name) == listed[meant]


def test_a_model_that_will_retire_says_so_to_clients_of_both() -> None:
    found = told("b/old")
    assert (found["shutdown_date"], found["retires_at"]) == ("2027-01-31", "2027-01-31T00:00:00Z")
    assert (found["lifecycle"], told("a/new")["lifecycle"], told("a/new")["retires_at"]) == (
        "deprecated",
        "active",
        None,
    )


@pytest.mark.parametrize(("name", "meant"), [("default", "default"), ("usual", "default"), ("b/same", "b/same")])
def test_a_route_has_the_shape_of_a_model(name: str, meant: str) -> None:
    found = told(name)
    assert (found["id"], found["object"], found["type"], found["owned_by"]) == (meant, "model", "model", "maestro")
    assert set(found) <= {*told("a/new"), "route"}
    assert found["route"] in orjson.loads(encode_models(table(), ListModelsRequest()))["routes"]
    assert found["route"]["name"] == meant


@pytest.mark.parametrize(
    ("name", "kind", "words"),
    [
        ("z/none", NotFound, "no model or route is named"),
        ("away", NotFound, "'away' stands for 'z/none', which no enabled adapter offers"),
        ("same", InvalidRequest, "several models"),
        ("x" * 300, NotFound, "300 characters"),
    ],
)
def test_what_is_not_there_is_told(name: str, kind: type[Exception], words: str) -> None:
    with pytest.raises(kind, match=words):
        told(name)


def test_before_a_table_has_come_nobody_knows() -> None:
    with pytest.raises(NoBackend):
        encode_model(EMPTY, "a/new")
    found = orjson.loads(encode_models(EMPTY, ListModelsRequest(limit=5, before_id="b")))
    assert (found["data"], found["has_more"], found["first_id"], found["last_id"]) == ([], False, None, None)


@pytest.mark.parametrize("size", range(1, 7))
def test_pages_hold_every_model_once_in_both_directions(size: int) -> None:
    forth: list[str] = []
    cursor = ""
    while True:
        page = orjson.loads(encode_models(table(), ListModelsRequest(limit=size, after_id=cursor)))
        forth += [entry["id"] for entry in page["data"]]
        assert (page["first_id"], page["last_id"]) == (page["data"][0]["id"], page["data"][-1]["id"])
        if not page["has_more"]:
            break
        cursor = page["last_id"]
    back: list[str] = []
    cursor = "~"
    while True:
        page = orjson.loads(encode_models(table(), ListModelsRequest(limit=size, before_id=cursor)))
        back[:0] = [entry["id"] for entry in page["data"]]
        if not page["has_more"]:
            break
        cursor = page["first_id"]
    assert forth == back == IDS
