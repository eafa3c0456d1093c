"""Decisions that the router itself makes for callers without a table."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from maestro.llm.v1.model_pb2 import Feature
from maestro.router.v1 import router_pb2 as pb
from maestro_router.board import Board
from maestro_router.compile import Adapter
from maestro_router.servicer import RouterServicer
from maestro_sdk.errors import CapabilityUnavailable
from maestro_sdk.service.settings import load
from maestro_sdk.testing.tables import model


def served(folder: Path, **route: Any) -> RouterServicer:
    file = folder / "maestro.yaml"
    adapters = {"a": {"address": "127.0.0.1:1"}}
    routes = {"default": {"targets": ["p/one"], **route}}
    file.write_text(yaml.safe_dump({"adapters": adapters, "routes": routes, "aliases": {}}))
    board = Board(load(file, env={}), lambda subject, payload: None)
    board.see(Adapter("a", "127.0.0.1:1", pb.ADAPTER_STATE_SERVING, "", "1", ("p",), (model("p/one"),), 1.0))
    return RouterServicer(board)


async def test_a_route_that_demands_a_router_finds_one_here(tmp_path: Path) -> None:
    servicer = served(tmp_path, on_router_loss="refuse", router_loss_after="1s")
    features = pb.RequestFeatures()
    routed = await servicer.Route(pb.RouteRequest(features=features), None)
    assert [backend.id for backend in routed.backends] == ["a:p/one"]
    explained = await servicer.Explain(pb.ExplainRequest(features=features), None)
    assert [(found.backend_id, found.kept) for found in explained.decision.candidates] == [("a:p/one", True)]


async def test_a_request_that_nobody_can_answer_is_told_what_is_missing(tmp_path: Path) -> None:
    features = pb.RequestFeatures(required=[Feature.FEATURE_AUDIO])
    with pytest.raises(CapabilityUnavailable) as caught:
        await served(tmp_path).Route(pb.RouteRequest(features=features), None)
    assert caught.value.metadata["candidates"] == '{"a:p/one":["AUDIO"]}'


async def test_a_report_is_answered_with_the_table_that_knows_of_it(tmp_path: Path) -> None:
    servicer = served(tmp_path)
    before = (await servicer.Report(pb.ReportRequest(), None)).table_version
    opening = pb.Opening(scope="a:p/one", reason="gone")
    opening.until.FromSeconds(int(time.time()) + 20)
    answer = await servicer.Report(pb.ReportRequest(openings=[opening]), None)
    assert answer.table_version == before + 1
    [backend] = (await servicer.ListBackends(pb.ListBackendsRequest(), None)).backends
    assert backend.state == pb.BACKEND_STATE_OPEN
