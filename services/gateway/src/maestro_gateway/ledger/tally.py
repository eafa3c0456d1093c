"""What requests used and cost, as rows of sums: pure values.

Cost and tokens of every attempt go to the backend that charged them; a request counts once, at the backend that
answered it or that was tried last.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from decimal import Decimal
from typing import NamedTuple, TypeAlias

from maestro.event.v1.event_pb2 import AttemptUsage, Event, RequestCompleted, RequestFailed, RequestOperation
from maestro.llm.v1.usage_pb2 import Cost, Usage

HOUR = 3600
DAY = 86400
_NANO = Decimal(10) ** 9
_CHAT = RequestOperation.REQUEST_OPERATION_CHAT


class Row(NamedTuple):
    """What a row of sums stands for. `hour` counts from 1970, `labels` are (name, value), by name."""

    hour: int
    key: str
    persona: str
    skill: str
    operation: str
    provider: str
    model: str
    adapter: str
    labels: tuple[tuple[str, str], ...]


@dataclass(slots=True)
class Sums:
    """Sums of a row. Money is in nano-dollars; `priced` counts the attempts whose cost is in it."""

    requests: int = 0
    failed_requests: int = 0
    attempts: int = 0
    input_tokens: int = 0
    cache_read_tokens: int = 0
    cache_write_tokens: int = 0
    output_tokens: int = 0
    reasoning_tokens: int = 0
    nano_usd: int = 0
    priced: int = 0
    unpriced_requests: int = 0
    estimated_requests: int = 0
    cached_requests: int = 0

    def add(self, other: Sums) -> None:
        """Adds another one's sums."""
        for name in FIELDS:
            if value := getattr(other, name):
                setattr(self, name, getattr(self, name) + value)

    def subtract(self, other: Sums) -> None:
        """Takes away what another one added."""
        for name in FIELDS:
            if value := getattr(other, name):
                setattr(self, name, getattr(self, name) - value)

    def __bool__(self) -> bool:
        """Whether anything is left of what was added."""
        return any(getattr(self, name) for name in FIELDS)

    @property
    def tokens(self) -> int:
        """Tokens read and produced."""
        return self.input_tokens + self.output_tokens


FIELDS = tuple(Sums.__slots__)


View: TypeAlias = Callable[[Row], Row | None]
"""The row that the sums of a row go to; None: to none."""


class Tally:
    """Sums by row."""

    __slots__ = ("_view", "rows")

    def __init__(self, view: View | None = None) -> None:
        """`view` says where the sums of a row go to; left out, to that row."""
        self._view = view
        self.rows: dict[Row, Sums] = {}

    def count(self, event: Event) -> None:
        """Adds the end of a request; one that was refused used nothing."""
        match event.WhichOneof("payload"):
            case "request_completed":
                self._count(event, event.request_completed, failed=False, cached=event.request_completed.cached)
            case "request_failed":
                self._count(event, event.request_failed, failed=True, cached=False)
            case _:
                pass  # the ledger also holds what was refused, which is of no interest to sums

    def uncount(self, event: Event) -> None:
        """Takes back what `count` added: an estimate, since the true end of its request came."""
        once = Tally()
        once.count(event)
        for row, sums in once.rows.items():
            self.at(row).subtract(sums)

    def at(self, row: Row) -> Sums:
        """The sums to which those of a row are to be added."""
        seen = row if self._view is None else self._view(row)
        if seen is None:
            return Sums()
        sums = self.rows.get(seen)
        if sums is None:
            sums = self.rows[seen] = Sums()
        return sums

    def total(self) -> tuple[int, int]:
        """Nano-dollars and tokens of all rows."""
        return sum(sums.nano_usd for sums in self.rows.values()), sum(sums.tokens for sums in self.rows.values())

    def _count(self, event: Event, end: RequestCompleted | RequestFailed, *, failed: bool, cached: bool) -> None:
        hour = event.time.seconds // HOUR
        caller = end.key_id, end.persona, end.skill, _operation(end.operation)
        labels = tuple(sorted(end.metadata.items())) if end.metadata else ()
        unpriced = estimated = False
        for attempt in end.attempt_usages:
            unpriced |= attempt.HasField("usage") and not attempt.HasField("cost")
            estimated |= attempt.usage.estimated
            row = Row(hour, *caller, attempt.provider, attempt.model, attempt.adapter, labels)
            _add_attempt(self.at(row), attempt)
        if not end.attempts and not end.attempt_usages and not cached:
            return  # it reached no backend
        # Who tells the end of another gateway's request knows its attempts only.
        told = end if end.provider or not end.attempt_usages else end.attempt_usages[-1]
        sums = self.at(Row(hour, *caller, told.provider, told.model, told.adapter, labels))
        if cached:
            sums.cached_requests += 1
            return
        sums.requests += 1
        sums.failed_requests += failed
        sums.unpriced_requests += unpriced
        sums.estimated_requests += estimated


def nano_of(cost: Cost) -> int:
    """A cost in nano-dollars, rounded half up where a provider tells more places."""
    return int((Decimal(cost.usd) * _NANO).to_integral_value(rounding="ROUND_HALF_UP"))


def _add_attempt(sums: Sums, attempt: AttemptUsage) -> None:
    sums.attempts += 1
    if attempt.HasField("usage"):
        _add_usage(sums, attempt.usage)
    if attempt.HasField("cost"):
        sums.nano_usd += nano_of(attempt.cost)
        sums.priced += 1


def _add_usage(sums: Sums, usage: Usage) -> None:
    sums.input_tokens += usage.input_tokens
    sums.cache_read_tokens += usage.cache_read_tokens
    sums.cache_write_tokens += usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    sums.output_tokens += usage.output_tokens
    sums.reasoning_tokens += usage.reasoning_tokens


def _operation(operation: RequestOperation.ValueType) -> str:
    return "chat" if operation == _CHAT else "embed"
