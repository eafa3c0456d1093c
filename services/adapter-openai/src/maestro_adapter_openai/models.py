"""The models on offer: `models.yaml` as the contract's `Model` messages, with what each accepts on the wire."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from maestro.llm.v1.model_pb2 import Model
from maestro_adapter_openai.translate import OPENAI
from maestro_sdk.adapter.chat_completions import Dialect
from maestro_sdk.adapter.models import read_model

FILE = Path(__file__).with_name("models.yaml")
DEFAULT_WIRE = "plain"


@dataclass(frozen=True, slots=True)
class OpenAIModel:
    """One model: what the mesh is told, and what the translation has to know."""

    model: Model
    dialect: Dialect


def models(
    extra: Sequence[Mapping[str, Any]] = (), today: datetime.date | None = None, path: Path = FILE
) -> dict[str, OpenAIModel]:
    """All models by name, ordered by it; an entry of `extra` with a known name changes the fields that it gives.

    `extra` has the fields of `models.yaml`; `wire` names one of its groups. Raises `ValueError` naming the entry that
    is wrong.
    """
    document: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
    groups: Mapping[str, Mapping[str, Any]] = document["wire"]
    entries: dict[str, Mapping[str, Any]] = {entry["name"]: entry for entry in document["models"]}
    for entry in extra:
        name = str(entry.get("name", ""))
        entries[name] = {**entries.get(name, {}), **entry}
    return {name: _read(entries[name], groups, today) for name in sorted(entries)}


def _read(
    entry: Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]], today: datetime.date | None
) -> OpenAIModel:
    fields = dict(entry)
    group = str(fields.pop("wire", DEFAULT_WIRE))
    if group not in groups:
        raise ValueError(f"model {fields.get('name')}: wire {group!r} is not one of {', '.join(groups)}")
    model = read_model(fields, OPENAI.provider, today)
    return OpenAIModel(model, replace(OPENAI, **groups[group]).for_model(model))
