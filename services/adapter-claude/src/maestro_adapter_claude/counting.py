"""Counting the tokens of a request: `POST /v1/messages/count_tokens` takes what an answer takes, without its limits."""

from __future__ import annotations

from typing import Any

import orjson

from maestro_adapter_claude.request import Outgoing
from maestro_sdk.errors import UpstreamError

_NOT_COUNTED = frozenset(
    (
        *("max_tokens", "stop_sequences", "stream", "metadata", "service_tier", "container", "inference_geo"),
        "diagnostics",
    )
)
"""Fields of a message that the count refuses: none of them changes how many tokens go in."""


def to_count(outgoing: Outgoing) -> dict[str, Any]:
    """The body that asks how many tokens a request has."""
    return {name: value for name, value in outgoing.body.items() if name not in _NOT_COUNTED}


def read_count(body: bytes) -> int:
    """The tokens that the provider counted. Raises `UpstreamError` when it does not tell."""
    try:
        return int(orjson.loads(body)["input_tokens"])
    except (LookupError, TypeError, ValueError) as error:
        raise UpstreamError(f"the provider's count can't be read: {type(error).__name__}: {error}") from error
