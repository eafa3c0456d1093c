"""Serves an `Embedder` as `EmbeddingService`: the model, the order of the vectors, and the cost."""

from __future__ import annotations

from typing import Any

from maestro.llm.v1.chat_pb2 import Warning  # noqa: A004 - the contract's name
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro.llm.v1.embedding_pb2_grpc import EmbeddingServiceServicer
from maestro.llm.v1.model_pb2 import Feature, Model
from maestro_sdk.adapter.catalogue import Catalogue
from maestro_sdk.adapter.models import cost_of, is_unknown, warn_unknown
from maestro_sdk.adapter.provider import Embedder
from maestro_sdk.errors import StreamBroken


class EmbeddingServicer(EmbeddingServiceServicer):
    """Embeds with a provider. An answer that misses a vector, or mixes lengths, is `StreamBroken`, never returned."""

    def __init__(self, embedder: Embedder, catalogue: Catalogue) -> None:
        self._embedder = embedder
        self._catalogue = catalogue

    async def Embed(self, request: EmbedRequest, context: Any) -> EmbedResponse:
        model = await self._catalogue.able(request.model, Feature.FEATURE_EMBEDDINGS)
        response = await self._embedder.embed(request)
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
    response.provider, response.model = model.provider, model.name
    response.attempt = response.attempt or 1
    if is_unknown(model):
        response.warnings.append(Warning(**warn_unknown(model)))
    if response.HasField("usage") and not response.HasField("cost") and model.HasField("price"):
        response.cost.CopyFrom(cost_of(response.usage, model.price, batch=batch))
