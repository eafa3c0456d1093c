"""An adapter that embeds, for tests of what stands before it: its vectors tell the text that they are of."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from maestro.llm.v1.embedding_pb2 import Embedding, EmbedInput, EmbedRequest, EmbedResponse
from maestro.llm.v1.embedding_pb2_grpc import EmbeddingServiceServicer
from maestro.llm.v1.model_pb2 import Feature, FeatureSupport, Model, Support
from maestro.llm.v1.usage_pb2 import Price, Usage

NATIVE = FeatureSupport(feature=Feature.FEATURE_EMBEDDINGS, support=Support.SUPPORT_NATIVE)


def vector_of(given: EmbedInput, length: int) -> list[float]:
    """A vector that begins with the number in a text ("text 17"), or with the first token."""
    if given.WhichOneof("kind") == "tokens":
        first = float(given.tokens.ids[0])
    else:
        digits = "".join(letter for letter in given.text if letter.isdecimal())
        first = float(digits or -1)
    return [first, *([0.5] * (length - 1))]


class PlainEmbedder(EmbeddingServiceServicer):
    """Serves the model `name` ("p0/small"). `fail` may raise for a call, by its number from 0 on."""

    def __init__(
        self,
        name: str,
        *,
        length: int = 3,
        window: int = 0,
        fail: Callable[[int], None] | None = None,
        bend: Callable[[EmbedResponse], None] | None = None,
        counts: bool = True,
        stalls: Sequence[int] = (),
    ) -> None:
        """`bend` changes answers; without `counts` no usage is told; calls numbered in `stalls` never end."""
        self.model = Model(
            id=name,
            provider=name.partition("/")[0],
            name=name.partition("/")[2],
            context_window=window or None,
            features=[NATIVE],
            price=Price(effective_date="2026-01-01", input="1", output="0"),
        )
        self.asked: list[EmbedRequest] = []
        self.left = 0
        """Calls that were cancelled."""
        self._length, self._fail, self._bend, self._counts, self._stalls = length, fail, bend, counts, stalls

    async def Embed(self, request: EmbedRequest, context: Any) -> EmbedResponse:
        number = len(self.asked)
        self.asked.append(request)
        if self._fail is not None:
            self._fail(number)
        if number in self._stalls:
            try:
                await asyncio.Event().wait()
            finally:
                self.left += 1
        length = request.dimensions or self._length
        answer = EmbedResponse(
            response_id=f"embd_{number}",
            provider=self.model.provider,
            model=self.model.name,
            attempt=1,
            embeddings=[
                Embedding(index=place, values=vector_of(given, length)) for place, given in enumerate(request.inputs)
            ],
        )
        if self._counts:
            answer.usage.CopyFrom(Usage(input_tokens=10 * len(request.inputs)))
        if self._bend is not None:
            self._bend(answer)
        return answer
