"""A request of the contract as a run of Claude Code: what goes into its session, what is asked, what its tools are.

A run knows one prompt, but a session has a past: everything before the last turn becomes the transcript of a session
that the run resumes, with thinking, calls and results as they were. Results of tools are no prompt; the session then
ends with a call that was put off, and the run, which finds it, gets the result from the tool itself.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from maestro.llm.v1.chat_pb2 import ChatRequest, ReasoningEffort, ToolChoiceMode
from maestro_adapter_claude.claude_code.models import PROVIDER
from maestro_adapter_claude.conversation import to_messages
from maestro_adapter_claude.models import ClaudeModel
from maestro_adapter_claude.request import Outgoing
from maestro_sdk.adapter.notes import Notes
from maestro_sdk.adapter.tool_schema import parse_schema
from maestro_sdk.errors import InvalidRequest, UnsupportedParameter, Violation

SERVER = "maestro"
PREFIX = f"mcp__{SERVER}__"
"""Claude Code's names of the tools of a server begin with it."""
GO_ON = "Continue."
_LONGEST_NAME = 128

_EFFORTS: dict[int, str] = {
    ReasoningEffort.REASONING_EFFORT_MINIMAL: "low",
    ReasoningEffort.REASONING_EFFORT_LOW: "low",
    ReasoningEffort.REASONING_EFFORT_MEDIUM: "medium",
    ReasoningEffort.REASONING_EFFORT_HIGH: "high",
    ReasoningEffort.REASONING_EFFORT_MAX: "max",
}
_NOT_TAKEN = (
    *("temperature", "top_p", "seed", "logprobs", "stop", "response_format", "cache"),
    "provider_options",
)

Block = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class OfferedTool:
    """A tool, under its name without `PREFIX`."""

    name: str
    description: str
    schema: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Run:
    """What one run is given. Either there is a `prompt`, or `pending`: the call that waits, and its result."""

    outgoing: Outgoing
    system: str
    past: Sequence[Mapping[str, Any]]
    prompt: Sequence[Block]
    pending: tuple[Block, Block] | None
    tools: Sequence[OfferedTool]
    effort: str
    thinking: Mapping[str, Any] | None
    max_tokens: int | None


def to_wire(request: ChatRequest, model: ClaudeModel) -> Run:
    """The run that answers `request`; what it can't obey becomes a warning, or under `strict` one error for all."""
    notes = Notes(request.strict)
    name = model.model.name
    names = _names(request)
    messages = to_messages(request, name, lambda tool: names.get(tool, tool), (), {"type": "ephemeral"}, notes)
    for field in _NOT_TAKEN:
        if _is_set(request, field):
            notes.unsupported(field, "Claude Code does not take it")
    tools = _tools(request, names, notes)
    effort, thinking = _reason(request, model, notes)
    past, prompt, pending = _split(messages)
    notes.settle()
    outgoing = Outgoing({}, name, notes.warnings, {new: old for old, new in names.items()}, (), PROVIDER)
    return Run(
        outgoing=outgoing,
        system=request.system,
        past=past,
        prompt=prompt,
        pending=pending,
        tools=tools,
        effort=effort,
        thinking=thinking,
        max_tokens=request.max_tokens if request.HasField("max_tokens") else None,
    )


def _is_set(request: ChatRequest, field: str) -> bool:
    match field:
        case "stop":
            return bool(request.stop)
        case "provider_options":
            return PROVIDER in request.provider_options
        case "response_format":
            return request.response_format.WhichOneof("kind") not in {None, "text"}
        case _:
            return any(found.name == field for found, _ in request.ListFields())


def _names(request: ChatRequest) -> dict[str, str]:
    """Claude Code's name by the contract's."""
    names: dict[str, str] = {}
    for number, tool in enumerate(request.tools):
        new = PREFIX + tool.name.replace(".", "_")
        path = f"tools[{number}].name"
        if new in names.values():
            raise InvalidRequest.at(path, f"is {new!r} for Claude Code, as another tool's name is")
        if len(new) > _LONGEST_NAME:
            why = f"is too long: Claude Code puts {PREFIX!r} before it, and takes {_LONGEST_NAME} characters"
            raise UnsupportedParameter(f"{path}: {why}", violations=[Violation(path, why)])
        names[tool.name] = new
    return names


def _tools(request: ChatRequest, names: Mapping[str, str], notes: Notes) -> list[OfferedTool]:
    choice = request.tool_choice
    allowed = frozenset(choice.names) or frozenset(names)
    for number, name in enumerate(choice.names):
        if name not in names:
            raise InvalidRequest.at(f"tool_choice.names[{number}]", f"there is no tool {name!r}")
    match choice.mode:
        case ToolChoiceMode.TOOL_CHOICE_MODE_NONE:
            return []
        case ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED | ToolChoiceMode.TOOL_CHOICE_MODE_NAMED:
            notes.unsupported("tool_choice.mode", "Claude Code can't be forced to call a tool; it decides itself")
        case _:
            pass
    if choice.HasField("parallel") and not choice.parallel:
        notes.unsupported("tool_choice.parallel", "Claude Code decides how many calls it makes at once")
    offered: list[OfferedTool] = []
    for number, tool in enumerate(request.tools):
        if tool.name in allowed:
            schema = parse_schema(tool.input_schema, f"tools[{number}].input_schema")
            if tool.strict:
                notes.unsupported(f"tools[{number}].strict", "Claude Code does not enforce schemas")
            offered.append(OfferedTool(names[tool.name].removeprefix(PREFIX), tool.description, schema))
    return offered


def _reason(request: ChatRequest, model: ClaudeModel, notes: Notes) -> tuple[str, Mapping[str, Any] | None]:
    if not request.HasField("reasoning"):
        return "", None
    wanted = request.reasoning
    if wanted.effort == ReasoningEffort.REASONING_EFFORT_OFF:
        if model.wire.disable == "disabled":
            return "", {"type": "disabled"}
        notes.unsupported("reasoning.effort", f"{model.model.name} always thinks; the lowest effort is used")
        return "low", None
    if wanted.HasField("budget_tokens"):
        notes.unsupported("reasoning.budget_tokens", "Claude Code takes an effort, no budget")
    return _EFFORTS.get(wanted.effort, ""), {"type": "adaptive"}


def _split(
    messages: Sequence[Mapping[str, Any]],
) -> tuple[Sequence[Mapping[str, Any]], Sequence[Block], tuple[Block, Block] | None]:
    """The past of the session, the prompt, and the call that waits for its result."""
    *past, last = messages
    if last["role"] != "user":
        raise InvalidRequest.at("messages", "has to end with the user's turn or with results of tools")
    results = [block for block in last["content"] if block["type"] == "tool_result"]
    rest = [block for block in last["content"] if block["type"] != "tool_result"]
    if not results:
        return past, rest, None
    if rest:
        return [*past, {"role": "user", "content": results}], rest, None
    calls = {block["id"]: block for block in past[-1]["content"] if is_call(block)} if past else {}
    plain = [found for found in results if found["tool_use_id"] in calls and _is_plain(found)]
    if not plain:
        return [*past, {"role": "user", "content": results}], [{"type": "text", "text": GO_ON}], None
    # One result comes from the tool itself, the others stand in the past. Large ones may be cut on that way.
    waiting = min(plain, key=_length)
    others = [found for found in results if found is not waiting]
    past = [*past, {"role": "user", "content": others}] if others else past
    return past, (), (calls[waiting["tool_use_id"]], waiting)


def is_call(block: Any) -> bool:
    # Parts that only the provider understands are text that is not looked into.
    return isinstance(block, dict) and cast("Block", block)["type"] == "tool_use"


def _is_plain(result: Block) -> bool:
    return all(block["type"] == "text" for block in result.get("content", ()))


def _length(result: Block) -> int:
    return sum(len(block["text"]) for block in result.get("content", ()))
