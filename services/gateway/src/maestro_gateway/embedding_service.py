"""`maestro.llm.v1.EmbeddingService` for programs with generated stubs, and what both doors for vectors share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maestro.llm.v1.chat_pb2 import Finish
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro.llm.v1.embedding_pb2_grpc import EmbeddingServiceServicer
from maestro_gateway.cache import look_up_vectors
from maestro_gateway.chat_service import tell_limits
from maestro_gateway.mesh import Mesh, calling, deadline_of
from maestro_sdk.mesh.needs import needs_of_embedding
from maestro_sdk.mesh.trail import Trail
from maestro_sdk.mesh.vectors import MOST_NUMBERS, refuse_too_many


async def embed(
    mesh: Mesh,
    request: EmbedRequest,
    deadline: float | None,
    *,
    most: int,
    job_id: str = "",
    show: Callable[[Trail], None] | None = None,
) -> tuple[EmbedResponse, str]:
    """The vectors, and the route that they took; empty when the model was named directly.

    An answer of more than `most` numbers is refused before anything is counted or sent. `show` gets what tells what
    happened, as soon as the account is opened.
    """
    call = calling()
    refuse_too_many(len(request.inputs), request.dimensions, most)
    opened = mesh.accountant.open(request, call, streamed=False, job_id=job_id)
    if show is not None:
        show(opened.trail)
    needs, lookup = None, None
    if mesh.source.table.caches:
        needs = needs_of_embedding(request, call.tenant)
        lookup = await look_up_vectors(mesh.cache, request, needs, mesh.source.table, call.tenant)
        if lookup is not None and lookup.found_vectors is not None:
            opened.give_again(lookup.found_vectors, lookup.route.name)
    if opened.counted:
        await opened.admit()
        if opened.cheaper:
            needs, lookup = None, None
    with opened as account:
        trail = account.trail
        if lookup is not None and lookup.found_vectors is not None:
            trail.finish = Finish()
            return lookup.found_vectors, lookup.route.name
        needs = needs or needs_of_embedding(request, call.tenant)
        response = await mesh.embedder.embed(request, needs, trail, deadline, most)
        if lookup is not None:
            await lookup.keep_vectors(response)
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
