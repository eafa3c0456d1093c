"""Vectors without a model: words and pieces of words are hashed into buckets, so texts that share them are near.

This is a lexical embedder. It finds the same words, their forms and their misspellings, in any language; it knows
nothing of meaning: "car" and "automobile" are strangers to it.

A text is brought to one form (NFKC, case folded), and its features are counted: words, pairs of neighbouring words, and
runs of three to five characters within a word. Each feature has a bucket and a sign by its hash, and adds the root of
its count; the vector then gets length 1. Only hashes and arithmetic that IEEE 754 rounds in one way are used: the same
text gives the same bits on every machine and Python, as long as its characters are in Unicode 14, which all of them
know.
"""

from __future__ import annotations

import asyncio
import math
import re
import unicodedata
from collections.abc import Iterator
from hashlib import blake2b

from maestro.llm.v1.chat_pb2 import Warning  # noqa: A004 - the contract's name
from maestro.llm.v1.embedding_pb2 import Embedding, EmbedPurpose, EmbedRequest, EmbedResponse
from maestro.llm.v1.model_pb2 import Model
from maestro_adapter_local.offline.tokens import count
from maestro_sdk.errors import UnsupportedParameter, Violation

DIMENSIONS = 384
"""Length of the vectors unless the request says another one."""
_WORD = re.compile(r"\w+")
_RUNS = (3, 4, 5)
_DENSE, _DENSE_RUNS = "\u2e80", (1, 2, 3)
"""From this character on stand the scripts that write a syllable or a word as one sign, and no spaces between words."""
_WORD_WEIGHT, _SHORT_WEIGHT, _PAIR_WEIGHT, _RUN_WEIGHT = 1.0, 0.5, 0.5, 0.25
_SHORT = 3
"""Words of up to so many characters say little: articles, prepositions."""
_INLINE = 4_000
"""Characters that are embedded at once; more go to a thread, so that chats beside them don't wait."""
_PERSON = b"maestro-lexical"


class HashingEmbedder:
    """An `Embedder` with one model. Texts of any length are taken whole."""

    problem = ""
    """Nothing can stand in its way."""

    def __init__(self, model: Model) -> None:
        self.model = model

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """One vector per text. Raises `UnsupportedParameter` for other inputs, with their path."""
        texts: list[str] = []
        for position, entry in enumerate(request.inputs):
            kind = entry.WhichOneof("kind")
            if kind != "text":
                raise UnsupportedParameter.at(f"inputs[{position}].{kind}", "this embedder takes texts only")
            texts.append(entry.text)
        warnings: list[Warning] = []
        if request.purpose != EmbedPurpose.EMBED_PURPOSE_UNSPECIFIED:
            message = "purpose: lexical vectors are the same for every purpose"
            if request.strict:
                raise UnsupportedParameter(message, violations=[Violation("purpose", message)])
            warnings.append(Warning(code="unsupported_parameter", message=message, field="purpose"))
        length = request.dimensions if request.HasField("dimensions") else DIMENSIONS
        scale = request.normalize if request.HasField("normalize") else True
        if sum(map(len, texts)) > _INLINE:
            vectors = [await asyncio.to_thread(embed_text, text, length, normalize=scale) for text in texts]
        else:
            vectors = [embed_text(text, length, normalize=scale) for text in texts]
        response = EmbedResponse(
            provider=self.model.provider,
            model=self.model.name,
            embeddings=[Embedding(index=index, values=values) for index, values in enumerate(vectors)],
            warnings=warnings,
        )
        response.usage.input_tokens = sum(count(text) for text in texts)
        return response


def embed_text(text: str, dimensions: int = DIMENSIONS, *, normalize: bool = True) -> list[float]:
    """The vector of `text`: `dimensions` numbers, with length 1 unless `normalize` is false. Never all zero."""
    counts: dict[str, int] = {}
    weights: dict[str, float] = {}
    for feature, weight in features(text):
        counts[feature] = counts.get(feature, 0) + 1
        weights[feature] = weight
    vector = [0.0] * dimensions
    for feature, times in counts.items():
        bucket, sign = _place(feature, dimensions)
        # The tenth use of a word says less than its first.
        vector[bucket] += sign * weights[feature] * math.sqrt(times)
    if not any(vector):
        # Features of opposite signs may meet in one bucket when there are few of both.
        vector[_place("", dimensions)[0]] = 1.0
    if not normalize:
        return vector
    length = math.sqrt(math.fsum(value * value for value in vector))
    return [value / length for value in vector]


def features(text: str) -> Iterator[tuple[str, float]]:
    """The features of `text` with their weights; a text without a word is one feature."""
    plain = unicodedata.normalize("NFKC", unicodedata.normalize("NFKC", text).casefold())
    words: list[str] = _WORD.findall(plain)
    if not words:
        yield f"other:{plain.strip()}", _WORD_WEIGHT
    before = ""
    for word in words:
        yield f"word:{word}", _SHORT_WEIGHT if len(word) <= _SHORT else _WORD_WEIGHT
        if before:
            yield f"pair:{before} {word}", _PAIR_WEIGHT
        before = word
        # The ends of a word are characters too: "able" begins another word than the end of "table".
        padded = f"<{word}>"
        for size in _DENSE_RUNS if max(word) >= _DENSE else _RUNS:
            for start in range(len(padded) - size + 1):
                yield f"run:{padded[start : start + size]}", _RUN_WEIGHT


def _place(feature: str, dimensions: int) -> tuple[int, float]:
    """Bucket and sign of a feature. Python's own hash differs from process to process."""
    number = int.from_bytes(blake2b(feature.encode("utf-8", "surrogatepass"), digest_size=8, person=_PERSON).digest())
    return (number >> 1) % dimensions, 1.0 if number & 1 else -1.0
