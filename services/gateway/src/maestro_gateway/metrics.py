"""What the gateway measures: the decisions of its requests. Without an endpoint for metrics nothing is counted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping

from maestro.event.v1.event_pb2 import Event, RequestCompleted, RequestFailed
from maestro_sdk.service.telemetry import is_exporting, observe

Publish = Callable[[Event], None]


def count_decisions(publish: Publish) -> Publish:
    """`publish`, which also counts the decisions that it is given, where metrics are exported."""
    return Decisions(publish).take if is_exporting() else publish


class Decisions:
    """Decisions by route, strategy, backend that answered, and outcome; read from the events that end requests."""

    def __init__(self, publish: Publish) -> None:
        self._publish = publish
        self._counts: Counter[tuple[str, str, str, str]] = Counter()
        observe("maestro.decisions", self.read, "Requests by route, strategy, backend and outcome", total=True)

    def take(self, event: Event) -> None:
        """Counts an event and hands it on."""
        match event.WhichOneof("payload"):
            case "request_completed":
                self._count(event.request_completed, "cached" if event.request_completed.cached else "completed")
            case "request_failed":
                self._count(event.request_failed, "failed")
            case _:
                pass
        self._publish(event)

    def read(self) -> Iterator[tuple[float, Mapping[str, str]]]:
        """The counts so far."""
        for (route, strategy, backend, outcome), count in list(self._counts.items()):
            yield count, {"route": route, "strategy": strategy, "backend": backend, "outcome": outcome}

    def _count(self, payload: RequestCompleted | RequestFailed, outcome: str) -> None:
        decision = payload.decision
        backend = f"{payload.adapter}:{payload.provider}/{payload.model}" if payload.adapter else "none"
        self._counts[decision.route or payload.route or "none", decision.strategy or "none", backend, outcome] += 1
