"""Ends of requests for tests of the ledger, and what they cost in all."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from maestro.event.v1.event_pb2 import AttemptUsage, Event, RequestCompleted, RequestFailed, RequestOperation
from maestro.llm.v1.usage_pb2 import Cost, Usage
from maestro_sdk.prices import format_usd
from maestro_sdk.service.events import new_event

CHAT = RequestOperation.REQUEST_OPERATION_CHAT


def attempt(nano: int | None = 1000, tokens: int = 10, model: str = "m-1") -> AttemptUsage:
    """One attempt that read `tokens` and wrote one; without `nano` its cost is unknown."""
    return AttemptUsage(
        attempt=1,
        adapter="acme",
        provider="acme",
        model=model,
        usage=Usage(input_tokens=tokens, output_tokens=1),
        cost=None if nano is None else Cost(usd=format_usd(nano), price_date="2026-01-01"),
    )


def completed(
    *attempts: AttemptUsage, tenant: str = "acme", at: int | None = None, key: str = "k1", **labels: str
) -> Event:
    """The end of a good request at `at`, in nanoseconds of Unix time; left out it is now."""
    used = attempts or (attempt(),)
    last = used[-1]
    payload = RequestCompleted(
        request_id="r",
        operation=CHAT,
        attempts=len(used),
        attempt_usages=used,
        key_id=key,
        metadata=labels,
        provider=last.provider,
        model=last.model,
        adapter=last.adapter,
    )
    return _moved(new_event(payload, "request/r", tenant=tenant), at)


def failed(*attempts: AttemptUsage, tenant: str = "acme", at: int | None = None) -> Event:
    """The end of a request that failed; without attempts it reached no backend."""
    payload = RequestFailed(request_id="r", operation=CHAT, attempts=len(attempts), attempt_usages=attempts)
    if attempts:
        last = attempts[-1]
        payload.provider, payload.model, payload.adapter = last.provider, last.model, last.adapter
    return _moved(new_event(payload, "request/r", tenant=tenant), at)


def estimate(end: Event, ago: int, *attempts: AttemptUsage) -> Event:
    """What is told of a request, begun `ago` nanoseconds before its `end`, by whoever finds that its gateway died."""
    told = end.request_completed if end.HasField("request_completed") else end.request_failed
    told.latency.FromNanoseconds(ago)
    event = failed(*attempts, tenant=end.tenant, at=end.time.ToNanoseconds() - ago)
    event.id, event.request_failed.estimate_of = f"of-{end.id}", end.id
    return event


@dataclasses.dataclass
class Meter:
    """What a provider itself would charge."""

    nano: int = 0
    tokens: int = 0

    def note(self, event: Event) -> Event:
        """Counts all attempts of an event once."""
        end = event.request_completed if event.HasField("request_completed") else event.request_failed
        for used in end.attempt_usages:
            self.nano += round(float(used.cost.usd or 0) * 1e9)
            self.tokens += used.usage.input_tokens + used.usage.output_tokens
        return event

    @property
    def total(self) -> tuple[int, int]:
        """Nano-dollars and tokens."""
        return self.nano, self.tokens


def metered(events: Iterable[Event]) -> tuple[int, int]:
    """Nano-dollars and tokens of events."""
    meter = Meter()
    for event in events:
        meter.note(event)
    return meter.total


def _moved(event: Event, at: int | None) -> Event:
    if at is not None:
        event.time.FromNanoseconds(at)
    return event
