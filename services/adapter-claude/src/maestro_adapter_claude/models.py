"""The models on offer: `models.yaml` as the contract's `Model` messages, with what each accepts on the wire."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from maestro.llm.v1.model_pb2 import Model
from maestro_sdk.adapter.models import read_model

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
    document: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    groups = {name: _wire_facts(facts) for name, facts in document["wire"].items()}
    entries: dict[str, Mapping[str, Any]] = {entry["name"]: entry for entry in document["models"]}
    for entry in extra:
        name = str(entry.get("name", ""))
        entries[name] = {**entries.get(name, {}), **entry}
    models = (_claude_model(entry, groups, today) for entry in entries.values())
    return {found.model.id: found for found in sorted(models, key=lambda found: found.model.id)}


def _claude_model(
    entry: Mapping[str, Any], groups: Mapping[str, WireFacts], today: datetime.date | None
) -> ClaudeModel:
    fields = dict(entry)
    group = str(fields.pop("wire", DEFAULT_WIRE))
    if group not in groups:
        raise ValueError(f"model {fields.get('name')}: wire {group!r} is not one of {', '.join(groups)}")
    return ClaudeModel(read_model(fields, PROVIDER, today), groups[group])


def _wire_facts(facts: Mapping[str, Any]) -> WireFacts:
    return WireFacts(
        adaptive=facts["adaptive"],
        budget=facts["budget"],
        disable=facts["disable"],
        efforts=frozenset(facts["efforts"]),
        forced_tools=facts["forced_tools"],
    )
