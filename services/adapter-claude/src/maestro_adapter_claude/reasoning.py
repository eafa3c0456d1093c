"""How much Claude thinks: `Reasoning` as `thinking`, `output_config.effort` and `max_tokens`, which hang together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, cast

from maestro.llm.v1.chat_pb2 import ChatRequest, ReasoningEffort
from maestro_adapter_claude.models import ClaudeModel
from maestro_adapter_claude.prefill import begins_answer
from maestro_sdk.adapter.notes import Notes
from maestro_sdk.errors import InvalidRequest

if TYPE_CHECKING:
    from anthropic.types import ThinkingConfigParam, ToolChoiceParam

MIN_BUDGET = 1024

_EFFORTS: dict[int, str] = {
    ReasoningEffort.REASONING_EFFORT_MINIMAL: "low",
    ReasoningEffort.REASONING_EFFORT_LOW: "low",
    ReasoningEffort.REASONING_EFFORT_MEDIUM: "medium",
    ReasoningEffort.REASONING_EFFORT_HIGH: "high",
    ReasoningEffort.REASONING_EFFORT_MAX: "max",
}

# For models that know budgets only: tokens that an effort stands for.
_BUDGETS: dict[int, int] = {
    ReasoningEffort.REASONING_EFFORT_MINIMAL: MIN_BUDGET,
    ReasoningEffort.REASONING_EFFORT_LOW: 2048,
    ReasoningEffort.REASONING_EFFORT_MEDIUM: 8192,
    ReasoningEffort.REASONING_EFFORT_HIGH: 16384,
    ReasoningEffort.REASONING_EFFORT_MAX: 32000,
}


@dataclass(frozen=True, slots=True)
class Thinking:
    """What to send; `effort` is empty for none."""

    max_tokens: int
    thinking: ThinkingConfigParam | None = None
    effort: str = ""


def reason(
    request: ChatRequest,
    model: ClaudeModel,
    default_max_tokens: int,
    messages: Sequence[Mapping[str, Any]],
    choice: ToolChoiceParam | None,
    notes: Notes,
) -> Thinking:
    """Decides. `messages` and `choice` are the wire's: some of them forbid a fixed budget."""
    limit = model.max_output_tokens
    asked = request.max_tokens if request.HasField("max_tokens") else None
    if asked is not None and limit is not None and asked > limit:
        notes.unsupported("max_tokens", f"{model.model.name} gives at most {limit} tokens")
        asked = limit
    max_tokens = asked or min(default_max_tokens, limit or default_max_tokens)
    if not request.HasField("reasoning"):
        return Thinking(max_tokens)
    wanted = request.reasoning
    if wanted.effort == ReasoningEffort.REASONING_EFFORT_OFF:
        return _off(max_tokens, model, notes)
    effort = _effort(wanted.effort, model)
    budget = wanted.budget_tokens if wanted.HasField("budget_tokens") else None
    if budget is not None and not model.wire.budget:
        notes.unsupported("reasoning.budget_tokens", f"{model.model.name} takes no budget; effort decides")
        budget = None
    if budget is None and model.wire.adaptive:
        return Thinking(max_tokens, {"type": "adaptive"}, effort)
    if not model.wire.budget or (budget is None and wanted.effort not in _BUDGETS):
        return Thinking(max_tokens, None, effort)
    obstacle = _obstacle(messages, choice)
    if obstacle:
        notes.unsupported("reasoning", f"{model.model.name} can't think here: {obstacle}")
        return Thinking(max_tokens, None, effort)
    if budget is None:
        return _by_effort(_BUDGETS[wanted.effort], asked, max_tokens, limit, effort, notes)
    return _by_budget(budget, asked, max_tokens, limit, effort, notes)


def _off(max_tokens: int, model: ClaudeModel, notes: Notes) -> Thinking:
    match model.wire.disable:
        case None:
            lowest = "low" if "low" in model.wire.efforts else ""
            notes.unsupported("reasoning.effort", f"{model.model.name} always thinks; the lowest effort is used")
            return Thinking(max_tokens, None, lowest)
        case "between_tools":
            return Thinking(max_tokens, {"type": "between_tools"})
        case _:
            return Thinking(max_tokens, {"type": "disabled"})


def _effort(effort: int, model: ClaudeModel) -> str:
    word = _EFFORTS.get(effort, "")
    if word == "max" and word not in model.wire.efforts:
        word = "high"
    return word if word in model.wire.efforts else ""


def _obstacle(messages: Sequence[Mapping[str, Any]], choice: ToolChoiceParam | None) -> str:
    if begins_answer(messages):
        # Thinking comes first in a turn.
        return "the answer was begun without it"
    if choice is not None and choice["type"] in {"any", "tool"}:
        return "a tool call is forced"
    for message in reversed(messages):
        if message["role"] == "assistant":
            blocks = cast("list[Any]", message["content"])
            kinds = [cast("dict[str, Any]", block)["type"] for block in blocks if isinstance(block, dict)]
            if "tool_use" in kinds and kinds[0] not in {"thinking", "redacted_thinking"}:
                return "the turn that it goes on with was begun without its thinking"
            break
    return ""


def _by_effort(
    budget: int, asked: int | None, max_tokens: int, limit: int | None, effort: str, notes: Notes
) -> Thinking:
    if asked is None:
        max_tokens = _room(budget, max_tokens, limit)
    # Half is left for the answer when the caller's own limit is small.
    budget = min(budget, max_tokens // 2)
    if budget < MIN_BUDGET:
        notes.unsupported("reasoning.effort", f"max_tokens leaves less than {MIN_BUDGET} tokens to think")
        return Thinking(max_tokens, None, effort)
    return Thinking(max_tokens, {"type": "enabled", "budget_tokens": budget}, effort)


def _by_budget(
    budget: int, asked: int | None, max_tokens: int, limit: int | None, effort: str, notes: Notes
) -> Thinking:
    if budget < MIN_BUDGET:
        notes.unsupported("reasoning.budget_tokens", f"the smallest budget is {MIN_BUDGET}; it is used")
        budget = MIN_BUDGET
    if asked is None:
        max_tokens = _room(budget, max_tokens, limit)
    if budget >= max_tokens:
        raise InvalidRequest.at("reasoning.budget_tokens", f"has to be less than max_tokens, which is {max_tokens}")
    return Thinking(max_tokens, {"type": "enabled", "budget_tokens": budget}, effort)


def _room(budget: int, max_tokens: int, limit: int | None) -> int:
    """`max_tokens` contains the thinking: without a wish of the caller the answer keeps its room beside it."""
    return min(budget + max_tokens, limit or budget + max_tokens)
