"""Holds attempts to the limits of providers. What nothing limits costs a look into a table."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

from maestro.llm.v1.model_pb2 import Feature
from maestro_gateway.limits.rules import Rule, named_provider, provider_rules
from maestro_gateway.limits.stake import Stake
from maestro_sdk.errors import MaestroError, RateLimited, TenantConcurrency, TenantRateLimited
from maestro_sdk.mesh.gate import Refusal
from maestro_sdk.mesh.needs import Needs
from maestro_sdk.mesh.table import Backend, Table
from maestro_sdk.service.limits import LimitsConfig
from maestro_sdk.service.store import Kind
from maestro_sdk.service.telemetry import observe

if TYPE_CHECKING:
    from maestro_gateway.limits.limiter import Limiter

log = logging.getLogger(__name__)

_MOST_KNOWN = 10_000
"""Pairs of backend and tenant whose limits are kept at hand."""
_EMBEDS = 1 << Feature.FEATURE_EMBEDDINGS


class ProviderGate:
    """The limits of providers that are in force."""

    def __init__(self, limiter: Limiter) -> None:
        self._limiter = limiter
        self._config = LimitsConfig()
        self._limited: frozenset[str] = frozenset()
        self._known: dict[tuple[str, str], tuple[Rule, ...]] = {}
        self._told: set[tuple[str, str]] = set()
        self.refusals: Counter[tuple[str, str, str]] = Counter()
        """By provider, measure, and whose limit it was: "mesh" or "tenant"."""
        observe("maestro.limits.passed_over", self.read, "Attempts that a provider's limit refused", total=True)

    def adopt(self, config: LimitsConfig) -> None:
        """Puts other limits in force. What was counted so far counts on."""
        self._config = config
        self._limited = frozenset(named_provider(name) for _, name in _names(config))
        self._known = {}
        self._told.clear()

    def find(self, backend: Backend, needs: Needs) -> Claimed | None:
        """What an attempt has to take before it begins; None when nothing is counted."""
        if backend.provider not in self._limited:
            return None
        place = (backend.id, needs.tenant)
        rules = self._known.get(place)
        if rules is None:
            if len(self._known) >= _MOST_KNOWN:
                self._known.clear()
            rules = self._known[place] = provider_rules(self._config, backend, needs.tenant)
        if not rules:
            return None
        longest = 0 if needs.required & _EMBEDS else needs.max_tokens or self._limiter.usual_output
        return Claimed(self._limiter, self._limiter.entry(), rules, max(1, needs.input_tokens + longest), backend)

    def read(self) -> Iterator[tuple[float, Mapping[str, str]]]:
        """The refusals so far."""
        for (provider, measure, whose), count in list(self.refusals.items()):
            yield count, {"provider": provider, "measure": measure, "whose": whose}

    def warn(self, table: Table) -> None:
        """Logs once which limits hold for no backend of the mesh: their names may be misspelt."""
        known = {
            name for found in table.backends.values() for name in (found.provider, found.account, found.model, found.id)
        }
        for path, name in _names(self._config):
            if known and name not in known and (path, name) not in self._told:
                self._told.add((path, name))
                log.warning("%s.%s limits nobody: no backend of the mesh has that provider or name", path, name)


class Claimed(Stake):
    """What one attempt takes of the limits of its backend."""

    __slots__ = ("_backend",)

    def __init__(self, limiter: Limiter, entry: str, rules: Sequence[Rule], tokens: int, backend: Backend) -> None:
        super().__init__(limiter, entry, rules, tokens)
        self._backend = backend

    async def take(self) -> Refusal | None:
        """Takes it all, else gives what refuses: `RateLimited` for the mesh, the tenant's errors, or `NoBackend`."""
        try:
            verdict = await self.ask()
        except MaestroError as error:
            return Refusal(error)
        if verdict.refused is None:
            return None
        rule = self.rules[verdict.refused]
        self._limiter.gate.refusals[self._backend.provider, rule.measure, "tenant" if rule.tenant else "mesh"] += 1
        # A place comes free whenever an answer ends.
        return Refusal(self._error(rule, verdict.retry_after), exact=rule.kind is not Kind.PLACES)

    def _error(self, rule: Rule, retry_after: float | None) -> MaestroError:
        whose, limit = rule.whose, rule.limit
        wait = f"; there is room in {retry_after:.3g} s" if retry_after is not None else ""
        match rule.measure:
            case "concurrency":
                message = f"{whose} has {limit} requests under way, and no more are allowed at once"
            case "requests":
                message = f"{limit} requests are allowed for {whose} in {rule.window:g} s{wait}"
            case "tokens" if retry_after is None:
                message = (
                    f"this request may use {self.tokens} tokens, more than the {limit} that are allowed for {whose} in "
                    f"{rule.window:g} s; make it shorter, or set a smaller max_tokens"
                )
            case "tokens":
                message = f"{limit} tokens are allowed for {whose} in {rule.window:g} s{wait}"
        facts = {
            "limit": str(limit),
            "measure": rule.measure,
            "whose": whose,
            "provider": self._backend.provider,
            "model": self._backend.model,
        }
        if not rule.tenant:
            # Where waiting never helps, another try would not either.
            again = None if retry_after is not None else False
            return RateLimited(message, retry_after=retry_after, metadata=facts, retryable=again)
        kind = TenantConcurrency if rule.kind is Kind.PLACES else TenantRateLimited
        return kind(message, retry_after=retry_after, metadata=facts)


def _names(config: LimitsConfig) -> list[tuple[str, str]]:
    """Where limits of providers stand, and whom each names."""
    tenants = ((f"limits.tenants.{tenant}.providers", limit) for tenant, limit in config.tenants.items())
    found = [("limits.providers", name) for name in config.providers]
    for path, limit in (("limits.every_tenant.providers", config.every_tenant), *tenants):
        found += ((path, name) for name in limit.providers)
    return found
