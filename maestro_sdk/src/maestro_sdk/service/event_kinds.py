"""The kinds of events that there are, and which of them are asked for."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from maestro.event.v1.event_pb2 import Event

KINDS = tuple(field.name.replace("_", ".", 1) for field in Event.DESCRIPTOR.oneofs_by_name["payload"].fields)
"""All kinds, as "request.completed"."""
FAMILIES = frozenset(f"{kind.partition('.')[0]}.*" for kind in KINDS)
"""All families of kinds, as "request.*"."""
DUPLICATE_WINDOW = 600.0
"""Seconds in which the stream of events knows an event again by its id."""


def unknown_kinds(kinds: Iterable[str]) -> Iterator[tuple[int, str]]:
    """The place of each entry that is neither a kind nor a family, and what is wrong with it.

    Nothing would ever come for it, and nobody would know why; and what NATS takes for a wildcard is among them.
    """
    for index, kind in enumerate(kinds):
        if kind not in KINDS and kind not in FAMILIES:
            yield index, f"is no kind of event; there are {', '.join(KINDS)}, and NAME.*"


def belongs(event: Event, job: str) -> bool:
    """Whether an event is about a job, or about a request that is an item of it."""
    if event.subject == f"job/{job}":
        return True
    field = event.WhichOneof("payload")
    return field is not None and getattr(getattr(event, field), "job_id", "") == job
