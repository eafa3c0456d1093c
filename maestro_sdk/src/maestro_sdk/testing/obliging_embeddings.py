"""Vectors of the obliging model: each word adds to one place, so that only the same text has the same vector."""

from __future__ import annotations

import hashlib
import math

from maestro.llm.v1.embedding_pb2 import Embedding, EmbedRequest, EmbedResponse
from maestro.llm.v1.usage_pb2 import Usage

DIMENSIONS = 384


def vector(text: str, dimensions: int = DIMENSIONS) -> list[float]:
    """The words of `text` hashed into so many places; of length 1."""
    values = [0.0] * dimensions
    for word in text.split():
        digest = hashlib.blake2b(word.encode(), digest_size=8).digest()
        values[int.from_bytes(digest[:4], "big") % dimensions] += 1.0 if digest[4] % 2 else -1.0
    size = math.hypot(*values) or 1.0
    return [value / size for value in values]


class ObligingEmbedder:
    """An `Embedder`; a token per four characters."""

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """A vector per text, as long as asked."""
        length = request.dimensions if request.HasField("dimensions") else DIMENSIONS
        texts = [entry.text for entry in request.inputs]
        vectors = [Embedding(index=number, values=vector(text, length)) for number, text in enumerate(texts)]
        used = Usage(input_tokens=sum(1 + len(text) // 4 for text in texts))
        return EmbedResponse(response_id="obliging-1", embeddings=vectors, usage=used)
