"""BERT's encoder with numpy: embeddings, layers of attention, and one vector per text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import numpy.typing as npt

from maestro_adapter_local.minilm.safetensors import Floats, read_tensors

Integers = npt.NDArray[np.int64]

_FAR = np.float32(-1e9)
"""Added to the attention to padding: it gets none."""


@dataclass(frozen=True, slots=True)
class Shape:
    """What `config.json` tells of a network."""

    hidden: int
    layers: int
    heads: int
    positions: int
    epsilon: float
    activation: Literal["gelu", "gelu_new", "relu"]
    pooling: Literal["mean", "cls"]
    longest: int
    """Tokens that are read of a text, special ones included."""


class Encoder:
    """A network with its weights. `encode` may run in any thread."""

    def __init__(self, shape: Shape, weights: Mapping[str, Floats]) -> None:
        """Raises `ValueError` naming the first weight that is missing."""
        self.shape = shape
        prefix = "" if "embeddings.word_embeddings.weight" in weights else "bert."
        self._weights = {name.removeprefix(prefix): weight for name, weight in weights.items()}
        missing = [name for name in _names(shape.layers) if name not in self._weights]
        if missing:
            raise ValueError(f"{len(missing)} weights are missing, {missing[0]} among them; is it a BERT model?")

    @property
    def words(self) -> int:
        """How many words have an embedding."""
        return len(self._weights["embeddings.word_embeddings.weight"])

    def encode(self, batch: Sequence[Sequence[int]], padding: int) -> Floats:
        """The vectors of texts, one row each, not yet of length 1. No text may be longer than `shape.longest`."""
        longest = max(len(ids) for ids in batch)
        ids: Integers = np.full((len(batch), longest), padding, dtype=np.int64)
        mask: Floats = np.zeros((len(batch), longest), dtype=np.float32)
        for row, text in enumerate(batch):
            ids[row, : len(text)] = text
            mask[row, : len(text)] = 1.0
        states = self._embed(ids)
        far: Floats = (1.0 - mask)[:, None, None, :] * _FAR
        for layer in range(self.shape.layers):
            states = self._layer(states, far, f"encoder.layer.{layer}.")
        if self.shape.pooling == "cls":
            return states[:, 0]
        weights: Floats = mask[:, :, None]
        return cast("Floats", (states * weights).sum(axis=1) / weights.sum(axis=1))

    def _embed(self, ids: Integers) -> Floats:
        weights = self._weights
        words = weights["embeddings.word_embeddings.weight"][ids]
        places = weights["embeddings.position_embeddings.weight"][: ids.shape[1]]
        # One text at a time: all of its tokens are of the first type.
        kinds = weights["embeddings.token_type_embeddings.weight"][0]
        return self._norm(words + places + kinds, "embeddings.LayerNorm")

    def _layer(self, states: Floats, far: Floats, at: str) -> Floats:
        rows, length, hidden = states.shape
        size = hidden // self.shape.heads

        def heads(name: str) -> Floats:
            made = self._dense(states, f"{at}attention.self.{name}")
            return made.reshape(rows, length, self.shape.heads, size).transpose(0, 2, 1, 3)

        scores = heads("query") @ heads("key").transpose(0, 1, 3, 2) / np.float32(np.sqrt(size)) + far
        seen = (_softmax(scores) @ heads("value")).transpose(0, 2, 1, 3).reshape(rows, length, hidden)
        states = self._norm(
            states + self._dense(seen, f"{at}attention.output.dense"), f"{at}attention.output.LayerNorm"
        )
        wide = _ACTIVATIONS[self.shape.activation](self._dense(states, f"{at}intermediate.dense"))
        return self._norm(states + self._dense(wide, f"{at}output.dense"), f"{at}output.LayerNorm")

    def _dense(self, values: Floats, name: str) -> Floats:
        return values @ self._weights[f"{name}.weight"].T + self._weights[f"{name}.bias"]

    def _norm(self, values: Floats, name: str) -> Floats:
        mean = values.mean(axis=-1, keepdims=True)
        spread = values.var(axis=-1, keepdims=True)
        scaled = (values - mean) / np.sqrt(spread + np.float32(self.shape.epsilon))
        return cast("Floats", scaled * self._weights[f"{name}.weight"] + self._weights[f"{name}.bias"])


def load_encoder(folder: Path) -> Encoder:
    """The network of a folder with `config.json` and `model.safetensors`. Raises `ValueError`, or `OSError`."""
    return Encoder(read_shape(folder), read_tensors(folder / "model.safetensors"))


def read_shape(folder: Path) -> Shape:
    """What the folder tells of its network. Raises `ValueError` for one that is not a BERT encoder, or `OSError`."""
    config = _object(folder / "config.json")
    kind = config.get("model_type")
    if kind != "bert":
        raise ValueError(f"{folder / 'config.json'}: the model is of type {kind!r}; only 'bert' is known here")
    activation = config.get("hidden_act", "gelu")
    if activation not in _ACTIVATIONS:
        raise ValueError(f"{folder / 'config.json'}: hidden_act {activation!r} is not one of {', '.join(_ACTIVATIONS)}")
    if config.get("position_embedding_type", "absolute") != "absolute":
        raise ValueError(f"{folder / 'config.json'}: only absolute positions are known here")
    try:
        hidden, heads = int(config["hidden_size"]), int(config["num_attention_heads"])
        positions = int(config["max_position_embeddings"])
        layers = int(config["num_hidden_layers"])
    except (KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{folder / 'config.json'} is not complete: {error!r}") from error
    if heads < 1 or hidden % heads:
        raise ValueError(f"{folder / 'config.json'}: {hidden} dimensions can't be shared by {heads} heads")
    # sentence-transformers keep beside the model how far it reads a text, and how a text's vector is made.
    read = _object(folder / "sentence_bert_config.json", missing={}).get("max_seq_length") or positions
    pooling = _object(folder / "1_Pooling" / "config.json", missing={})
    return Shape(
        hidden=hidden,
        layers=layers,
        heads=heads,
        positions=positions,
        epsilon=float(config.get("layer_norm_eps", 1e-12)),
        activation=activation,
        pooling="cls" if pooling.get("pooling_mode_cls_token") else "mean",
        longest=min(int(read), positions),
    )


def _object(file: Path, missing: Mapping[str, Any] | None = None) -> Mapping[str, Any]:
    if missing is not None and not file.exists():
        return missing
    try:
        value: Any = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{file} is no JSON object")
    return cast("Mapping[str, Any]", value)


def _names(layers: int) -> list[str]:
    dense = ("attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense")
    parts = (*dense, "attention.output.LayerNorm", "intermediate.dense", "output.dense", "output.LayerNorm")
    names = [f"embeddings.{kind}_embeddings.weight" for kind in ("word", "position", "token_type")]
    whole = ["embeddings.LayerNorm", *(f"encoder.layer.{layer}.{part}" for layer in range(layers) for part in parts)]
    return names + [f"{name}.{kind}" for name in whole for kind in ("weight", "bias")]


def _softmax(scores: Floats) -> Floats:
    grown = np.exp(scores - scores.max(axis=-1, keepdims=True))
    return cast("Floats", grown / grown.sum(axis=-1, keepdims=True))


def _erf(values: Floats) -> Floats:
    """The error function to 1.5e-7, which is finer than a 32-bit float needs (Abramowitz and Stegun, 7.1.26)."""
    size = np.abs(values)
    part = 1.0 / (1.0 + 0.3275911 * size)
    series = (
        (((1.061405429 * part - 1.453152027) * part + 1.421413741) * part - 0.284496736) * part + 0.254829592
    ) * part
    return cast("Floats", np.sign(values) * (1.0 - series * np.exp(-size * size)))


def _gelu(values: Floats) -> Floats:
    return cast("Floats", values * 0.5 * (1.0 + _erf(values / np.float32(np.sqrt(2.0)))))


def _gelu_new(values: Floats) -> Floats:
    inner = np.float32(np.sqrt(2.0 / np.pi)) * (values + np.float32(0.044715) * values**3)
    return cast("Floats", values * 0.5 * (1.0 + np.tanh(inner)))


def _relu(values: Floats) -> Floats:
    return cast("Floats", np.maximum(values, 0.0))


_ACTIVATIONS = {"gelu": _gelu, "gelu_new": _gelu_new, "relu": _relu}
