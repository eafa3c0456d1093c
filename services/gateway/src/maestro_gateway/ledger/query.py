"""A question for usage and its answer: groups, filters, pages. Pure."""

from __future__ import annotations

import base64
import binascii
import datetime
import hashlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, cast

import orjson
from google.protobuf.timestamp_pb2 import Timestamp

from maestro.usage.v1.usage_pb2 import QueryUsageRequest, QueryUsageResponse, UsageRow, UsageTotals
from maestro_gateway.ledger.tally import HOUR, Row, Sums, Tally
from maestro_sdk.errors import InvalidRequest
from maestro_sdk.prices import format_usd

EVERY = "-"
"""Stands for all tenants."""
TENANT = "tenant"
_LABEL = "label:"
_LONGEST_LABEL = 64
_PAGE = 1000
_MOST_GROUPS = 200_000
_NANO = 10**9
_END_OF_TIME = 253_402_300_800
"""Seconds of Unix time at which the year 10000 begins."""
_FIELDS: Mapping[str, Callable[[str, Row], str]] = {
    TENANT: lambda tenant, row: tenant,
    "key": lambda tenant, row: row.key,
    "persona": lambda tenant, row: row.persona,
    "skill": lambda tenant, row: row.skill,
    "operation": lambda tenant, row: row.operation,
    "provider": lambda tenant, row: row.provider,
    "model": lambda tenant, row: row.model,
    "adapter": lambda tenant, row: row.adapter,
    "hour": lambda tenant, row: _time(row.hour, 13),
    "day": lambda tenant, row: _time(row.hour, 10),
    "month": lambda tenant, row: _time(row.hour, 7),
}
_TIMES = frozenset(("hour", "day", "month"))
_NAMES = Row._fields[1:-1]

Group = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Page:
    """Where an answer goes on: behind the group `after`; its span is that of the first page."""

    start: int
    end: int
    after: Group | None


@dataclass(frozen=True, slots=True)
class Query:
    """A question that makes sense. Times are nanoseconds of Unix time; `after` is the last group of the page before."""

    words: tuple[str, ...]
    start: int
    end: int
    key_id: str
    persona: str
    provider: str
    model: str
    labels: frozenset[tuple[str, str]]
    size: int
    after: Group | None
    digest: str

    @classmethod
    def of(cls, request: QueryUsageRequest, now: int) -> Query:
        """Reads a request at the moment `now`. Raises `InvalidRequest` with the field."""
        words = tuple(_word(index, word) for index, word in enumerate(request.group_by))
        digest = _digest(request)
        start, end = _span(request, now)
        after = None
        if request.page_token:
            page = _page(request.page_token, digest, len(words))
            start, end, after = page.start, page.end, page.after
        return cls(
            words=words,
            start=start,
            end=end,
            key_id=request.key_id,
            persona=request.persona,
            provider=request.provider,
            model=request.model,
            labels=frozenset(_label(index, text) for index, text in enumerate(request.labels)),
            size=request.page_size or _PAGE,
            after=after,
            digest=digest,
        )

    def view(self, row: Row) -> Row | None:
        """What of a row matters to this question; None when it does not pass the filters."""
        wanted = (
            (not self.key_id or row.key == self.key_id)
            and (not self.persona or row.persona == self.persona)
            and (not self.provider or row.provider == self.provider)
            and (not self.model or self.model in (row.model, f"{row.provider}/{row.model}"))
            and self.labels.issubset(row.labels)
        )
        if not wanted:
            return None
        words = self.words
        hour = row.hour if not _TIMES.isdisjoint(words) else 0
        if "hour" not in words:
            hour -= hour % 24
        kept = (getattr(row, name) if name in words else "" for name in _NAMES)
        return Row._make((hour, *kept, tuple(pair for pair in row.labels if _LABEL + pair[0] in words)))

    def group(self, tenant: str, row: Row) -> Group:
        """The values of a row for the words of the question."""
        return tuple(
            field(tenant, row) if (field := _FIELDS.get(word)) is not None else _value(row, word) for word in self.words
        )


class Answer:
    """The sums of every group, gathered tenant by tenant."""

    def __init__(self, query: Query) -> None:
        self._query = query
        self._groups: dict[Group, Sums] = {}
        self._total = Sums()

    def add(self, tenant: str, tally: Tally) -> None:
        """Adds what a tenant used, in the query's view. Raises `InvalidRequest` when there are too many groups."""
        query, groups = self._query, self._groups
        for row, sums in tally.rows.items():
            self._total.add(sums)
            groups.setdefault(query.group(tenant, row), Sums()).add(sums)
        if len(groups) > _MOST_GROUPS:
            message = f"makes more than {_MOST_GROUPS} rows; ask for less time, or group by less"
            raise InvalidRequest.at("group_by", message)

    @property
    def rows(self) -> list[tuple[Group, Sums]]:
        """All groups with their sums, by the values of the groups; one for everything when nothing is grouped."""
        if not self._query.words:
            return [((), self._total)]
        # Of an estimate whose true end came nothing is left.
        return sorted((found for found in self._groups.items() if found[1]), key=lambda item: item[0])

    def message(self) -> QueryUsageResponse:
        """The page that was asked for."""
        query = self._query
        found = [(group, sums) for group, sums in self.rows if query.after is None or group > query.after]
        page = found[: query.size]
        return QueryUsageResponse(
            rows=[
                UsageRow(group=dict(zip(query.words, group, strict=True)), totals=totals_of(sums))
                for group, sums in page
            ],
            totals=totals_of(self._total),
            start_time=_timestamp(query.start),
            end_time=_timestamp(query.end),
            next_page_token=_token(query, page[-1][0]) if len(found) > len(page) else "",
        )


def totals_of(sums: Sums) -> UsageTotals:
    """Sums as the contract has them."""
    return UsageTotals(
        requests=sums.requests,
        failed_requests=sums.failed_requests,
        attempts=sums.attempts,
        input_tokens=sums.input_tokens,
        cache_read_tokens=sums.cache_read_tokens,
        cache_write_tokens=sums.cache_write_tokens,
        output_tokens=sums.output_tokens,
        reasoning_tokens=sums.reasoning_tokens,
        # Where nothing is left to be priced nothing was spent.
        cost_usd=format_usd(sums.nano_usd) if sums.priced or not sums.unpriced_requests else None,
        unpriced_requests=sums.unpriced_requests,
        estimated_requests=sums.estimated_requests,
        cached_requests=sums.cached_requests,
    )


def _word(index: int, word: str) -> str:
    name = word.removeprefix(_LABEL)
    if word in _FIELDS or (word != name and 0 < len(name) <= _LONGEST_LABEL):
        return word
    known = ", ".join(_FIELDS)
    raise InvalidRequest.at(
        f"group_by[{index}]", f"{word!r} is nothing to group by; there are {known}, and label:NAME for a label"
    )


def _label(index: int, text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not equals or not name:
        raise InvalidRequest.at(f"labels[{index}]", f"{text!r} is not of the form name=value")
    return name, value


def _span(request: QueryUsageRequest, now: int) -> tuple[int, int]:
    today = datetime.datetime.fromtimestamp(now // _NANO, datetime.UTC)
    month = today.replace(day=1, hour=0, minute=0, second=0, microsecond=0)
    end = _moment("end_time", request.end_time) if request.HasField("end_time") else now
    if request.HasField("start_time"):
        start = _moment("start_time", request.start_time)
    else:
        start = int(month.timestamp()) * _NANO
    if start >= end:
        which = "start_time" if request.HasField("start_time") else "end_time"
        says = "" if request.HasField("start_time") else "; without a start_time usage is that of the current month"
        raise InvalidRequest.at(which, f"the span ends before it begins{says}")
    return start, end


def _moment(field: str, moment: Timestamp) -> int:
    if not 0 <= moment.seconds < _END_OF_TIME or not 0 <= moment.nanos < _NANO:
        raise InvalidRequest.at(field, "is not a time from 1970 to 9999")
    return moment.seconds * _NANO + moment.nanos


def _timestamp(moment: int) -> Timestamp:
    return Timestamp(seconds=moment // _NANO, nanos=moment % _NANO)


def _time(hour: int, length: int) -> str:
    return datetime.datetime.fromtimestamp(hour * HOUR, datetime.UTC).isoformat()[:length]


def _value(row: Row, word: str) -> str:
    name = word.removeprefix(_LABEL)
    return next((value for key, value in row.labels if key == name), "")


def _digest(request: QueryUsageRequest) -> str:
    """Names the question, whichever of its pages is asked for."""
    question = QueryUsageRequest()
    question.CopyFrom(request)
    question.ClearField("page_size")
    question.ClearField("page_token")
    return hashlib.blake2b(question.SerializeToString(deterministic=True), digest_size=9).hexdigest()


def _token(query: Query, after: Iterable[str]) -> str:
    data = orjson.dumps([query.digest, query.start, query.end, *after])
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


def _page(token: str, digest: str, width: int) -> Page:
    try:
        found: Any = orjson.loads(base64.urlsafe_b64decode(token + "=" * (-len(token) % 4)))
    except (binascii.Error, ValueError):
        found = None
    if isinstance(found, list):
        entries = cast("list[Any]", found)
        if len(entries) == width + 3 and entries[0] == digest:
            _, start, end, *after = entries
            if type(start) is type(end) is int and 0 <= start < end and all(isinstance(value, str) for value in after):
                return Page(start, end, tuple(after))
    raise InvalidRequest.at("page_token", "is not one that an answer to this very question gave")
