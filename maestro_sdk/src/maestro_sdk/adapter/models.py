"""Facts about models as data: `models.yaml` of an adapter becomes `Model` messages, and prices become costs.

models:
  - name: gpt-6.2-sol
    family: gpt-6
    context_window: 400000
    max_output_tokens: 128000
    native: [CHAT, STREAMING, SYSTEM_PROMPT, TOOLS]
    polyfilled: [JSON_SCHEMA]
    retires: 2027-01-14
    tags: [fast]
    prices:                      # US dollars per million tokens; the latest entry that has begun holds
      - {from: 2026-06-01, input: "1.25", cache_read: "0.125", output: "10.00"}
"""

from __future__ import annotations

import datetime
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from maestro.llm.v1.model_pb2 import Feature, FeatureSupport, Model, Support
from maestro.llm.v1.usage_pb2 import Price
from maestro_sdk.prices import cost_of, format_usd, nano_usd

__all__ = [
    "UNKNOWN",
    "cost_of",
    "format_usd",
    "is_unknown",
    "load_entries",
    "load_models",
    "nano_usd",
    "read_model",
    "support_of",
    "supports",
    "warn_unknown",
]

_FIELDS = frozenset(
    (
        *("name", "family", "description", "context_window", "max_output_tokens"),
        *("native", "polyfilled", "retires", "tags", "prices"),
    )
)
_PRICE_FIELDS = (
    *("input", "output", "cache_read", "cache_write_5m", "cache_write_1h", "reasoning"),
    *("minimum_charge", "input_character", "batch_factor"),
)
UNKNOWN = "unknown"
"""The tag of a model of which nothing is known but its name: it gets the least features and no price."""
_LEAST = ("CHAT", "STREAMING", "SYSTEM_PROMPT")
_AMOUNT = re.compile(r"[0-9]+(\.[0-9]+)?")


def load_models(path: Path, provider: str, today: datetime.date | None = None) -> list[Model]:
    """The models of a `models.yaml`, ordered by id. Raises `ValueError` naming the entry that is wrong."""
    document = _document(path)
    entries: Sequence[Mapping[str, Any]] = document["models"]
    return sorted((read_model(entry, provider, today) for entry in entries), key=lambda model: model.id)


def load_entries(
    path: Path, default_wire: str, extra: Sequence[Mapping[str, Any]] = ()
) -> list[tuple[Mapping[str, Any], Mapping[str, Any]]]:
    """The entries of a `models.yaml` for `read_model`, ordered by name, each with what it accepts on the wire.

    That is one of the file's groups under `wire`: the one that the entry's own `wire` names, else `default_wire`. An
    entry of `extra` adds a model, or changes the fields of the one with its name. Raises `ValueError` for an unknown
    group.
    """
    document = _document(path)
    groups: Mapping[str, Mapping[str, Any]] = document["wire"]
    entries: dict[str, dict[str, Any]] = {str(entry["name"]): dict(entry) for entry in document["models"]}
    for entry in extra:
        name = entry.get("name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"model {entry!r}: unknown or missing fields: name")
        for field in ("tags", "native", "polyfilled", "prices"):
            if not isinstance(entry.get(field, ()), list | tuple):
                raise ValueError(f"model {name}: {field} is not a list")
        entries.setdefault(name, {}).update(entry)
    found: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
    for name in sorted(entries):
        group = str(entries[name].pop("wire", default_wire))
        if group not in groups:
            raise ValueError(f"model {name}: wire {group!r} is not one of {', '.join(groups)}")
        found.append((entries[name], groups[group]))
    return found


def _document(path: Path) -> Any:
    # libyaml's loader, where it is there, is eight times as fast: adapters read their facts when they start.
    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    return yaml.load(path.read_text(encoding="utf-8"), Loader=loader)  # noqa: S506 - both loaders are the safe ones


def read_model(entry: Mapping[str, Any], provider: str, today: datetime.date | None = None) -> Model:
    """One entry as a message; one that tells no features gets the least of them and the tag `UNKNOWN`.

    Raises `ValueError` for unknown fields, features or malformed prices.
    """
    name = str(entry.get("name", ""))
    unknown = set(entry) - _FIELDS
    if not name or unknown:
        strange = ", ".join(sorted(unknown)) or "name"
        raise ValueError(f"model {name or repr(entry)}: unknown or missing fields: {strange}")
    model = Model(
        id=f"{provider}/{name}",
        provider=provider,
        name=name,
        family=str(entry.get("family", "")),
        retires=str(entry.get("retires", "")),
        tags=[str(tag) for tag in entry.get("tags", ())],
        description=str(entry.get("description", "")),
    )
    for field in ("context_window", "max_output_tokens"):
        if field in entry:
            setattr(model, field, _tokens(name, field, entry[field]))
    if not entry.get("native") and not entry.get("polyfilled"):
        entry = {**entry, "native": _LEAST}
        model.tags.append(UNKNOWN)
    for field, support in (("native", Support.SUPPORT_NATIVE), ("polyfilled", Support.SUPPORT_POLYFILLED)):
        for feature in entry.get(field, ()):
            try:
                value = Feature.Value(f"FEATURE_{feature}")
            except ValueError as error:
                raise ValueError(f"model {name}: unknown feature {feature!r}") from error
            model.features.append(FeatureSupport(feature=value, support=support))
    price = _price_in_force(name, entry.get("prices", ()), today or datetime.datetime.now(datetime.UTC).date())
    if price is not None:
        model.price.CopyFrom(price)
    return model


def support_of(model: Model, feature: Feature.ValueType) -> Support.ValueType:
    """How `model` meets `feature`; NONE when it does not say."""
    for entry in model.features:
        if entry.feature == feature:
            return entry.support
    return Support.SUPPORT_NONE


def supports(model: Model, feature: Feature.ValueType) -> bool:
    """Whether `model` meets `feature` at all."""
    return support_of(model, feature) in (Support.SUPPORT_NATIVE, Support.SUPPORT_POLYFILLED)


def is_unknown(model: Model) -> bool:
    """Whether nothing is known of `model` but its name."""
    return UNKNOWN in model.tags


def warn_unknown(model: Model) -> dict[str, str]:
    """The fields of the warning that an answer of such a model carries."""
    message = f"nothing is known of {model.id}: it gets the least features, and its cost is unknown"
    return {"code": "unknown_model", "message": message, "field": "model"}


def _price_in_force(name: str, entries: Sequence[Mapping[str, Any]], today: datetime.date) -> Price | None:
    best: Price | None = None
    for entry in entries:
        if not isinstance(entry, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - it comes from a file
            raise ValueError(f"model {name}: a price needs from, input and output, and is {entry!r}")
        unknown = set(entry) - {"from", *_PRICE_FIELDS}
        if unknown or not {"from", "input", "output"} <= set(entry):
            strange = ", ".join(sorted(unknown)) or "none"
            raise ValueError(f"model {name}: a price needs from, input and output; unknown: {strange}")
        start = str(entry["from"])
        try:
            begins = datetime.date.fromisoformat(start)
        except ValueError as error:
            raise ValueError(f"model {name}: a price begins {start!r}, which is no date YYYY-MM-DD") from error
        fields = {field: _amount(name, field, entry[field]) for field in _PRICE_FIELDS if field in entry}
        if begins <= today and (best is None or start > best.effective_date):
            best = Price(effective_date=start, **fields)
    return best


def _tokens(name: str, field: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise ValueError(f"model {name}: {field} is {value!r}, not a number of tokens")
    return value


def _amount(name: str, field: str, value: Any) -> str:
    text = str(value)
    if not _AMOUNT.fullmatch(text):
        raise ValueError(f"model {name}: {field} is {text!r}, not an amount such as 0.125")
    return text
