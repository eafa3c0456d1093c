"""The models on offer: `models.yaml` as the contract's `Model` messages, with what each accepts on the wire."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast
from urllib.parse import quote

import yaml

from maestro.llm.v1.model_pb2 import Feature, Model
from maestro_sdk.adapter.models import check_prices, join_prices, read_model, supports

PROVIDER = "bedrock"
DEFAULT_WIRE = "plain"
FILE = Path(__file__).with_name("models.yaml")
GEOGRAPHIES = frozenset({"us", "us-gov", "eu", "apac", "jp", "au", "ca", "sa", "global"})
"""What an inference profile's id begins with, before the model's own."""

Reasons = Literal["none", "budget", "adaptive", "both", "nova", "word", "always"]
Embeds = Literal["none", "titan", "cohere", "cohere4"]


@dataclass(frozen=True, slots=True)
class WireFacts:
    """What a model accepts; the fields are explained in `models.yaml`."""

    reasoning: Reasons
    efforts: frozenset[str]
    sampling: Literal["both", "one"]
    choices: frozenset[str]
    streamed_tools: bool
    result_status: bool
    schema_keys: frozenset[str]
    cache: frozenset[str]
    ttls: frozenset[str]
    prefill: Literal["goes_on", "refused", "unknown"]
    embed: Embeds


@dataclass(frozen=True, slots=True)
class BedrockModel:
    """One model: what the mesh is told, and what the translation has to know."""

    model: Model
    model_id: str
    """The id or ARN that Bedrock is asked for."""
    lineage: str
    """The model behind profiles and aliases, as far as it is known: all with one lineage read each other's state."""
    wire: WireFacts
    features: frozenset[int]

    @classmethod
    def unknown(cls, model_id: str) -> BedrockModel:
        """A model that is on offer no more: nothing is known of it but its id."""
        document = _read(FILE)
        return _make({"name": model_id, "lineage": base_of(model_id)}, document["wire"], False, None)

    @property
    def name(self) -> str:
        """The name without the provider."""
        return self.model.name

    @property
    def path(self) -> str:
        """The wire's path, without the operation. The id is encoded, its colons and slashes too."""
        return path_of(self.model_id)

    @property
    def max_output_tokens(self) -> int | None:
        """Most tokens of one answer, None when unknown."""
        return self.model.max_output_tokens if self.model.HasField("max_output_tokens") else None

    def has(self, feature: Feature.ValueType) -> bool:
        """Whether the model claims `feature`."""
        return feature in self.features


def path_of(model_id: str) -> str:
    """The wire's path of a model."""
    return f"/model/{quote(model_id, safe='-._~')}"


@cache
def _read(path: Path) -> Any:
    """The file's content, which nobody changes: it is read for the settings and for the provider alike."""
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def load(
    extra: Sequence[Mapping[str, Any]] = (),
    *,
    batches: bool = False,
    today: datetime.date | None = None,
    path: Path = FILE,
) -> dict[str, BedrockModel]:
    """All models by id ("bedrock/amazon.nova-…"), ordered by it; `batches` tells whether batches can be run.

    `extra` has the fields of `models.yaml`. An entry with a known name changes the fields that it gives; one that is
    `like` another, or the inference profile of a known model, has that one's facts. Raises `ValueError` naming the
    entry that is wrong.
    """
    document = _read(path)
    check_prices(path, document["models"])
    entries: dict[str, dict[str, Any]] = {}
    for entry in [*document["models"], *extra]:
        for made in _expand(entry, entries):
            entries[made["name"]] = made
    models: dict[str, BedrockModel] = {}
    for name in sorted(entries):
        found = _make(entries[name], document["wire"], batches, today)
        models[found.model.id] = found
    return models


def _expand(given: Mapping[str, Any], known: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """The entry with all that it inherits, and one for each of its profiles."""
    entry = dict(given)
    name = str(entry.get("name", ""))
    like = str(entry.pop("like", ""))
    profiles: Mapping[str, Mapping[str, Any]] = entry.pop("profiles", None) or {}
    if like and like not in known:
        raise ValueError(f"model {name}: it is like {like!r}, which is not known")
    if name in known:
        inherited = dict(known[name])
    elif like and "model_id" not in entry:
        inherited = {**known[like], "model_id": known[like].get("model_id", like)}
    else:
        # The same model at another place: its price may differ.
        inherited = {field: value for field, value in known.get(like or base_of(name), {}).items() if field != "prices"}
    whole = {**inherited, **entry, "name": name}
    if prices := join_prices(name, inherited.get("prices", ()), entry.get("prices", ())):
        whole["prices"] = prices
    whole.setdefault("lineage", base_of(str(inherited.get("lineage") or whole.get("model_id") or name)))
    made = [whole]
    plain = {field: value for field, value in whole.items() if field not in {"prices", "model_id"}}
    for geography, own in profiles.items():
        made.append({**plain, **(own or {}), "name": f"{geography}.{name}"})
    return made


def base_of(model_id: str) -> str:
    """The model's own id behind that of an inference profile."""
    geography, dot, rest = model_id.partition(".")
    return rest if dot and geography in GEOGRAPHIES else model_id


def _make(
    entry: Mapping[str, Any], groups: Mapping[str, Mapping[str, Any]], batches: bool, today: datetime.date | None
) -> BedrockModel:
    plain = dict(entry)
    name = str(plain["name"])
    group = str(plain.pop("wire", DEFAULT_WIRE))
    if group not in groups:
        raise ValueError(f"model {name}: wire {group!r} is not one of {', '.join(groups)}")
    model_id, lineage = str(plain.pop("model_id", name)), str(plain.pop("lineage"))
    if not batches:
        plain["native"] = [feature for feature in plain.get("native", ()) if feature != "BATCH"]
    model = read_model(plain, PROVIDER, today)
    facts: dict[str, Any] = {key: _frozen(value) for key, value in groups[group].items()}
    features = frozenset(entry.feature for entry in model.features if supports(model, entry.feature))
    return BedrockModel(model, model_id, lineage, WireFacts(**facts), features)


def _frozen(value: Any) -> Any:
    return frozenset(cast("list[str]", value)) if isinstance(value, list) else value
