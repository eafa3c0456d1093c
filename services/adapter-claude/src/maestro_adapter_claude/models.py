"""The models on offer: `models.yaml` as the contract's `Model` messages, with what each accepts on the wire."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from maestro.llm.v1.model_pb2 import Feature, Model
from maestro_sdk.adapter.models import is_unknown, load_entries, read_model, supports

PROVIDER = "anthropic"
DEFAULT_WIRE = "adaptive"
FILE = Path(__file__).with_name("models.yaml")


@dataclass(frozen=True, slots=True)
class WireFacts:
    """What a model accepts. `disable` is the `thinking.type` that turns thinking off, None when nothing does."""

    adaptive: bool
    budget: bool
    disable: str | None
    efforts: frozenset[str]
    forced_tools: bool


@dataclass(frozen=True, slots=True)
class ClaudeModel:
    """One model: what the mesh is told, and what the translation has to know."""

    model: Model
    wire: WireFacts

    @property
    def refuses_prefill(self) -> bool:
        """Whether it is known to refuse a conversation that ends with an assistant message."""
        return not is_unknown(self.model) and not supports(self.model, Feature.FEATURE_PREFILL)

    @property
    def max_output_tokens(self) -> int | None:
        """Most tokens of one answer, None when unknown."""
        return self.model.max_output_tokens if self.model.HasField("max_output_tokens") else None


def load(
    extra: Sequence[Mapping[str, Any]] = (), today: datetime.date | None = None, path: Path = FILE
) -> dict[str, ClaudeModel]:
    """All models by id ("anthropic/claude-…"), ordered by it.

    `extra` has the fields of `models.yaml`, and an entry with a known name changes the fields that it gives. Raises
    `ValueError` naming the entry that is wrong.
    """
    models = [
        ClaudeModel(read_model(entry, PROVIDER, today), _wire_facts(wire))
        for entry, wire in load_entries(path, DEFAULT_WIRE, extra)
    ]
    return {found.model.id: found for found in models}


def _wire_facts(facts: Mapping[str, Any]) -> WireFacts:
    return WireFacts(
        adaptive=facts["adaptive"],
        budget=facts["budget"],
        disable=facts["disable"],
        efforts=frozenset(facts["efforts"]),
        forced_tools=facts["forced_tools"],
    )
