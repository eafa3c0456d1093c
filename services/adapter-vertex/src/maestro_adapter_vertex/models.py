"""The models on offer: `models.yaml` as the contract's `Model` messages, with what each accepts on the wire."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maestro.llm.v1.model_pb2 import Feature, Model
from maestro_sdk.adapter.models import load_entries, read_model, supports

PROVIDER = "vertex"
DEFAULT_WIRE = "unknown"
FILE = Path(__file__).with_name("models.yaml")


@dataclass(frozen=True, slots=True)
class Budget:
    """Tokens to think that a model takes, and whether 0 turns thinking off."""

    least: int
    most: int
    zero: bool


@dataclass(frozen=True, slots=True)
class WireFacts:
    """What a model accepts; see the head of `models.yaml`."""

    levels: Sequence[str]
    budget: Budget | None
    unsigned: str
    media_results: bool
    json_with_tools: bool
    embeds: str
    inputs: int


@dataclass(frozen=True, slots=True)
class VertexModel:
    """One model: what the mesh is told, and what the translation has to know."""

    model: Model
    wire: WireFacts

    @property
    def max_output_tokens(self) -> int | None:
        """Most tokens of one answer, None when unknown."""
        return self.model.max_output_tokens if self.model.HasField("max_output_tokens") else None

    def has(self, feature: Feature.ValueType) -> bool:
        """Whether the model has a feature."""
        return supports(self.model, feature)


def load(
    extra: Sequence[Mapping[str, Any]] = (), today: datetime.date | None = None, path: Path = FILE
) -> dict[str, VertexModel]:
    """All models by id ("vertex/gemini-…"), ordered by it.

    `extra` has the fields of `models.yaml`, and an entry with a known name changes the fields that it gives. Raises
    `ValueError` naming the entry that is wrong.
    """
    models = [
        VertexModel(read_model(entry, PROVIDER, today), _wire_facts(wire))
        for entry, wire in load_entries(path, DEFAULT_WIRE, extra)
    ]
    return {found.model.id: found for found in models}


def _wire_facts(facts: Mapping[str, Any]) -> WireFacts:
    budget: Mapping[str, Any] | None = facts.get("budget")
    return WireFacts(
        levels=tuple(facts.get("levels", ())),
        budget=Budget(budget["least"], budget["most"], budget["zero"]) if budget else None,
        unsigned=facts.get("unsigned", ""),
        media_results=facts.get("media_results", False),
        json_with_tools=facts.get("json_with_tools", False),
        embeds=facts.get("embeds", ""),
        inputs=facts.get("inputs", 1),
    )
