"""The models on offer: `models.yaml` as the contract's `Model` messages, with what each accepts on the wire."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from maestro.llm.v1.model_pb2 import Feature, Model
from maestro_adapter_openai.translate import AZURE, AZURE_EMBEDDINGS, OPENAI, OPENAI_EMBEDDINGS
from maestro_sdk.adapter.chat_completions import Dialect
from maestro_sdk.adapter.models import load_entries, read_model, supports
from maestro_sdk.adapter.openai_embeddings import EmbeddingDialect

FILE = Path(__file__).with_name("models.yaml")
DEFAULT_WIRE = "plain"
_NOT_AT_AZURE = frozenset({"DOCUMENTS", "BATCH"})
"""What deployments of the same model do not do here, or only those of another kind."""
_WIRE_AT_AZURE: Mapping[str, Any] = {"allowed_tools": False, "cache_points": 0}
"""Where Azure's versions of the wire are behind OpenAI's."""
_EMBEDDING_FIELDS = frozenset({"dimensions"})


@dataclass(frozen=True, slots=True)
class OpenAIModel:
    """One model: what the mesh is told, and what the translation has to know. `dialect` is None where it can't chat."""

    model: Model
    dialect: Dialect | None
    embedding: EmbeddingDialect | None = None


def models(
    extra: Sequence[Mapping[str, Any]] = (), today: datetime.date | None = None, path: Path = FILE
) -> dict[str, OpenAIModel]:
    """All models by name, ordered by it; an entry of `extra` with a known name changes the fields that it gives.

    `extra` has the fields of `models.yaml`; `wire` names one of its groups. Raises `ValueError` naming the entry that
    is wrong.
    """
    return {
        str(entry["name"]): _read(entry, wire, OPENAI, OPENAI_EMBEDDINGS, today)
        for entry, wire in load_entries(path, DEFAULT_WIRE, extra)
    }


def azure_models(
    deployments: Mapping[str, str],
    batch_deployments: Mapping[str, str],
    extra: Sequence[Mapping[str, Any]] = (),
    today: datetime.date | None = None,
    path: Path = FILE,
) -> dict[str, OpenAIModel]:
    """The models with a deployment, by name. One that `models.yaml` does not know gets the least features.

    Prices are those of `extra` only: what a resource pays depends on its region, its deployment and its contract.
    Raises `ValueError` naming the entry that is wrong.
    """
    own = {str(entry.get("name", "")): entry for entry in extra}
    for strange, where in ((set(own), "models"), (set(batch_deployments), "batch_deployments")):
        if lost := strange - set(deployments):
            raise ValueError(f"{where}: {', '.join(sorted(lost))} has no deployment")
    known = {str(entry["name"]): (entry, wire) for entry, wire in load_entries(path, DEFAULT_WIRE, extra)}
    found: dict[str, OpenAIModel] = {}
    for name, deployment in sorted(deployments.items()):
        base, wire = known.get(name, ({"name": name}, {}))
        entry = {**base, "native": [word for word in base.get("native", ()) if word not in _NOT_AT_AZURE]}
        # Azure retires and charges by rules of its own.
        for field in ("prices", "retires"):
            entry.pop(field, None)
        entry.update({field: value for field, value in own.get(name, {}).items() if field != "wire"})
        if name in batch_deployments:
            entry["native"] = [*entry["native"], "BATCH"]
        dialect, embeddings = replace(AZURE, wire_name=deployment), replace(AZURE_EMBEDDINGS, wire_name=deployment)
        found[name] = _read(entry, {**wire, **_WIRE_AT_AZURE}, dialect, embeddings, today)
        if name in batch_deployments and found[name].dialect is None:
            raise ValueError(f"batch_deployments: {name} makes embeddings, and Azure takes batches of chats only")
    return found


def chat_dialects(found: Mapping[str, OpenAIModel]) -> dict[str, Dialect]:
    """What each model that chats understands."""
    return {name: entry.dialect for name, entry in found.items() if entry.dialect is not None}


def embedding_dialects(found: Mapping[str, OpenAIModel]) -> dict[str, EmbeddingDialect]:
    """What each model that embeds understands."""
    return {name: entry.embedding for name, entry in found.items() if entry.embedding is not None}


def takes_batches(found: Mapping[str, OpenAIModel]) -> set[str]:
    """The models that the batch API takes."""
    return {name for name, entry in found.items() if supports(entry.model, Feature.FEATURE_BATCH)}


def _read(
    entry: Mapping[str, Any],
    wire: Mapping[str, Any],
    dialect: Dialect,
    embeddings: EmbeddingDialect,
    today: datetime.date | None,
) -> OpenAIModel:
    model = read_model(entry, dialect.provider, today)
    if supports(model, Feature.FEATURE_EMBEDDINGS):
        fields = {name: value for name, value in wire.items() if name in _EMBEDDING_FIELDS}
        return OpenAIModel(model, None, replace(embeddings, **fields))
    return OpenAIModel(model, replace(dialect, **wire).for_model(model))
