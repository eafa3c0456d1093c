"""`maestro.llm.v1.EmbeddingService` for programs with generated stubs, and what both doors for vectors share."""

from __future__ import annotations

from typing import Any

from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro.llm.v1.embedding_pb2_grpc import EmbeddingServiceServicer
from maestro_gateway.chat_service import tell_limits
from maestro_gateway.mesh import Mesh, calling, deadline_of
from maestro_sdk.mesh.needs import needs_of_embedding
from maestro_sdk.mesh.vectors import MOST_NUMBERS, refuse_too_many


async def embed(
    mesh: Mesh, request: EmbedRequest, deadline: float | None, *, most: int, job_id: str = ""
) -> tuple[EmbedResponse, str]:
    """The vectors, and the route that they took; empty when the model was named directly.

    An answer of more than `most` numbers is refused before anything is counted or sent.
    """
    call = calling()
    refuse_too_many(len(request.inputs), request.dimensions, most)
    opened = mesh.accountant.open(request, call, streamed=False, job_id=job_id)
    if opened.counted:
        await opened.admit()
    with opened as account:
        needs = needs_of_embedding(request, call.tenant)
        trail = account.trail
        response = await mesh.embedder.embed(request, needs, trail, deadline, most)
    return response, trail.plan.route.name if trail.plan is not None else ""


class EmbeddingService(EmbeddingServiceServicer):
    """Embeds with the mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def Embed(self, request: EmbedRequest, context: Any) -> EmbedResponse:
        try:
            response, _ = await embed(self._mesh, request, deadline_of(context), most=MOST_NUMBERS)
        finally:
            tell_limits(context)
        return response
