"""Serves the encoder: files are read on the first call, batches are computed in a thread, one at a time."""

from __future__ import annotations

import asyncio
import math
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from maestro.llm.v1.chat_pb2 import Warning  # noqa: A004 - the contract's name
from maestro.llm.v1.embedding_pb2 import Embedding, EmbedPurpose, EmbedRequest, EmbedResponse
from maestro.llm.v1.model_pb2 import Feature, FeatureSupport, Model, Support
from maestro.llm.v1.usage_pb2 import Price
from maestro_sdk.errors import ContextTooLong, UnsupportedParameter, UpstreamError, Violation

if TYPE_CHECKING:
    # numpy is an optional extra: it is loaded with the weights.
    from maestro_adapter_local.minilm.encoder import Encoder
    from maestro_adapter_local.minilm.wordpiece import WordPiece

_FILES = ("config.json", "model.safetensors")
_WORDS = ("tokenizer.json", "vocab.txt")


class MiniLM:
    """An `Embedder` with one model, that of a folder."""

    def __init__(self, model_id: str, folder: Path, batch: int) -> None:
        """`batch` is the most texts that are computed together."""
        provider, _, name = model_id.partition("/")
        self._folder = folder
        self._batch = batch
        self._loaded: tuple[Encoder, WordPiece] | None = None
        self._turn = asyncio.Lock()
        self.problem = missing(folder)
        """Why it can't be used; empty when nothing is known against it."""
        self.model = Model(
            id=model_id,
            provider=provider,
            name=name,
            description="A BERT encoder that runs within the adapter",
            features=[FeatureSupport(feature=Feature.FEATURE_EMBEDDINGS, support=Support.SUPPORT_NATIVE)],
            price=Price(effective_date="2026-01-01", input="0", output="0"),
        )

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        """One vector per text. A text that is too long is cut unless the request says `truncate: false`.

        Raises `UnsupportedParameter` for inputs that are no texts, `ContextTooLong`, and `UpstreamError` when the files
        can't be read.
        """
        texts = _texts(request)
        warnings = _warnings(request)
        async with self._turn:
            encoder, words = await self._load()
            longest = encoder.shape.longest
            encoded = await asyncio.to_thread(_encode, words, texts)
            if request.HasField("truncate") and not request.truncate:
                for position, ids in enumerate(encoded):
                    if len(ids) > longest:
                        told = f"inputs[{position}] has {len(ids)} tokens, the model reads {longest}"
                        raise ContextTooLong(told, violations=[Violation(f"inputs[{position}]", told)])
            cut = [words.cut(ids, longest) for ids in encoded]
            scale = request.normalize if request.HasField("normalize") else True
            # Texts of one length stand together: a batch is as long as its longest text.
            order = sorted(range(len(cut)), key=lambda place: len(cut[place]))
            vectors: dict[int, list[float]] = {}
            for begin in range(0, len(order), self._batch):
                places = order[begin : begin + self._batch]
                rows = await asyncio.to_thread(_compute, encoder, [cut[place] for place in places], words.padding)
                vectors.update(zip(places, rows, strict=True))
        made = [_unit(vectors[place]) if scale else vectors[place] for place in range(len(texts))]
        response = EmbedResponse(
            provider=self.model.provider,
            model=self.model.name,
            embeddings=[Embedding(index=index, values=values) for index, values in enumerate(made)],
            warnings=warnings,
        )
        response.usage.input_tokens = sum(map(len, cut))
        return response

    async def _load(self) -> tuple[Encoder, WordPiece]:
        if self._loaded is None:
            try:
                self._loaded = await asyncio.to_thread(_read, self._folder)
            except (ImportError, OSError, ValueError) as error:
                self.problem = f"{self.model.name} can't be loaded: {error}"
                raise UpstreamError(self.problem, retryable=False) from error
        return self._loaded


def missing(folder: Path) -> str:
    """What stands in the way of running the model of `folder`, and what to do; empty when nothing is missing."""
    if find_spec("numpy") is None:
        return "numpy is missing: install the extra `minilm` of maestro-adapter-local"
    lacking = [name for name in _FILES if not (folder / name).is_file()]
    if not any((folder / name).is_file() for name in _WORDS):
        lacking.append(" or ".join(_WORDS))
    return f"{folder} lacks {', '.join(lacking)}" if lacking else ""


def _read(folder: Path) -> tuple[Encoder, WordPiece]:
    from maestro_adapter_local.minilm.encoder import load_encoder
    from maestro_adapter_local.minilm.wordpiece import load_wordpiece

    encoder, words = load_encoder(folder), load_wordpiece(folder)
    if words.size > encoder.words:
        raise ValueError(f"the vocabulary has {words.size} pieces, the network knows {encoder.words}")
    return encoder, words


def _encode(words: WordPiece, texts: list[str]) -> list[list[int]]:
    return [words.encode(text) for text in texts]


def _compute(encoder: Encoder, batch: list[list[int]], padding: int) -> list[list[float]]:
    return encoder.encode(batch, padding).tolist()


def _texts(request: EmbedRequest) -> list[str]:
    texts: list[str] = []
    for position, entry in enumerate(request.inputs):
        kind = entry.WhichOneof("kind")
        if kind != "text":
            raise UnsupportedParameter.at(f"inputs[{position}].{kind}", "this embedder takes texts only")
        texts.append(entry.text)
    return texts


def _warnings(request: EmbedRequest) -> list[Warning]:
    notes: dict[str, str] = {}
    if request.HasField("dimensions"):
        notes["dimensions"] = "this model's vectors have one length"
    if request.purpose != EmbedPurpose.EMBED_PURPOSE_UNSPECIFIED:
        notes["purpose"] = "this model embeds alike for every purpose"
    told = {path: f"{path}: {message}" for path, message in notes.items()}
    if request.strict and told:
        raise UnsupportedParameter(
            "; ".join(told.values()), violations=[Violation(path, message) for path, message in told.items()]
        )
    return [Warning(code="unsupported_parameter", message=message, field=path) for path, message in told.items()]


def _unit(values: list[float]) -> list[float]:
    length = math.hypot(*values)
    return [value / length for value in values] if length else values
