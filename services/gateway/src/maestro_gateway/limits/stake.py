"""Claims that are taken together, all or none, and given back at the end of what they were taken for."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING

from maestro.llm.v1.usage_pb2 import Usage
from maestro_gateway.limits.rules import Rule
from maestro_sdk.errors import NoBackend
from maestro_sdk.service.store import UNDO, Claim, Kind, Store, StoreAway, Verdict

if TYPE_CHECKING:
    from maestro_gateway.limits.limiter import Limiter

_AWAY_WAIT = 1.0


class Stake:
    """The claims of one entry. `settle` gives back what it did not use, and its places."""

    __slots__ = ("_claims", "_entry", "_limiter", "_open", "_store", "rules", "tokens")

    def __init__(self, limiter: Limiter, entry: str, rules: Sequence[Rule], tokens: int) -> None:
        """`tokens` are those that it will use at most, as far as anybody knows."""
        self._limiter = limiter
        self._entry = entry
        self._claims = [
            Claim(rule.key, rule.kind, rule.limit, rule.window, tokens if rule.kind is Kind.SUM else 1)
            for rule in rules
        ]
        self._store: Store = limiter.store
        self._open = False
        self.rules = rules
        self.tokens = tokens

    async def ask(self) -> Verdict:
        """What the store says; it waits for nothing else. Raises `NoBackend` when that is to be without a store."""
        try:
            verdict = await self._ask()
        except StoreAway:
            if self._limiter.denies_without_store:
                # The words of the store's driver may name hosts; they are in the log.
                raise NoBackend(
                    "limits can't be checked now: their store does not answer", retry_after=_AWAY_WAIT
                ) from None
            # Each gateway counts for itself meanwhile: that is more than allowed in all, but never without bound.
            self._store = self._limiter.spare
            verdict = self._limiter.spare.take(self._entry, self._claims)
        self._open = verdict.refused is None
        return verdict

    def settle(self, usage: Usage | None) -> None:
        """Ends it with the tokens that were used; a second time does nothing."""
        if not self._open:
            return
        self._open = False
        used = usage.input_tokens + usage.output_tokens if usage is not None else 0
        claims = [claim for claim in self._claims if claim.kind is not Kind.EACH]
        if claims:
            self._store.finish(self._entry, claims, [used if claim.kind is Kind.SUM else 0 for claim in claims])

    def undo(self) -> None:
        """What it was taken for is not done: nothing of it counts."""
        if self._open:
            self._open = False
            self._store.finish(self._entry, self._claims, [UNDO] * len(self._claims))

    async def _ask(self) -> Verdict:
        found = self._store.take(self._entry, self._claims)
        if isinstance(found, Verdict):
            return found
        try:
            return await found
        except asyncio.CancelledError:
            self._store.finish(self._entry, self._claims, [UNDO] * len(self._claims))
            raise
