"""What one request took of its limits, from its admission to its end."""

from __future__ import annotations

from collections.abc import Sequence
from contextvars import ContextVar
from typing import TYPE_CHECKING

from maestro_gateway.limits.rules import Rule
from maestro_gateway.limits.stake import Stake
from maestro_sdk.errors import MaestroError, TenantConcurrency, TenantRateLimited
from maestro_sdk.service.store import Kind, Verdict

if TYPE_CHECKING:
    from maestro_gateway.limits.limiter import Limiter

_current: ContextVar[Ticket | None] = ContextVar("maestro_ticket", default=None)


def enter_ticket(ticket: Ticket) -> None:
    """Makes the ticket of a request that another task serves that of this context."""
    _current.set(ticket)


def current_ticket() -> Ticket | None:
    """The ticket of the request being served in this context, once it was asked for."""
    return _current.get()


class Ticket(Stake):
    """The claims of one request. `take` admits it; `settle` gives back what it did not use, and its places."""

    __slots__ = ("told", "verdict")

    def __init__(self, limiter: Limiter, entry: str, rules: Sequence[Rule], tokens: int) -> None:
        """`tokens` are those that it will use at most, as far as anybody knows."""
        super().__init__(limiter, entry, rules, tokens)
        self.told = not limiter.tells_successes
        """Whether nobody has to be told any more in headers what is left."""
        self.verdict: Verdict | None = None
        """What the store said last; None while it was not asked or does not answer."""
        _current.set(self)

    def leave_tokens(self) -> None:
        """Takes no tokens: the request uses none. Before `take`."""
        self.rules = [rule for rule in self.rules if rule.kind is not Kind.SUM]
        self._claims = [claim for claim in self._claims if claim.kind is not Kind.SUM]
        self.tokens = 0

    async def take(self) -> None:
        """Waits for nothing but the store. Raises `TenantRateLimited`, `TenantConcurrency`, `NoBackend`."""
        verdict = self.verdict = await self.ask()
        if verdict.refused is not None:
            raise self._refusal(verdict.refused, verdict.retry_after)

    def _refusal(self, index: int, retry_after: float | None) -> MaestroError:
        rule = self.rules[index]
        facts = {"limit": str(rule.limit), "measure": rule.measure, "whose": rule.whose}
        match rule.measure:
            case "concurrency":
                return TenantConcurrency(
                    f"{rule.whose} has {rule.limit} requests under way, and no more are allowed at once; wait for one "
                    "to end",
                    retry_after=retry_after,
                    metadata=facts,
                )
            case "requests":
                what = "requests"
            case "tokens" if retry_after is None:
                return TenantRateLimited(
                    f"this request may use {self.tokens} tokens, more than the {rule.limit} that {rule.whose} has for "
                    f"{rule.window:g} s; make it shorter, or set a smaller max_tokens",
                    metadata=facts,
                )
            case "tokens":
                what = "tokens"
        wait = f"; there is room in {retry_after:.3g} s" if retry_after is not None else ""
        message = f"{rule.whose} may use {rule.limit} {what} in {rule.window:g} s{wait}"
        return TenantRateLimited(message, retry_after=retry_after, metadata=facts)
