"""Which counters of which budgets a request falls under, and whose spending each of them stands for. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from urllib.parse import quote, unquote

from maestro.event.v1.event_pb2 import Event
from maestro_sdk.service.budgets import BudgetConfig, label_of


@dataclass(frozen=True, slots=True)
class Period:
    """A calendar day or month, UTC: "2026-03-01" or "2026-03". Times are Unix time in seconds."""

    name: str
    start: float
    end: float


@dataclass(frozen=True, slots=True)
class Asker:
    """Who asks: `key_name` is the name of the key for people, `labels` are those of the request."""

    tenant: str
    key_id: str = ""
    key_name: str = ""
    persona: str = ""
    labels: Mapping[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Counter:
    """One count of a budget. `values` are those that it stands for, one for each name in `each` of the budget.

    `filters` names which requests the budget counts: when that changes it begins another count.
    """

    budget: str
    period: Period
    values: tuple[str, ...]
    filters: str = ""

    @property
    def name(self) -> str:
        """Its name in a store: "budget|period|value|…", then "=filters" where it has some."""
        filters = (f"={self.filters}",) if self.filters else ()
        return "|".join((self.budget, self.period.name, *(quote(value, safe="") for value in self.values), *filters))


def period_at(kind: str, now: float) -> Period:
    """The day or month of a moment in Unix time."""
    day = datetime.fromtimestamp(now, UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    if kind == "day":
        return Period(f"{day:%Y-%m-%d}", day.timestamp(), (day + timedelta(days=1)).timestamp())
    first = day.replace(day=1)
    after = (first + timedelta(days=32)).replace(day=1)
    return Period(f"{first:%Y-%m}", first.timestamp(), after.timestamp())


def counter_named(name: str, budgets: Mapping[str, BudgetConfig]) -> Counter | None:
    """The counter that a store calls so; None when no budget of that name, kind and filters is configured."""
    budget, period, *values = name.split("|")
    filters = values.pop()[1:] if values and values[-1].startswith("=") else ""
    config = budgets.get(budget)
    if config is None or filters != config.filters or len(values) != len(config.each):
        return None
    try:
        start = datetime.fromisoformat(period if config.period == "day" else f"{period}-01")
    except ValueError:
        return None
    found = period_at(config.period, start.replace(tzinfo=UTC).timestamp())
    return Counter(budget, found, tuple(unquote(value) for value in values), filters) if found.name == period else None


def may_hold(config: BudgetConfig, asker: Asker) -> bool:
    """Whether a budget holds for somebody, whatever the labels of the request are."""
    return (
        (not config.tenants or asker.tenant in config.tenants)
        and (not config.keys or asker.key_id in config.keys or asker.key_name in config.keys)
        and (not config.personas or asker.persona in config.personas)
    )


def counters_of(budgets: Mapping[str, BudgetConfig], asker: Asker, now: float) -> Iterator[Counter]:
    """The counters of those budgets that hold for a request; `budgets` are those that `may_hold`."""
    labels = asker.labels or {}
    for name, config in budgets.items():
        if all(labels.get(label) in allowed for label, allowed in config.labels.items()):
            values = tuple(_value(each, asker, labels) for each in config.each)
            yield Counter(name, period_at(config.period, now), values, config.filters)


def counters_of_end(budgets: Mapping[str, BudgetConfig], event: Event) -> Iterator[Counter]:
    """Those that the end of a request may concern, and perhaps others: names of keys are not looked at."""
    match event.WhichOneof("payload"):
        case "request_completed":
            end = event.request_completed
        case "request_failed":
            end = event.request_failed
        case _:
            return
    ended = event.time.ToNanoseconds()
    asker = Asker(event.tenant, end.key_id, "", end.persona, end.metadata)
    for name, config in budgets.items():
        if (
            (not config.tenants or asker.tenant in config.tenants)
            and (not config.personas or asker.persona in config.personas)
            and all(end.metadata.get(label) in allowed for label, allowed in config.labels.items())
        ):
            values = tuple(_value(each, asker, end.metadata) for each in config.each)
            for moment in (ended - end.latency.ToNanoseconds(), ended):
                yield Counter(name, period_at(config.period, moment / 1e9), values, config.filters)


def _value(each: str, asker: Asker, labels: Mapping[str, str]) -> str:
    match each:
        case "tenant":
            return asker.tenant
        case "key":
            return asker.key_id
        case "persona":
            return asker.persona
        case _:
            return labels.get(label_of(each), "")


def tenant_of(config: BudgetConfig, counter: Counter) -> str | None:
    """Whose a counter is alone; None when several tenants share it."""
    own = config.own
    return counter.values[config.each.index("tenant")] if own == "" else own


def is_shared(config: BudgetConfig) -> bool:
    """Whether counts of a budget may be those of several tenants; a key has one."""
    return config.own is None and "key" not in config.each


def stands_for(
    config: BudgetConfig, counter: Counter, key_ids: frozenset[str], key: str, persona: str, labels: Mapping[str, str]
) -> bool:
    """Whether a counter counts a request of one of its tenants; `key_ids` are those of the keys that are configured."""
    asker = Asker("", key, "", persona)
    return (
        (not config.keys or key in key_ids)
        and (not config.personas or persona in config.personas)
        and all(labels.get(label) in allowed for label, allowed in config.labels.items())
        and all(
            each == "tenant" or _value(each, asker, labels) == value
            for each, value in zip(config.each, counter.values, strict=True)
        )
    )
