"""Tools and the rule for calling them, as Anthropic's wire has them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import orjson

from maestro.llm.v1.chat_pb2 import ChatRequest, Tool, ToolChoiceMode
from maestro_adapter_claude.models import ClaudeModel
from maestro_adapter_claude.schema import fit_schema
from maestro_adapter_claude.tool_input import fit_input
from maestro_sdk.adapter.notes import Notes
from maestro_sdk.errors import InvalidRequest

if TYPE_CHECKING:
    from anthropic.types import CacheControlEphemeralParam, ToolChoiceParam, ToolParam


def to_tools(
    request: ChatRequest,
    names: Mapping[str, str],
    model: ClaudeModel,
    cache_control: CacheControlEphemeralParam | None,
    notes: Notes,
) -> list[ToolParam]:
    """The tools that the request offers; the last one carries `cache_control` where given."""
    allowed = _allowed(request, model)
    tools: list[ToolParam] = []
    for number, tool in enumerate(request.tools):
        if allowed and tool.name not in allowed:
            continue
        wire: ToolParam = {
            "name": names[tool.name],
            "input_schema": _schema(tool, f"tools[{number}].input_schema", notes),
        }
        if tool.description:
            wire["description"] = tool.description
        if tool.HasField("strict"):
            wire["strict"] = tool.strict
        tools.append(wire)
    if tools and cache_control is not None:
        tools[-1]["cache_control"] = cache_control
    return tools


def _allowed(request: ChatRequest, model: ClaudeModel) -> frozenset[str]:
    """The tools that the rule leaves, empty for all. The wire has no subsets: the others are not sent."""
    choice = request.tool_choice
    if not choice.names or choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_NONE:
        return frozenset()
    given = {tool.name for tool in request.tools}
    for number, name in enumerate(choice.names):
        if name not in given:
            raise InvalidRequest.at(f"tool_choice.names[{number}]", f"there is no tool {name!r}")
    if choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_NAMED and model.wire.forced_tools:
        # The other tools stay, so that the prompt stays the same for the provider's cache.
        return frozenset()
    return frozenset(choice.names)


def to_tool_choice(
    request: ChatRequest, names: Mapping[str, str], model: ClaudeModel, notes: Notes
) -> ToolChoiceParam | None:
    """The rule for calling tools, None when there is none to send."""
    if not request.HasField("tool_choice"):
        return None
    choice = request.tool_choice
    mode = choice.mode
    forced = mode in {ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED, ToolChoiceMode.TOOL_CHOICE_MODE_NAMED}
    if not request.tools:
        if forced:
            raise InvalidRequest.at("tool_choice.mode", "asks for a call, but there are no tools")
        return None
    if mode == ToolChoiceMode.TOOL_CHOICE_MODE_NAMED and len(choice.names) != 1:
        raise InvalidRequest.at("tool_choice.names", "NAMED needs exactly one name")
    if mode == ToolChoiceMode.TOOL_CHOICE_MODE_NONE:
        return {"type": "none"}
    if forced and not model.wire.forced_tools:
        notes.unsupported("tool_choice.mode", f"{model.model.name} can't be forced to call a tool; it decides itself")
        forced = False
    wire: Any
    if not forced:
        wire = {"type": "auto"}
    elif mode == ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED:
        wire = {"type": "any"}
    else:
        wire = {"type": "tool", "name": names[choice.names[0]]}
    if choice.HasField("parallel"):
        wire["disable_parallel_tool_use"] = not choice.parallel
    return wire


def _schema(tool: Tool, path: str, notes: Notes) -> Any:
    """The schema of a tool's input; a strict one is within the subset that the provider enforces."""
    schema, losses = fit_input(tool.input_schema, path)
    if tool.strict:
        schema, inner = fit_schema(bytes(orjson.dumps(schema)).decode(), path)
        losses = (*losses, *inner)
    notes.lost(path, losses)
    return schema
