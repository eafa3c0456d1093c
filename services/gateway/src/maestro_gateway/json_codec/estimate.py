"""Estimates of what a chat would cost, as REST has them."""

from __future__ import annotations

from collections.abc import Iterable

import orjson

from maestro.llm.v1.chat_pb2 import Warning  # noqa: A004 - the contract's name
from maestro.usage.v1.usage_pb2 import EstimateCostResponse


def encode_estimates(answer: EstimateCostResponse, warnings: Iterable[Warning]) -> bytes:
    """The estimates, in the order in which backends would be tried; what is unknown is null. Dollars are text."""
    estimates = [
        {
            "adapter": each.adapter,
            "provider": each.provider,
            "model": each.model,
            "input_tokens": each.input_tokens,
            "estimated": each.estimated,
            "max_output_tokens": each.max_output_tokens if each.HasField("max_output_tokens") else None,
            "minimum_usd": each.minimum.usd if each.HasField("minimum") else None,
            "maximum_usd": each.maximum.usd if each.HasField("maximum") else None,
        }
        for each in answer.estimates
    ]
    told = [{"code": each.code, "message": each.message, "field": each.field} for each in warnings]
    return orjson.dumps({"estimates": estimates, "warnings": told})
