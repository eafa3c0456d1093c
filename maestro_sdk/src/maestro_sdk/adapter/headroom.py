"""What a provider's rate limits leave, read from the headers of its answers.

Two families of headers are known: Anthropic's `anthropic-ratelimit-*`, and `x-ratelimit-*` of OpenAI, Azure and many
servers that speak OpenAI's wire. Nothing here raises: a value that can't be read is left out, since an answer must not
fail for a header beside it.
"""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping

from google.protobuf.duration_pb2 import Duration

from maestro.llm.v1.usage_pb2 import Headroom, RateLimit

_LARGEST = 2**31 - 1
_LONGEST = 31 * 86400.0
"""Seconds; whatever claims to reset later is no duration, such as a moment in Unix time."""
_DURATION = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?", re.ASCII)
_UNITS = (86400.0, 3600.0, 60.0, 1.0, 0.001)

# Remaining, limit, reset.
_REQUESTS = ("x-ratelimit-remaining-requests", "x-ratelimit-limit-requests", "x-ratelimit-reset-requests")
_TOKENS = ("x-ratelimit-remaining-tokens", "x-ratelimit-limit-tokens", "x-ratelimit-reset-tokens")


def _anthropic(kind: str) -> tuple[str, str, str]:
    stem = f"anthropic-ratelimit-{kind}"
    return f"{stem}-remaining", f"{stem}-limit", f"{stem}-reset"


_ANTHROPIC_REQUESTS = _anthropic("requests")
_ANTHROPIC_TOKENS = tuple(_anthropic(kind) for kind in ("tokens", "input-tokens", "output-tokens"))


def headroom(headers: Mapping[str, str], now: float) -> Headroom | None:
    """What `headers` say is left; None when they say nothing. `now` is Unix time, for limits that name a moment.

    `headers` may be case-insensitive, or else have lower-case names. Of several limits on tokens the tightest counts.
    """
    requests = _limit(headers, _REQUESTS, now)
    tokens = _limit(headers, _TOKENS, now)
    if requests is None and tokens is None:
        requests = _limit(headers, _ANTHROPIC_REQUESTS, now)
        found = [limit for names in _ANTHROPIC_TOKENS if (limit := _limit(headers, names, now)) is not None]
        if found:
            tokens = min(found, key=_share)
        elif requests is None:
            return None
    return Headroom(requests=requests, tokens=tokens)


def _limit(headers: Mapping[str, str], names: tuple[str, str, str], now: float) -> RateLimit | None:
    """A limit whose remainder can be read: without that it says nothing."""
    text = headers.get(names[0])
    if text is None:
        return None
    remaining = _count(text)
    if remaining is None:
        return None
    return RateLimit(
        remaining=remaining, limit=_count(headers.get(names[1], "")), reset=_reset(headers.get(names[2], ""), now)
    )


def _share(limit: RateLimit) -> tuple[float, int]:
    """How much of a limit is left, least first: an unknown limit counts as whole, unless nothing is left of it."""
    if not limit.remaining:
        return 0.0, 0
    return (limit.remaining / limit.limit if limit.limit else 1.0), limit.remaining


def _count(text: str) -> int | None:
    text = text.strip()
    # Longer than any count: it is not even read, as reading takes time.
    if not text.isdecimal() or len(text) > 18:
        return None
    count = int(text)
    return count if count <= _LARGEST else None


def _reset(text: str, now: float) -> Duration | None:
    """Seconds ("7.5"), a duration ("6m0s", "12ms") or a moment ("2026-05-01T12:00:00Z")."""
    text = text.strip()
    if not text or len(text) > 40:
        return None
    seconds = _seconds(text, now)
    if seconds is None or not math.isfinite(seconds) or seconds > _LONGEST:
        return None
    whole, part = divmod(round(max(0.0, seconds) * 1e9), 1_000_000_000)
    return Duration(seconds=whole, nanos=part)


def _seconds(text: str, now: float) -> float | None:
    if text[-1] == "s":
        found = _DURATION.fullmatch(text)
        if found is None:
            return None
        return sum(float(value) * unit for value, unit in zip(found.groups(), _UNITS, strict=True) if value)
    try:
        if text[4:5] == "-":
            moment = datetime.datetime.fromisoformat(text)
            # A moment without a zone could be hours off.
            return moment.timestamp() - now if moment.tzinfo is not None else None
        value = float(text)
    except (ValueError, OverflowError):
        return None
    return value if value >= 0 else None
