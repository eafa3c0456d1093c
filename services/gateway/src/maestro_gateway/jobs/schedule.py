"""Which jobs get the places of a gateway that are free. Pure.

Tenants get the same share, whatever they have queued; among the jobs of a tenant the higher priority goes first, and
jobs of the same priority take turns.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Queue:
    """A job that has items waiting, as far as is known. `running` are its items under way in this gateway."""

    job_id: str
    tenant: str
    priority: int
    created: float
    running: int
    most: int


def allot(queues: Iterable[Queue], free: int, running: Mapping[str, int], per_tenant: int) -> dict[str, int]:
    """How many of the `free` places each job gets; `running` are the places that each tenant has now."""
    granted: Counter[str] = Counter()
    had = Counter(running)
    by_tenant: dict[str, list[Queue]] = {}
    for queue in queues:
        by_tenant.setdefault(queue.tenant, []).append(queue)
    while free > 0:
        # The tenant with the fewest places; of several, the one whose first job waits longest.
        turns = [
            (had[tenant], min(queue.created for queue in open_), tenant, open_)
            for tenant, theirs in by_tenant.items()
            if had[tenant] < per_tenant and (open_ := [each for each in theirs if _has_room(each, granted)])
        ]
        if not turns:
            break
        _, _, tenant, open_ = min(turns, key=lambda turn: turn[:3])
        highest = max(queue.priority for queue in open_)
        chosen = min(
            (queue for queue in open_ if queue.priority == highest),
            key=lambda queue: (queue.running + granted[queue.job_id], queue.created, queue.job_id),
        )
        granted[chosen.job_id] += 1
        had[tenant] += 1
        free -= 1
    return dict(granted)


def admitted_jobs(jobs: Sequence[tuple[str, bool, int, float]], most: int | None) -> set[str]:
    """Which of a tenant's unfinished jobs may be under way when `most` may: those that are first, then by their turn.

    A job is (identifier, whether it is under way, priority, time of creation).
    """
    ordered = sorted(jobs, key=lambda job: (not job[1], -job[2], job[3], job[0]))
    return {job_id for job_id, *_ in ordered[:most]}


def _has_room(queue: Queue, granted: Mapping[str, int]) -> bool:
    return queue.running + granted.get(queue.job_id, 0) < queue.most
