"""Sums of what items of a job used. Pure; money is added in exact decimal arithmetic."""

from __future__ import annotations

from decimal import Decimal

from maestro.job.v1 import job_pb2 as pb
from maestro.usage.v1.usage_pb2 import UsageTotals
from maestro_sdk.mesh.trail import Trail

_COUNTS = tuple(field.name for field in UsageTotals.DESCRIPTOR.fields if field.name != "cost_usd")
_TOKENS = ("input_tokens", "cache_read_tokens", "output_tokens", "reasoning_tokens")


def totals_of(trail: Trail | None, *, failed: bool) -> UsageTotals:
    """What one run of an item adds to the sums; nothing when it reached no backend."""
    totals = UsageTotals()
    if trail is None or not trail.attempts:
        return totals
    totals.requests, totals.failed_requests, totals.attempts = 1, int(failed), len(trail.attempts)
    usage, cost = trail.usage, trail.cost
    if usage is not None:
        for name in _TOKENS:
            setattr(totals, name, getattr(usage, name))
        totals.cache_write_tokens = usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
        totals.estimated_requests = int(usage.estimated)
        if cost is None:
            totals.unpriced_requests = 1
    if cost is not None:
        totals.cost_usd = cost.usd
    return totals


def add(totals: UsageTotals, more: UsageTotals) -> None:
    """Adds `more` to `totals`."""
    for name in _COUNTS:
        if value := getattr(more, name):
            setattr(totals, name, getattr(totals, name) + value)
    if more.HasField("cost_usd"):
        known = Decimal(totals.cost_usd) if totals.HasField("cost_usd") else Decimal(0)
        totals.cost_usd = format(known + Decimal(more.cost_usd), "f")


def count(progress: pb.JobProgress, state: str) -> None:
    """Counts an item that ended so; `state` is the name of a `JobItemState`."""
    match state:
        case "JOB_ITEM_STATE_SUCCEEDED":
            progress.succeeded += 1
        case "JOB_ITEM_STATE_FAILED":
            progress.failed += 1
        case "JOB_ITEM_STATE_CANCELLED":
            progress.cancelled += 1
        case _:
            raise ValueError(f"no item ends as {state}")


def split(progress: pb.JobProgress, under_way: int) -> None:
    """Divides the items without a result into those under way and those that wait."""
    left = progress.total - progress.succeeded - progress.failed - progress.cancelled
    progress.running = min(under_way, left)
    progress.queued = left - progress.running
