"""Serves an `Embedder` as `EmbeddingService`: the model, the order of the vectors, and the cost."""

from __future__ import annotations

import asyncio
import math
from contextlib import aclosing
from typing import Any

from maestro.llm.v1.chat_pb2 import Warning  # noqa: A004 - the contract's name
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro.llm.v1.embedding_pb2_grpc import EmbeddingServiceServicer
from maestro.llm.v1.model_pb2 import Feature, Model
from maestro_sdk.adapter.catalogue import Catalogue
from maestro_sdk.adapter.models import is_unknown, warn_unknown
from maestro_sdk.adapter.provider import Embedder
from maestro_sdk.adapter.standing import Put, StandingCalls
from maestro_sdk.errors import StreamBroken
from maestro_sdk.prices import cost_of, price_of
from maestro_sdk.tracing import current_call

_INLINE = 100_000
"""Numbers that are looked at at once; more go to a thread, so that streams beside them don't wait."""


class EmbeddingServicer(EmbeddingServiceServicer):
    """Embeds with a provider.

    An answer that misses a vector, mixes lengths, or holds what is no number is `StreamBroken`, never returned.
    """

    def __init__(self, embedder: Embedder, catalogue: Catalogue, standing: StandingCalls | None = None) -> None:
        """Calls with a key outlive their callers in `standing`; without it every call ends with its caller."""
        self._embedder = embedder
        self._catalogue = catalogue
        self._standing = standing

    async def Embed(self, request: EmbedRequest, context: Any) -> EmbedResponse:
        model = await self._catalogue.able(request.model, Feature.FEATURE_EMBEDDINGS)
        if self._standing is None or (call := current_call()) is None or not self._standing.takes(call.key):
            return await self._answer(request, model)

        async def answer(put: Put) -> None:
            await put(await self._answer(request, model))

        async with aclosing(self._standing.follow(b"Embed", request, model.id, answer)) as messages:
            async for message in messages:
                return EmbedResponse.FromString(message)
        raise StreamBroken("the adapter gave no answer")

    async def _answer(self, request: EmbedRequest, model: Model) -> EmbedResponse:
        response = await self._embedder.embed(request)
        if sum(len(vector.values) for vector in response.embeddings) > _INLINE:
            await asyncio.to_thread(complete, response, request, model)
        else:
            complete(response, request, model)
        return response


def complete(response: EmbedResponse, request: EmbedRequest, model: Model, *, batch: bool = False) -> None:
    """Adds what follows from request and model: names, attempt, cost. Raises `StreamBroken` for wrong vectors."""
    wanted, got = list(range(len(request.inputs))), [vector.index for vector in response.embeddings]
    if got != wanted:
        raise StreamBroken(f"there are {len(wanted)} inputs, and the provider returned vectors {got[:8]} …")
    lengths = {len(vector.values) for vector in response.embeddings}
    if len(lengths) != 1 or 0 in lengths:
        raise StreamBroken(f"the provider returned vectors of the lengths {sorted(lengths)}")
    for vector in response.embeddings:
        # One NaN or infinity makes the sum one; no sum of floats of 32 bits gets there otherwise.
        if not math.isfinite(sum(vector.values)):
            raise StreamBroken(f"the provider returned a vector with what is no number, at {vector.index}")
    response.provider, response.model = model.provider, model.name
    response.attempt = response.attempt or 1
    if is_unknown(model):
        response.warnings.append(Warning(**warn_unknown(model)))
    in_force = price_of(model)
    if response.HasField("usage") and not response.HasField("cost") and in_force is not None:
        response.cost.CopyFrom(cost_of(response.usage, in_force, batch=batch))
