"""How much Gemini thinks: `Reasoning` as `thinkingConfig`, by levels or by a budget as the model takes it."""

from __future__ import annotations

from typing import Any

from maestro.llm.v1.chat_pb2 import ChatRequest, ReasoningEffort
from maestro_adapter_vertex.models import Budget, VertexModel
from maestro_sdk.adapter.notes import Notes

# From the least to the most; the wire may know one above HIGH.
_ORDER = ("MINIMAL", "LOW", "MEDIUM", "HIGH", "XHIGH")
_LEVELS: dict[int, str] = {
    ReasoningEffort.REASONING_EFFORT_OFF: "MINIMAL",
    ReasoningEffort.REASONING_EFFORT_MINIMAL: "MINIMAL",
    ReasoningEffort.REASONING_EFFORT_LOW: "LOW",
    ReasoningEffort.REASONING_EFFORT_MEDIUM: "MEDIUM",
    ReasoningEffort.REASONING_EFFORT_HIGH: "HIGH",
    ReasoningEffort.REASONING_EFFORT_MAX: "XHIGH",
}
# For models that take a budget: tokens that an effort stands for.
_BUDGETS: dict[int, int] = {
    ReasoningEffort.REASONING_EFFORT_MINIMAL: 512,
    ReasoningEffort.REASONING_EFFORT_LOW: 2048,
    ReasoningEffort.REASONING_EFFORT_MEDIUM: 8192,
    ReasoningEffort.REASONING_EFFORT_HIGH: 16384,
    ReasoningEffort.REASONING_EFFORT_MAX: 1_000_000,
}


def to_thinking(request: ChatRequest, model: VertexModel, notes: Notes) -> dict[str, Any] | None:
    """The `thinkingConfig`, None for the model's own way."""
    if not request.HasField("reasoning"):
        return None
    wire, wanted = model.wire, request.reasoning
    off = wanted.effort == ReasoningEffort.REASONING_EFFORT_OFF
    if not wire.levels and wire.budget is None:
        if not off:
            notes.unsupported("reasoning", f"{model.model.name} is not known to think")
        return None
    if off:
        return _off(model, notes)
    config: dict[str, Any] = {"includeThoughts": True}
    if wire.budget is not None:
        budget = wanted.budget_tokens if wanted.HasField("budget_tokens") else None
        if budget is not None:
            config["thinkingBudget"] = _fit(budget, wire.budget, notes)
        elif wanted.effort in _BUDGETS:
            config["thinkingBudget"] = max(wire.budget.least, min(wire.budget.most, _BUDGETS[wanted.effort]))
        return config
    if wanted.HasField("budget_tokens"):
        notes.unsupported("reasoning.budget_tokens", f"{model.model.name} takes no budget; effort decides")
    if wanted.effort in _LEVELS:
        config["thinkingLevel"] = _level(wanted.effort, model)
    return config


def _off(model: VertexModel, notes: Notes) -> dict[str, Any]:
    budget = model.wire.budget
    if budget is not None and budget.zero:
        return {"thinkingBudget": 0}
    notes.unsupported("reasoning.effort", f"{model.model.name} always thinks; the least effort is used")
    if budget is not None:
        return {"thinkingBudget": budget.least}
    return {"thinkingLevel": _level(ReasoningEffort.REASONING_EFFORT_OFF, model)}


def _level(effort: int, model: VertexModel) -> str:
    """The model's level for an effort: the same, else the next one above, else the highest."""
    wanted = _ORDER.index(_LEVELS[effort])
    above = [level for level in model.wire.levels if _ORDER.index(level) >= wanted]
    return above[0] if above else model.wire.levels[-1]


def _fit(budget: int, limits: Budget, notes: Notes) -> int:
    fitting = max(limits.least, min(limits.most, budget))
    if fitting != budget:
        notes.unsupported("reasoning.budget_tokens", f"the nearest that the model takes is used: {fitting}")
    return fitting
