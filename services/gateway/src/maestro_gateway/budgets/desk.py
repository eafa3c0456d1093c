"""Answers questions about budgets: how they stand, and what a request would cost."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.embedding_pb2 import EmbedRequest
from maestro.usage.v1.usage_pb2 import (
    Budget,
    EstimateCostRequest,
    EstimateCostResponse,
    ListBudgetsRequest,
    ListBudgetsResponse,
)
from maestro_gateway.budgets.counters import Counter, counter_named, period_at, tenant_of
from maestro_gateway.budgets.estimate import estimates_of
from maestro_gateway.budgets.keeper import Budgets
from maestro_gateway.identity import permit
from maestro_gateway.identity.principal import OPERATOR, Principal, admitted
from maestro_sdk.errors import NoBackend, NotFound, PermissionDenied, Violation
from maestro_sdk.mesh.plan import refusal
from maestro_sdk.prices import format_usd
from maestro_sdk.service.budgets import BudgetConfig
from maestro_sdk.service.store import StoreAway
from maestro_sdk.service.store.holds import Balance

_EVERY = "-"


class BudgetDesk:
    """Answers for a mesh. Whoever asks was admitted, with the scope that the question needs."""

    def __init__(self, budgets: Budgets) -> None:
        self._budgets = budgets

    async def list_budgets(self, request: ListBudgetsRequest) -> ListBudgetsResponse:
        """How the budgets of a tenant stand. Raises `PermissionDenied`, `NotFound`, `NoBackend`."""
        caller = admitted()
        tenant = _tenant(request.tenant, caller)
        every = {
            name: config
            for name, config in self._budgets.config.items()
            if (not request.budget or name == request.budget) and _may_see(config, tenant)
        }
        if request.budget and not every:
            raise NotFound(f"there is no budget {request.budget!r}", failover=False)
        answer = ListBudgetsResponse()
        for name in sorted(every):
            answer.budgets.extend(
                _message(every[name], counter, balance)
                for counter, balance in await self._balances(name, every[name], tenant)
            )
        return answer

    def estimate(self, request: EstimateCostRequest) -> EstimateCostResponse:
        """What a request would cost at each backend that may answer. Raises what would refuse it."""
        asked = request.chat if request.HasField("chat") else request.embed
        return self.estimate_request(asked)

    def estimate_request(self, request: ChatRequest | EmbedRequest) -> EstimateCostResponse:
        """As `estimate`."""
        permit(request)
        plan = self._budgets.plan(request, admitted().tenant)
        if not plan.kept:
            raise refusal(plan, plan.needs, time.time())
        return estimates_of(plan, request)

    async def _balances(self, name: str, config: BudgetConfig, tenant: str) -> Sequence[tuple[Counter, Balance]]:
        period = period_at(config.period, time.time())
        try:
            known = list(_known(await self._budgets.balances(name, period), self._budgets.config, tenant))
            whole = Counter(name, period, (tenant,) if config.each else (), config.filters)
            if not known and config.each in {(), ("tenant",)} and _EVERY not in whole.values:
                # Nobody asked in this period yet, or the store does not know it.
                usd, tokens = await self._budgets.seeds.spent(config, whole)
                return [(whole, Balance(whole.name, usd, tokens))]
        except StoreAway:
            raise NoBackend("the store of budgets does not answer", retry_after=1.0) from None
        return sorted(known, key=lambda found: found[0].values)


def _known(
    balances: Sequence[Balance], config: Mapping[str, BudgetConfig], tenant: str
) -> Iterator[tuple[Counter, Balance]]:
    for balance in balances:
        counter = counter_named(balance.counter, config)
        if counter is not None and tenant in {_EVERY, tenant_of(config[counter.budget], counter)}:
            yield counter, balance


def _may_see(config: BudgetConfig, tenant: str) -> bool:
    """Whether a budget has something that is the tenant's own; operators who ask for all see every one."""
    if tenant == _EVERY:
        return True
    return config.own == tenant or (config.own == "" and (not config.tenants or tenant in config.tenants))


def _tenant(asked: str, caller: Principal) -> str:
    if asked and asked != caller.tenant and OPERATOR not in caller.scopes:
        message = "another tenant than the key's own needs the scope 'operator'"
        raise PermissionDenied(f"tenant: {message}", violations=[Violation("tenant", message)])
    return asked or caller.tenant


def _message(config: BudgetConfig, counter: Counter, balance: Balance) -> Budget:
    found = Budget(
        budget=counter.budget,
        tenant=tenant_of(config, counter) or "",
        group=dict(zip(config.each, counter.values, strict=True)),
        limit_usd=None if config.nano_usd is None else format_usd(config.nano_usd),
        limit_tokens=config.tokens,
        spent_usd=format_usd(max(0, balance.usd)),
        spent_tokens=max(0, balance.tokens),
        held_usd=format_usd(max(0, balance.held_usd)),
        held_tokens=max(0, balance.held_tokens),
        degrade_to=config.degrade_to,
    )
    found.period_start.FromNanoseconds(int(counter.period.start) * 10**9)
    found.period_end.FromNanoseconds(int(counter.period.end) * 10**9)
    return found
