"""The lexical embedder: the same bits everywhere, shared words are near, and what the contract asks of vectors."""

from __future__ import annotations

import hashlib
import math
import struct
import subprocess
import sys
from typing import Any

import pytest
from google.protobuf.json_format import ParseDict
from hypothesis import given
from hypothesis import strategies as st

from maestro.llm.v1.embedding_pb2 import EmbedRequest
from maestro.llm.v1.model_pb2 import Feature, Support
from maestro_adapter_local.hashing import embed_text
from maestro_adapter_local.provider import LocalProvider
from maestro_adapter_local.settings import LocalSettings
from maestro_sdk.adapter.catalogue import Catalogue
from maestro_sdk.adapter.embedding_servicer import EmbeddingServicer
from maestro_sdk.errors import CapabilityUnavailable, NotFound, UnsupportedParameter

TEXTS = (
    "Hello, Wörld!",
    "The weather in Paris is sunny.",
    "東京の天気は晴れです",
    "ﬁne Straße \uff21\uff22\uff23",
    "…",
    "a " * 500,
)


def cosine(one: str, other: str) -> float:
    return math.fsum(a * b for a, b in zip(embed_text(one), embed_text(other), strict=True))


def request(*texts: str, **fields: Any) -> EmbedRequest:
    inputs = [{"text": text} for text in texts]
    return ParseDict({"model": "local/hashing", "inputs": inputs, **fields}, EmbedRequest())


def digest() -> str:
    packed = b"".join(struct.pack("<384d", *embed_text(text)) for text in TEXTS)
    return hashlib.sha256(packed).hexdigest()


def test_the_bits_are_the_same_on_every_machine() -> None:
    assert digest() == "b3176371f1bfb0f38b6ac2d85afc506fc748ec1f0a508b6daaadd2b1895a09fa"


def test_the_bits_do_not_depend_on_the_process() -> None:
    code = "from maestro_adapter_local.hashing import embed_text; print(embed_text('Hello, world', 7))"
    runs = [
        subprocess.run([sys.executable, "-c", code], env={"PYTHONHASHSEED": seed}, capture_output=True, check=True)
        for seed in ("1", "2")
    ]
    assert runs[0].stdout == runs[1].stdout == f"{embed_text('Hello, world', 7)}\n".encode()


@pytest.mark.parametrize(
    ("text", "near", "far"),
    [
        ("What is the weather in Paris?", "The weather in Paris is sunny.", "Quarterly revenue rose by nine percent."),
        ("configure the gateway", "gateway configuration", "bake a chocolate cake"),
        ("resilience", "resiliense", "chocolate"),
        ("東京の天気", "東京は天気がいい", "大阪で会議があった"),
        ("Wetterbericht für Straßburg", "WETTERBERICHTE STRASSBURG", "Steuererklärung"),
    ],
)
def test_texts_that_share_words_are_near(text: str, near: str, far: str) -> None:
    assert cosine(text, near) > cosine(text, far) + 0.15


@pytest.mark.parametrize(
    ("one", "other"), [("Straße", "STRASSE"), ("\uff46\uff55\uff4c\uff4c", "Full"), ("ﬁne", "FINE"), ("a  b", "a, b")]
)
def test_one_form_of_a_text(one: str, other: str) -> None:
    assert embed_text(one) == embed_text(other)


@given(st.text(min_size=1, max_size=60), st.integers(1, 512))
def test_every_text_has_a_vector_of_length_one(text: str, dimensions: int) -> None:
    vector = embed_text(text, dimensions)
    assert len(vector) == dimensions
    assert math.isclose(math.hypot(*vector), 1.0, rel_tol=1e-9)
    assert vector == embed_text(text, dimensions)


async def test_served() -> None:
    provider = LocalProvider(LocalSettings())
    servicer = EmbeddingServicer(provider, Catalogue(provider))
    response = await servicer.Embed(request("one", "two words", dimensions=64), None)
    assert [vector.index for vector in response.embeddings] == [0, 1]
    assert {len(vector.values) for vector in response.embeddings} == {64}
    assert list(response.embeddings[1].values) == pytest.approx(embed_text("two words", 64))
    assert (response.provider, response.model, response.usage.input_tokens) == ("local", "hashing", 3)
    assert response.cost.usd == "0.000000"
    long = await servicer.Embed(request("word " * 2000, "x"), None)
    assert list(long.embeddings[0].values) == pytest.approx(embed_text("word " * 2000))
    raw = await servicer.Embed(request("two two words", normalize=False), None)
    assert math.hypot(*raw.embeddings[0].values) > 1.5
    with pytest.raises(CapabilityUnavailable):
        await servicer.Embed(EmbedRequest(model="local/offline"), None)
    (model,) = [model for model in await provider.models() if model.name == "hashing"]
    assert [(entry.feature, entry.support) for entry in model.features] == [
        (Feature.FEATURE_EMBEDDINGS, Support.SUPPORT_NATIVE)
    ]
    assert list(model.tags) == ["lexical"]
    await provider.close()


async def test_what_it_does_not_do() -> None:
    provider = LocalProvider(LocalSettings())
    warned = await provider.embed(request("x", purpose="EMBED_PURPOSE_SEARCH_QUERY"))
    assert [warning.field for warning in warned.warnings] == ["purpose"]
    with pytest.raises(UnsupportedParameter, match="purpose"):
        await provider.embed(request("x", purpose="EMBED_PURPOSE_SEARCH_QUERY", strict=True))
    for odd in ({"tokens": {"ids": [1]}}, {"image": {"url": "https://x"}}):
        with pytest.raises(UnsupportedParameter, match=r"inputs\[0\]\."):
            await provider.embed(request(inputs=[odd]))
    without = LocalProvider(LocalSettings(hashing=False))
    assert [model.id for model in await without.models()] == ["local/offline"]
    with pytest.raises(NotFound):
        await without.embed(request("x"))
