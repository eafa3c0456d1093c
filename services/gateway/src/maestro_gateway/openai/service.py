"""`maestro.gateway.v1.OpenAIService`: OpenAI's API behind Envoy's transcoder."""

from __future__ import annotations

import time
from typing import Any

from google.api.httpbody_pb2 import HttpBody

from maestro.gateway.v1.openai_pb2_grpc import OpenAIServiceServicer
from maestro_gateway.embedding_service import embed
from maestro_gateway.facade import JSON, Facade
from maestro_gateway.keep import Keep
from maestro_gateway.mesh import Mesh, calling, deadline_of
from maestro_gateway.openai.answer import Chunks, encode_completion, encode_error
from maestro_gateway.openai.embeddings import MOST_NUMBERS, decode_embedding, pieces, with_our_paths
from maestro_gateway.openai.request import decode_completion
from maestro_sdk.errors import MaestroError
from maestro_sdk.service.interceptors import returns_last


class OpenAIService(OpenAIServiceServicer):
    """Answers OpenAI's clients."""

    def __init__(self, mesh: Mesh, keep: Keep | None, *, max_body: int, ping: float) -> None:
        """`max_body` in bytes, `ping` in seconds; without `keep` nothing is kept that the clients can't carry."""
        self._mesh, self._keep = mesh, keep
        self._facade = Facade(mesh, encode_error, max_body=max_body, ping=ping)

    @returns_last
    async def CreateChatCompletion(self, request: HttpBody, context: Any) -> HttpBody:
        facade = self._facade

        async def answer() -> HttpBody:
            asked = decode_completion(facade.measure(request))
            created = int(time.time())
            turn = await self._keep.recall(calling().tenant, asked.request) if self._keep is not None else None
            if asked.stream:
                note = turn.note if turn is not None else None
                return await facade.stream(asked.request, Chunks(asked, created), context, note)
            response, route = await facade.complete(asked.request, context)
            if turn is not None:
                await turn.keep(response.parts)
            return HttpBody(content_type=JSON, data=encode_completion(response, asked, route, created))

        return await facade.answer(context, answer)

    @returns_last
    async def CreateEmbedding(self, request: HttpBody, context: Any) -> HttpBody:
        facade = self._facade

        async def answer() -> HttpBody:
            asked = decode_embedding(facade.measure(request))
            try:
                response, route = await embed(self._mesh, asked.request, deadline_of(context), most=MOST_NUMBERS)
            except MaestroError as error:
                raise with_our_paths(error) from None
            # Nothing can fail from here on but the connection: the caller has the beginning of a document.
            await facade.begin(context)
            kind = JSON
            for piece in pieces(response, asked, route):
                await context.write(HttpBody(content_type=kind, data=piece).SerializeToString())
                kind = ""
            return HttpBody()

        return await facade.answer(context, answer)
