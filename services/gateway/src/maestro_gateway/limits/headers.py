"""What a caller is told of its limits in headers, in the names that the clients of each API look for. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta

from maestro_gateway.limits.ticket import Ticket

LimitHeaders = Callable[[Ticket], list[tuple[str, str]]]

Standing = tuple[str, int, int, float]


def standings(ticket: Ticket) -> Iterator[Standing]:
    """Measure, limit, what is left of it and the seconds until all is there again; of each measure the tightest."""
    verdict = ticket.verdict
    if verdict is None:
        return
    tightest: dict[str, Standing] = {}
    for rule, left, reset in zip(ticket.rules, verdict.left, verdict.reset, strict=True):
        known = tightest.get(rule.measure)
        if rule.measure != "concurrency" and (known is None or left < known[2]):
            tightest[rule.measure] = (rule.measure, rule.limit, left, reset)
    yield from tightest.values()


def openai_headers(ticket: Ticket) -> list[tuple[str, str]]:
    """`x-ratelimit-…`, with resets such as `59.872s`."""
    found: list[tuple[str, str]] = []
    for measure, limit, left, reset in standings(ticket):
        found += (
            (f"x-ratelimit-limit-{measure}", str(limit)),
            (f"x-ratelimit-remaining-{measure}", str(left)),
            (f"x-ratelimit-reset-{measure}", f"{reset:.3f}s"),
        )
    return found


def anthropic_headers(ticket: Ticket) -> list[tuple[str, str]]:
    """`anthropic-ratelimit-…`, with resets as points in time."""
    now = datetime.now(UTC)
    found: list[tuple[str, str]] = []
    for measure, limit, left, reset in standings(ticket):
        # Rounded up: at that time it is so.
        moment = (now + timedelta(seconds=reset + 0.999)).strftime("%Y-%m-%dT%H:%M:%SZ")
        found += (
            (f"anthropic-ratelimit-{measure}-limit", str(limit)),
            (f"anthropic-ratelimit-{measure}-remaining", str(left)),
            (f"anthropic-ratelimit-{measure}-reset", moment),
        )
    return found
