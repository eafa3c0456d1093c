"""Prices become costs, by exact decimal arithmetic: for adapters, which tell what a call cost, and for accounts."""

from __future__ import annotations

import time
from decimal import Decimal

from maestro.llm.v1.model_pb2 import Model
from maestro.llm.v1.usage_pb2 import Cost, Price, Usage

_NANO = Decimal(10) ** 9


def price_of(model: Model, now: float | None = None) -> Price | None:
    """The price of a model that is in force at `now`, in Unix time, which is left out for now; None when unknown.

    Prices begin at midnight UTC of their day. One that was announced when the model was read may have begun since.
    """
    found = model.price if model.HasField("price") else None
    if model.announced_prices:
        today = time.strftime("%Y-%m-%d", time.gmtime(now))
        for price in model.announced_prices:
            if price.effective_date <= today and (found is None or price.effective_date > found.effective_date):
                found = price
    return found


def cost_of(usage: Usage, price: Price, *, batch: bool = False) -> Cost:
    """What `usage` costs under `price`: exact decimal arithmetic, rounded half up to the nano-dollar at the end.

    `batch` says that the provider's batch API answered, for which prices may have a factor.
    """
    nano = nano_usd(usage, price, batch=batch)
    return Cost(usd=format_usd(nano), price_date=price.effective_date, estimated=usage.estimated)


def nano_usd(usage: Usage, price: Price, *, batch: bool = False) -> int:
    """The cost of `usage` in nano-dollars."""
    rate_in, rate_out = Decimal(price.input), Decimal(price.output)
    cache_5m = Decimal(price.cache_write_5m) if price.cache_write_5m else rate_in
    cached = usage.cache_read_tokens + usage.cache_write_5m_tokens + usage.cache_write_1h_tokens
    total = (
        max(0, usage.input_tokens - cached) * rate_in
        + usage.cache_read_tokens * (Decimal(price.cache_read) if price.cache_read else rate_in)
        + usage.cache_write_5m_tokens * cache_5m
        + usage.cache_write_1h_tokens * (Decimal(price.cache_write_1h) if price.cache_write_1h else cache_5m)
        + max(0, usage.output_tokens - usage.reasoning_tokens) * rate_out
        + usage.reasoning_tokens * (Decimal(price.reasoning) if price.reasoning else rate_out)
    )
    if price.input_character:
        total += usage.input_characters * Decimal(price.input_character)
    if batch and price.batch_factor:
        total *= Decimal(price.batch_factor)
    # Dollars per million tokens: one token at $1 costs a thousand nano-dollars.
    nano = (total * 1000).to_integral_value(rounding="ROUND_HALF_UP")
    if price.minimum_charge:
        nano = max(nano, Decimal(price.minimum_charge) * _NANO)
    return int(nano)


def format_usd(nano: int) -> str:
    """Nano-dollars as decimal text with at least six places: 54390000 becomes "0.054390"."""
    whole, rest = divmod(nano, 10**9)
    digits = f"{rest:09d}"
    return f"{whole}.{digits[:6]}{digits[6:].rstrip('0')}"
