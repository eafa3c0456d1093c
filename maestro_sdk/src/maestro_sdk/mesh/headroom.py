"""What a provider's rate limits leave to a backend, as told with an answer and as it comes back with time. Pure."""

from __future__ import annotations

import math
from dataclasses import dataclass

from maestro.llm.v1.usage_pb2 import Headroom, RateLimit

_USUAL_WINDOW = 60.0
"""Seconds after which a limit is taken for whole again when the provider does not say: they count by the minute."""


@dataclass(frozen=True, slots=True)
class Limit:
    """One rate limit: `remaining` of `limit` (0: unknown) at the Unix time `told`, and all of it again at `whole`."""

    limit: int
    remaining: int
    told: float
    whole: float

    def left(self, now: float) -> float:
        """What may be used at `now`. It comes back evenly until `whole`; where the limit is unknown, all at once."""
        if now >= self.whole:
            return float(self.limit) if self.limit else math.inf
        if not self.limit or now <= self.told:
            return float(self.remaining)
        return self.remaining + (self.limit - self.remaining) * (now - self.told) / (self.whole - self.told)

    def share(self, taken: int, now: float) -> float:
        """The share from 0 to 1 that is left once `taken` is gone."""
        left = self.left(now) - taken
        if left <= 0.0:
            return 0.0
        return left / self.limit if self.limit else 1.0

    def enough_at(self, need: float) -> float:
        """When `need` may be used, in Unix time."""
        if not self.limit or self.limit <= self.remaining:
            return self.whole
        share = (min(need, self.limit) - self.remaining) / (self.limit - self.remaining)
        return self.told + share * (self.whole - self.told)


@dataclass(frozen=True, slots=True)
class Allowance:
    """What was told at the Unix time `told` of requests and tokens; None where nothing was said of them."""

    told: float
    requests: Limit | None
    tokens: Limit | None
    least_requests: float
    """What was left when it was told, infinity where nothing was said: it only grows again until the next answer."""
    least_tokens: float

    def lack(self, tokens: int, now: float) -> str:
        """Why a request of so many input tokens would be refused by the provider now; empty when it would not."""
        for limit, word, need in ((self.requests, "requests", 1), (self.tokens, "tokens", max(1, tokens))):
            if limit is None:
                continue
            # A request that is larger than the whole window is judged by the window: more is never there.
            need = min(need, limit.limit) if limit.limit else 1  # noqa: PLW2901 - bounded by what there can be
            left = limit.left(now)
            if left < need:
                of = f" of {limit.limit}" if limit.limit else ""
                wait = math.ceil(limit.enough_at(need) - now)
                return f"its rate limit leaves {left:.0f}{of} {word}, enough again in {wait} s"
        return ""

    def share(self, calls: int, tokens: int, now: float) -> tuple[float, str]:
        """The tightest limit's share from 0 to 1 that is left once `calls` under way took `tokens` each, and its name.

        A limit of unknown size counts as whole while anything of it is left.
        """
        share, word = 1.0, ""
        if self.requests is not None:
            share, word = self.requests.share(calls, now), "requests"
        if self.tokens is not None and ((of_tokens := self.tokens.share(calls * tokens, now)) < share or not word):
            share, word = of_tokens, "tokens"
        return share, word


def allowance_of(headroom: Headroom, told: float) -> Allowance | None:
    """What a message tells; None when it tells nothing. `told` is Unix time."""
    requests = _limit(headroom.requests, told) if headroom.HasField("requests") else None
    tokens = _limit(headroom.tokens, told) if headroom.HasField("tokens") else None
    if requests is None and tokens is None:
        return None
    return Allowance(
        told,
        requests,
        tokens,
        math.inf if requests is None else requests.remaining,
        math.inf if tokens is None else tokens.remaining,
    )


def _limit(limit: RateLimit, told: float) -> Limit:
    reset = limit.reset.ToNanoseconds() / 1e9 if limit.HasField("reset") else _USUAL_WINDOW
    return Limit(limit.limit, limit.remaining, told, told + reset)
