"""Serves the board as `maestro.router.v1.RouterService`."""

from __future__ import annotations

import random
import time
from typing import Any

from maestro.router.v1 import router_pb2 as pb
from maestro.router.v1.router_pb2_grpc import RouterServiceServicer
from maestro_router.board import Board
from maestro_sdk.mesh.needs import needs_from_features
from maestro_sdk.mesh.plan import Plan, plan, refusal

_PAGE = 1000


class RouterServicer(RouterServiceServicer):
    """Answers from the board."""

    ENDLESS = ("/maestro.router.v1.RouterService/WatchRoutes",)
    """Methods whose streams never end by themselves."""

    def __init__(self, board: Board) -> None:
        self._board = board

    async def WatchRoutes(self, request: pb.WatchRoutesRequest, context: Any) -> None:
        # A subscriber may hold a table of another router, or of an earlier life of this one: send the first always.
        version = -1
        while True:
            table = await self._board.newer_than(version)
            version = table.version
            await context.write(pb.WatchRoutesResponse(table=table))

    async def Report(self, request: pb.ReportRequest, context: Any) -> pb.ReportResponse:
        self._board.report(request.outcomes, request.openings)
        return pb.ReportResponse(table_version=self._board.message.version)

    async def Route(self, request: pb.RouteRequest, context: Any) -> pb.RouteResponse:
        decision = self._plan(request.features)
        if not decision.kept:
            raise refusal(decision, needs_from_features(request.features), time.time())
        return pb.RouteResponse(
            decision=decision.message(), backends=[ranked.choice.backend.message for ranked in decision.kept]
        )

    async def Explain(self, request: pb.ExplainRequest, context: Any) -> pb.ExplainResponse:
        return pb.ExplainResponse(decision=self._plan(request.features).message())

    async def ListBackends(self, request: pb.ListBackendsRequest, context: Any) -> pb.ListBackendsResponse:
        size = request.page_size or _PAGE
        backends = [backend for backend in self._board.message.backends if backend.id > request.page_token]
        return pb.ListBackendsResponse(
            backends=backends[:size],
            adapters=[adapter.status() for adapter in self._board.adapters()],
            next_page_token=backends[size - 1].id if len(backends) > size else "",
        )

    async def SetBackendState(self, request: pb.SetBackendStateRequest, context: Any) -> pb.SetBackendStateResponse:
        return pb.SetBackendStateResponse(
            backend=self._board.set_state(request.backend_id, request.state, request.reason)
        )

    def _plan(self, features: pb.RequestFeatures) -> Plan:
        board, now = self._board, time.time()
        # No route has lost its router here, whatever it demands: this is one.
        board.local.router_seen = now
        return plan(needs_from_features(features), board.table, board.local, now, random.random)
