"""How a budget stands, as the contract has it. Pure."""

from __future__ import annotations

from maestro.event.v1.event_pb2 import BudgetAction, BudgetState
from maestro_gateway.budgets.counters import Counter
from maestro_sdk.prices import format_usd
from maestro_sdk.service.budgets import BudgetConfig
from maestro_sdk.service.store.holds import Balance


def state_of(config: BudgetConfig, counter: Counter, balance: Balance) -> BudgetState:
    """What is spent and reserved of a counter."""
    state = BudgetState(budget=counter.budget)
    state.period_start.FromNanoseconds(int(counter.period.start) * 10**9)
    state.period_end.FromNanoseconds(int(counter.period.end) * 10**9)
    if config.nano_usd is not None:
        state.limit_usd = format_usd(config.nano_usd)
        state.spent_usd = format_usd(max(0, balance.usd + balance.held_usd))
    if config.tokens is not None:
        state.limit_tokens = config.tokens
        state.spent_tokens = max(0, balance.tokens + balance.held_tokens)
    return state


def share_spent(config: BudgetConfig, usd: int, tokens: int) -> float:
    """The share of a budget that is spent, by the measure of which more is."""
    by_usd = usd / config.nano_usd if config.nano_usd else 0.0
    by_tokens = tokens / config.tokens if config.tokens else 0.0
    return max(by_usd, by_tokens)


def action_of(config: BudgetConfig) -> BudgetAction.ValueType:
    """What happens to requests when it is spent."""
    match config.action:
        case "reject":
            return BudgetAction.BUDGET_ACTION_REJECT
        case "degrade":
            return BudgetAction.BUDGET_ACTION_DEGRADE
