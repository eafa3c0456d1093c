"""The models on offer: `models.yaml` as the contract's `Model` messages, with what each accepts on the wire."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maestro.llm.v1.model_pb2 import Model
from maestro_adapter_openai.translate import OPENAI
from maestro_sdk.adapter.chat_completions import Dialect
from maestro_sdk.adapter.models import load_entries, read_model

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
    found: dict[str, OpenAIModel] = {}
    for entry, wire in load_entries(path, DEFAULT_WIRE, extra):
        model = read_model(entry, OPENAI.provider, today)
        found[model.name] = OpenAIModel(model, replace(OPENAI, **wire).for_model(model))
    return found
