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
    prices:                      # US dollars per million tokens; each holds from its day on (UTC) until the next begins
      - {from: 2026-06-01, input: "1.25", cache_read: "0.125", output: "10.00"}
      - {from: 2027-01-01, input: "1.00", cache_read: "0.10", output: "8.00"}   # announced
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
    "check_prices",
    "cost_of",
    "format_usd",
    "is_unknown",
    "join_prices",
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
    check_prices(path, entries)
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
    check_prices(path, document["models"])
    groups: Mapping[str, Mapping[str, Any]] = document["wire"]
    entries: dict[str, dict[str, Any]] = {str(entry["name"]): dict(entry) for entry in document["models"]}
    for entry in extra:
        name = entry.get("name")
        if not isinstance(name, str) or not name:
            raise ValueError(f"model {entry!r}: unknown or missing fields: name")
        for field in ("tags", "native", "polyfilled", "prices"):
            if not isinstance(entry.get(field, ()), list | tuple):
                raise ValueError(f"model {name}: {field} is not a list")
        known = entries.setdefault(name, {})
        prices = join_prices(name, known.get("prices", ()), entry.get("prices", ()))
        known.update(entry)
        if prices:
            known["prices"] = prices
    found: list[tuple[Mapping[str, Any], Mapping[str, Any]]] = []
    for name in sorted(entries):
        group = str(entries[name].pop("wire", default_wire))
        if group not in groups:
            raise ValueError(f"model {name}: wire {group!r} is not one of {', '.join(groups)}")
        found.append((entries[name], groups[group]))
    return found


def check_prices(path: Path, entries: Sequence[Mapping[str, Any]]) -> None:
    """Raises `ValueError` with the line in the file `path` of the first price that is wrong."""
    for entry in entries:
        name = str(entry.get("name", ""))
        try:
            _read_prices(name, entry.get("prices", ()))
        except ValueError as error:
            raise ValueError(f"{path}:{_line_of(path, name, str(error))}: {error}") from error


def _line_of(path: Path, name: str, message: str) -> int:
    """The line of a model in its file, or of the one of its prices that a message names; 1 when it is not found."""
    root: Any = yaml.compose(path.read_text(encoding="utf-8"), yaml.SafeLoader)
    line = 1
    for entry in _value_of(root, "models").value:
        if (found := _value_of(entry, "name")) is not None and found.value == name:
            line = entry.start_mark.line + 1
            prices, index = _value_of(entry, "prices"), re.search(r": prices\[([0-9]+)\]:", message)
            if prices is not None and index is not None:
                line = prices.value[int(index[1])].start_mark.line + 1
    return line


def _value_of(mapping: Any, key: str) -> Any:
    return next((value for name, value in mapping.value if name.value == key), None)


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
    day = (today or datetime.datetime.now(datetime.UTC).date()).isoformat()
    for price in _read_prices(name, entry.get("prices", ())):
        if price.effective_date > day:
            model.announced_prices.append(price)
        else:
            model.price.CopyFrom(price)
    return model


def join_prices(
    name: str, known: Sequence[Mapping[str, Any]], own: Sequence[Mapping[str, Any]]
) -> list[Mapping[str, Any]]:
    """An operator's own prices of a model, behind those known ones that begin before the first of them.

    So what was called before they begin keeps its price, and no later known price takes their place. Raises
    `ValueError` naming the one of `own` that is wrong.
    """
    _read_prices(name, own)
    if not own:
        return [*known]
    begin = min(str(price["from"]) for price in own)
    return [*(price for price in known if str(price["from"]) < begin), *own]


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


def _read_prices(name: str, entries: Sequence[Mapping[str, Any]]) -> list[Price]:
    """The prices of a model, by date."""
    found: dict[str, Price] = {}
    for index, entry in enumerate(entries):
        where = f"model {name}: prices[{index}]"
        if not isinstance(entry, Mapping):  # pyright: ignore[reportUnnecessaryIsInstance] - it comes from a file
            raise ValueError(f"{where}: a price needs from, input and output, and is {entry!r}")
        unknown = set(entry) - {"from", *_PRICE_FIELDS}
        if unknown or not {"from", "input", "output"} <= set(entry):
            strange = ", ".join(sorted(unknown)) or "none"
            raise ValueError(f"{where}: a price needs from, input and output; unknown: {strange}")
        start = str(entry["from"])
        try:
            day = datetime.date.fromisoformat(start)
        except ValueError as error:
            raise ValueError(f"{where}: a price begins {start!r}, which is no date YYYY-MM-DD") from error
        if day.isoformat() != start:
            raise ValueError(f"{where}: a price begins {start!r}, which is no date YYYY-MM-DD")
        if start in found:
            raise ValueError(f"{where}: another price begins on {start}, too; only one can hold")
        fields = {field: _amount(where, field, entry[field]) for field in _PRICE_FIELDS if field in entry}
        found[start] = Price(effective_date=start, **fields)
    return [found[start] for start in sorted(found)]


def _tokens(name: str, field: str, value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise ValueError(f"model {name}: {field} is {value!r}, not a number of tokens")
    return value


def _amount(where: str, field: str, value: Any) -> str:
    text = str(value)
    if not _AMOUNT.fullmatch(text):
        raise ValueError(f"{where}: {field} is {text!r}, not an amount such as 0.125")
    return text
