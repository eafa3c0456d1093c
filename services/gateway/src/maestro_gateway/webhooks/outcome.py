"""What an answer of a receiver means, and when to try again: pure decisions."""

from __future__ import annotations

import email.utils
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from maestro_sdk.service.webhooks import WebhookConfig

_FACTOR = 4
_LONGEST_ASKED = 86400.0
"""Seconds that a receiver may ask to be left alone for."""


@dataclass(frozen=True, slots=True)
class Taken:
    """The receiver has it."""

    status: int


@dataclass(frozen=True, slots=True)
class Gone:
    """The receiver wants nothing any more."""

    status: int = 410


@dataclass(frozen=True, slots=True)
class Failed:
    """It was not taken: `status` is that of the answer, None when there was none; `retry_after` in seconds."""

    reason: str
    status: int | None = None
    retry_after: float = 0.0


Outcome: TypeAlias = Taken | Gone | Failed


def judge(status: int, headers: Mapping[str, str], now: float) -> Outcome:
    """The meaning of an answer. `now` is Unix time."""
    if 200 <= status < 300:
        return Taken(status)
    if status == 410:
        return Gone()
    if 300 <= status < 400:
        # Whoever can make the receiver redirect would get the tenant's events.
        return Failed(f"it answered {status}: redirects are not followed, name the final address", status)
    return Failed(f"it answered {status}", status, _seconds(headers.get("retry-after", ""), now))


def pause(config: WebhookConfig, attempt: int, asked: float, chance: float) -> float:
    """Seconds until the next try after `attempt` of them, counted from 1; `chance` is between 0 and 1."""
    waited = min(config.longest_back_off, config.back_off * _FACTOR ** min(attempt - 1, 20))
    # So that what failed together is not tried again together.
    return max(waited * (0.75 + 0.5 * chance), asked)


def _seconds(text: str, now: float) -> float:
    """What `retry-after` asks for: a number of seconds or a date."""
    if text.strip().isascii() and text.strip().isdigit():
        found = float(text.strip()[:9])
    else:
        try:
            found = email.utils.parsedate_to_datetime(text).timestamp() - now
        except (ValueError, TypeError, OverflowError):
            return 0.0
    return min(max(found, 0.0), _LONGEST_ASKED)
