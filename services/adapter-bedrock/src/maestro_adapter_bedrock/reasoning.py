"""How much a model reasons: `Reasoning` in the fields of the model's own family."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

from maestro.llm.v1.chat_pb2 import ChatRequest, ReasoningEffort
from maestro_adapter_bedrock.models import BedrockModel
from maestro_adapter_bedrock.prefill import begun_text
from maestro_sdk.adapter.notes import Notes
from maestro_sdk.errors import InvalidRequest

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
    """What to send: `fields` for `additionalModelRequestFields`, `effort` for `outputConfig`, empty for none.

    `refuses` are names of the contract that may not be sent beside it.
    """

    fields: Mapping[str, Any] = field(default_factory=dict[str, Any])
    effort: str = ""
    refuses: frozenset[str] = frozenset()


_CLAUDE_REFUSES = frozenset({"temperature", "top_p"})
_NOVA_REFUSES = frozenset({"temperature", "top_p", "max_tokens"})


def reason(
    request: ChatRequest,
    model: BedrockModel,
    max_tokens: int | None,
    messages: Sequence[Mapping[str, Any]],
    forced: bool,
    notes: Notes,
) -> Thinking:
    """Decides. `messages` are the wire's: some of them forbid a fixed budget, and so does a forced call."""
    if not request.HasField("reasoning"):
        return Thinking()
    wanted = request.reasoning
    off = wanted.effort == ReasoningEffort.REASONING_EFFORT_OFF
    budget = wanted.budget_tokens if wanted.HasField("budget_tokens") and not off else None
    match model.wire.reasoning:
        case "none":
            if not off:
                notes.unsupported("reasoning", f"{model.name} does not reason")
            return Thinking()
        case "always":
            notes.unsupported("reasoning", f"{model.name} reasons as much as it likes")
            return Thinking()
        case "word" | "nova":
            return _word(wanted.effort, budget, model, notes)
        case "adaptive" | "both" | "budget":
            return _claude(request, model, max_tokens, messages, forced, notes)


def _word(effort: int, budget: int | None, model: BedrockModel, notes: Notes) -> Thinking:
    nova = model.wire.reasoning == "nova"
    if budget is not None:
        notes.unsupported("reasoning.budget_tokens", f"{model.name} takes no budget; effort decides")
    if effort == ReasoningEffort.REASONING_EFFORT_OFF:
        if nova:
            return Thinking({"reasoningConfig": {"type": "disabled"}})
        notes.unsupported("reasoning.effort", f"{model.name} always reasons; the lowest effort is used")
        return Thinking({"reasoning_effort": "low"})
    word = _effort(effort, model)
    if not nova:
        return Thinking({"reasoning_effort": word} if word else {})
    fields = {"reasoningConfig": {"type": "enabled", "maxReasoningEffort": word or "medium"}}
    return Thinking(fields, refuses=_NOVA_REFUSES if word == "high" else frozenset())


def _claude(
    request: ChatRequest,
    model: BedrockModel,
    max_tokens: int | None,
    messages: Sequence[Mapping[str, Any]],
    forced: bool,
    notes: Notes,
) -> Thinking:
    wanted, kind = request.reasoning, model.wire.reasoning
    if wanted.effort == ReasoningEffort.REASONING_EFFORT_OFF:
        # Models with a budget think only when they are asked to.
        return Thinking() if kind == "budget" else Thinking({"thinking": {"type": "disabled"}})
    effort = _effort(wanted.effort, model)
    budget = wanted.budget_tokens if wanted.HasField("budget_tokens") else None
    if budget is not None and kind == "adaptive":
        notes.unsupported("reasoning.budget_tokens", f"{model.name} takes no budget; effort decides")
        budget = None
    if budget is None and kind != "budget":
        return Thinking({"thinking": {"type": "adaptive"}}, effort, _CLAUDE_REFUSES)
    if budget is None and wanted.effort not in _BUDGETS:
        return Thinking(effort=effort)
    if obstacle := "a tool call is forced" if forced else _obstacle(messages):
        notes.unsupported("reasoning", f"{model.name} can't think here: {obstacle}")
        return Thinking(effort=effort)
    if budget is None:
        # Half is left for the answer when the caller's own limit is small.
        budget = min(_BUDGETS[wanted.effort], (max_tokens or 2 * _BUDGETS[wanted.effort]) // 2)
        if budget < MIN_BUDGET:
            notes.unsupported("reasoning.effort", f"max_tokens leaves less than {MIN_BUDGET} tokens to think")
            return Thinking(effort=effort)
    elif budget < MIN_BUDGET:
        notes.unsupported("reasoning.budget_tokens", f"the smallest budget is {MIN_BUDGET}; it is used")
        budget = MIN_BUDGET
    if max_tokens is not None and budget >= max_tokens:
        raise InvalidRequest.at("reasoning.budget_tokens", f"has to be less than max_tokens, which is {max_tokens}")
    return Thinking({"thinking": {"type": "enabled", "budget_tokens": budget}}, effort, _CLAUDE_REFUSES)


def _effort(effort: int, model: BedrockModel) -> str:
    word = _EFFORTS.get(effort, "")
    if word == "max" and word not in model.wire.efforts:
        word = "high"
    return word if word in model.wire.efforts else ""


def _obstacle(messages: Sequence[Mapping[str, Any]]) -> str:
    if begun_text(messages):
        # Thinking comes first in a turn.
        return "the answer was begun without it"
    for message in reversed(messages):
        if message["role"] == "assistant":
            blocks = cast("list[Any]", message["content"])
            kinds = [next(iter(cast("dict[str, Any]", block))) for block in blocks if isinstance(block, dict)]
            if "toolUse" in kinds and kinds[0] != "reasoningContent":
                return "the turn that it goes on with was begun without its thinking"
            break
    return ""
