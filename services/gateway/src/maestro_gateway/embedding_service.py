"""`maestro.llm.v1.EmbeddingService` for programs with generated stubs, and what both doors for vectors share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from maestro.llm.v1.chat_pb2 import Finish
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro.llm.v1.embedding_pb2_grpc import EmbeddingServiceServicer
from maestro_gateway.account import Account
from maestro_gateway.cache import look_up
from maestro_gateway.chat_service import tell_limits
from maestro_gateway.mesh import Mesh, calling, deadline_of
from maestro_sdk.errors import MaestroError
from maestro_sdk.mesh.needs import needs_of_embedding
from maestro_sdk.mesh.vectors import MOST_NUMBERS, refuse_too_many


async def embed(
    mesh: Mesh,
    request: EmbedRequest,
    deadline: float | None,
    *,
    most: int,
    job_id: str = "",
    show: Callable[[Account], None] | None = None,
) -> tuple[EmbedResponse, str]:
    """The vectors, and the route that they took; empty when the model was named directly.

    An answer of more than `most` numbers is refused before anything is counted or sent. `show` gets the account, as
    soon as it is opened.
    """
    call = calling()
    refuse_too_many(len(request.inputs), request.dimensions, most)
    opened = mesh.accountant.open(request, call, streamed=False, job_id=job_id)
    if show is not None:
        show(opened)
    lookup = None
    try:
        needs = None
        if mesh.source.table.caches:
            needs = needs_of_embedding(request, call.tenant)
            try:
                lookup = await look_up(mesh.cache, request, needs, mesh.source.table, call.tenant, deadline)
            except MaestroError as error:
                opened.deny(error)
                raise
            if lookup is not None and lookup.found_vectors is not None:
                opened.give_again(lookup.found_vectors, lookup.route.name)
        if opened.counted:
            await opened.admit()
        # What a cheaper route says is no answer of the one that was asked for.
        keeper = None if opened.cheaper else lookup
        with opened as account:
            trail = account.trail
            if keeper is not None and keeper.found_vectors is not None:
                trail.finish = Finish()
                return keeper.found_vectors, keeper.route.name
            if needs is None or opened.cheaper:
                needs = needs_of_embedding(request, call.tenant)
            response = await mesh.embedder.embed(request, needs, trail, deadline, most)
            if keeper is not None:
                await keeper.keep_vectors(response)
    finally:
        if lookup is not None:
            lookup.leave()
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
