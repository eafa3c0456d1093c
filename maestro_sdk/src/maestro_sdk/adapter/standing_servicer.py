"""Serves what is asked of standing calls beside the chats themselves."""

from __future__ import annotations

from typing import Any

from maestro.llm.v1.standing_pb2 import (
    GetStandingCallRequest,
    GetStandingCallResponse,
    ReleaseStandingCallRequest,
    ReleaseStandingCallResponse,
)
from maestro.llm.v1.standing_pb2_grpc import StandingCallServiceServicer
from maestro_sdk.adapter.standing import StandingCalls
from maestro_sdk.errors import NotFound


class StandingCallServicer(StandingCallServiceServicer):
    """Tells of standing calls and ends them."""

    def __init__(self, standing: StandingCalls) -> None:
        self._standing = standing

    async def GetStandingCall(self, request: GetStandingCallRequest, context: Any) -> GetStandingCallResponse:
        finished = self._standing.find(request.key, request.model)
        if finished is None:
            raise NotFound("no call stands under this key")
        return GetStandingCallResponse(finished=finished)

    async def ReleaseStandingCall(
        self, request: ReleaseStandingCallRequest, context: Any
    ) -> ReleaseStandingCallResponse:
        self._standing.release(request.key, request.model)
        return ReleaseStandingCallResponse()
