"""What attempts used: sums, and estimates for attempts that were cut before their provider counted."""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from maestro.llm.v1.usage_pb2 import Cost, Usage
from maestro_sdk.adapter.fold import merge_usage
from maestro_sdk.mesh.table import Backend
from maestro_sdk.prices import cost_of, price_of

_COUNTS = tuple(field.name for field in Usage.DESCRIPTOR.fields if field.name != "estimated")
# Four characters a token is the usual rule of thumb.
_CHARACTERS = 4


def estimate_usage(told: Iterable[Usage], input_tokens: int, characters: int) -> Usage:
    """The usage of an attempt that was cut: what it told so far, and what was seen of its answer, in characters."""
    usage = Usage()
    for earlier in told:
        merge_usage(usage, earlier)
    usage.input_tokens = usage.input_tokens or input_tokens
    usage.output_tokens = max(usage.output_tokens, -(-characters // _CHARACTERS))
    usage.estimated = True
    return usage


def sum_usages(usages: Iterable[Usage | None]) -> Usage | None:
    """The tokens of several attempts; None when none of them used any."""
    found = [usage for usage in usages if usage is not None]
    if len(found) < 2:
        return found[0] if found else None
    total = Usage(estimated=any(usage.estimated for usage in found))
    for name in _COUNTS:
        if value := sum(getattr(usage, name) for usage in found):
            setattr(total, name, value)
    return total


def sum_costs(costs: Iterable[Cost | None]) -> Cost | None:
    """The cost of several attempts; None when that of one of them is unknown, or when there is none."""
    found = list(costs)
    known = [cost for cost in found if cost is not None]
    if not known or len(known) < len(found):
        return None
    if len(known) == 1:
        return known[0]
    return Cost(
        usd=format(sum((Decimal(cost.usd) for cost in known), Decimal(0)), "f"),
        price_date=max(cost.price_date for cost in known),
        estimated=any(cost.estimated for cost in known),
    )


def cost_at(backend: Backend, usage: Usage) -> Cost | None:
    """What `usage` costs at a backend; None when its price is unknown."""
    price = price_of(backend.message.model)
    return cost_of(usage, price) if price is not None else None
