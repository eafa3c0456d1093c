"""Tools and the rule for calling them, as Gemini's wire has them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maestro.llm.v1.chat_pb2 import ChatRequest, Tool, ToolChoiceMode
from maestro_adapter_vertex.schema import to_parameters
from maestro_sdk.adapter.notes import Notes
from maestro_sdk.errors import InvalidRequest

_MODES: Mapping[int, str] = {
    ToolChoiceMode.TOOL_CHOICE_MODE_UNSPECIFIED: "AUTO",
    ToolChoiceMode.TOOL_CHOICE_MODE_AUTO: "AUTO",
    ToolChoiceMode.TOOL_CHOICE_MODE_NONE: "NONE",
    ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED: "ANY",
    ToolChoiceMode.TOOL_CHOICE_MODE_NAMED: "ANY",
}


def tool_names(tools: Sequence[Tool]) -> dict[str, str]:
    """The wire's name by the contract's, where they differ: on the wire a name begins with a letter or `_`."""
    given = {tool.name for tool in tools}
    renamed: dict[str, str] = {}
    seen: set[str] = set()
    for number, tool in enumerate(tools):
        if tool.name in seen:
            raise InvalidRequest.at(f"tools[{number}].name", f"is {tool.name!r}, as another tool's name is")
        seen.add(tool.name)
        if not (tool.name[:1].isalpha() or tool.name.startswith("_")):
            new = f"_{tool.name}"[:128]
            if new in given or new in renamed.values():
                raise InvalidRequest.at(f"tools[{number}].name", f"is {new!r} on the wire, as another tool's name is")
            renamed[tool.name] = new
    return renamed


def to_tools(request: ChatRequest, names: Mapping[str, str], notes: Notes) -> list[dict[str, Any]]:
    """The tools that the request offers, in the one list that the wire has for them."""
    allowed = _allowed(request)
    declarations: list[dict[str, Any]] = []
    for number, tool in enumerate(request.tools):
        if allowed and tool.name not in allowed:
            continue
        path = f"tools[{number}].input_schema"
        parameters = to_parameters(tool.input_schema, path)
        notes.lost(path, [(loss.pointer, loss.message) for loss in parameters.losses])
        if tool.HasField("strict") and tool.strict:
            notes.unsupported(f"tools[{number}].strict", "the provider has no such rule for a single tool")
        declaration: dict[str, Any] = {"name": names.get(tool.name, tool.name)}
        if tool.description:
            declaration["description"] = tool.description
        if parameters.schema is not None:
            declaration["parameters"] = parameters.schema
        declarations.append(declaration)
    return [{"functionDeclarations": declarations}] if declarations else []


def _allowed(request: ChatRequest) -> frozenset[str]:
    """The tools that a rule leaves which the wire can't say, empty for all: it has subsets for forced calls only."""
    choice = request.tool_choice
    if not choice.names:
        return frozenset()
    given = {tool.name for tool in request.tools}
    for number, name in enumerate(choice.names):
        if name not in given:
            raise InvalidRequest.at(f"tool_choice.names[{number}]", f"there is no tool {name!r}")
    return frozenset(choice.names) if _MODES[choice.mode] == "AUTO" else frozenset()


def to_tool_config(request: ChatRequest, names: Mapping[str, str], notes: Notes) -> dict[str, Any] | None:
    """The rule for calling tools, None when there is none to send."""
    if not request.HasField("tool_choice"):
        return None
    choice = request.tool_choice
    mode = _MODES[choice.mode]
    if not request.tools:
        if mode == "ANY":
            raise InvalidRequest.at("tool_choice.mode", "asks for a call, but there are no tools")
        return None
    if choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_NAMED and len(choice.names) != 1:
        raise InvalidRequest.at("tool_choice.names", "NAMED needs exactly one name")
    if choice.HasField("parallel") and not choice.parallel and mode != "NONE":
        notes.unsupported("tool_choice.parallel", "the provider decides how many calls stand in an answer")
    config: dict[str, Any] = {"mode": mode}
    if mode == "ANY" and choice.names:
        config["allowedFunctionNames"] = [names.get(name, name) for name in choice.names]
    return {"functionCallingConfig": config}
