"""Tools and the rule for calling them, as Converse has them: `toolConfig`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from maestro.llm.v1.chat_pb2 import ChatRequest, ToolChoiceMode
from maestro.llm.v1.model_pb2 import Feature
from maestro_adapter_bedrock.models import BedrockModel
from maestro_sdk.adapter.notes import Notes
from maestro_sdk.adapter.plain_schema import Limits, plain_schema
from maestro_sdk.adapter.tool_names import ToolNames
from maestro_sdk.errors import InvalidRequest, UnsupportedParameter, Violation

if TYPE_CHECKING:
    from maestro_adapter_bedrock.cache import CachePoint

NO_CALLS = "Do not call any tool in this turn."

_MAX_NAME = 64
# What Anthropic's own wire takes, and these models everywhere.
_CLAUDE = Limits(root=frozenset({"allOf", "anyOf", "oneOf"}), names="[a-zA-Z0-9_.-]{1,64}")
_ANY = Limits()


class ToolPlan:
    """What is offered: `config` is `toolConfig` or None, `instruction` what the wire can only be told in words."""

    __slots__ = ("config", "forced", "instruction")

    def __init__(self, config: dict[str, Any] | None = None, forced: bool = False, instruction: str = "") -> None:
        self.config = config
        self.forced = forced
        self.instruction = instruction


def name_tools(request: ChatRequest) -> ToolNames:
    """The wire's names of the tools. Raises `InvalidRequest` for two tools of one name."""
    seen: set[str] = set()
    for number, tool in enumerate(request.tools):
        if tool.name in seen:
            raise InvalidRequest.at(f"tools[{number}].name", f"is {tool.name!r}, as another tool's name is")
        seen.add(tool.name)
    return ToolNames((tool.name for tool in request.tools), _MAX_NAME)


def plan_tools(
    request: ChatRequest,
    names: ToolNames,
    called: Sequence[str],
    model: BedrockModel,
    point: CachePoint | None,
    notes: Notes,
) -> ToolPlan:
    """Decides. `called` are the wire's names of the tools that the conversation has called before."""
    if request.tools and not model.has(Feature.FEATURE_TOOLS):
        message = f"{model.name} has no tools"
        raise UnsupportedParameter(f"tools: {message}", violations=[Violation("tools", message)])
    choice = request.tool_choice
    _check(request)
    none = choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_NONE
    if none and not called:
        # The wire has no `none`: what is not offered is not called.
        return ToolPlan()
    tools = _specs(request, names, model, notes)
    instruction = ""
    if called and (none or not tools):
        # Bedrock refuses a conversation with calls in it unless tools are offered.
        field = "tool_choice.mode" if none and tools else "tools"
        notes.unsupported(field, "Bedrock wants tools for a conversation with calls; the model is told to call none")
        instruction = NO_CALLS
        tools = tools or [{"toolSpec": {"name": name, "inputSchema": {"json": {"type": "object"}}}} for name in called]
    if not tools:
        return ToolPlan()
    config: dict[str, Any] = {"tools": tools}
    if point is not None:
        tools.append(point)
    wanted = None if none else _choice(request, names, model, notes)
    if wanted is not None:
        config["toolChoice"] = wanted
    return ToolPlan(config, forced=wanted is not None and "auto" not in wanted, instruction=instruction)


def _check(request: ChatRequest) -> None:
    choice, given = request.tool_choice, {tool.name for tool in request.tools}
    forced = choice.mode in {ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED, ToolChoiceMode.TOOL_CHOICE_MODE_NAMED}
    if forced and not given:
        raise InvalidRequest.at("tool_choice.mode", "asks for a call, but there are no tools")
    if choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_NAMED and len(choice.names) != 1:
        raise InvalidRequest.at("tool_choice.names", "NAMED needs exactly one name")
    for number, name in enumerate(choice.names):
        if name not in given:
            raise InvalidRequest.at(f"tool_choice.names[{number}]", f"there is no tool {name!r}")


def _specs(request: ChatRequest, names: ToolNames, model: BedrockModel, notes: Notes) -> list[Any]:
    choice = request.tool_choice
    named = choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_NAMED
    # A subset is offered by leaving the others out; beside a forced call they stay, for the provider's cache.
    subset = not (named and "tool" in model.wire.choices) and choice.mode != ToolChoiceMode.TOOL_CHOICE_MODE_NONE
    allowed = frozenset[str](choice.names if subset else ())
    specs: list[Any] = []
    for number, tool in enumerate(request.tools):
        if allowed and tool.name not in allowed:
            continue
        path = f"tools[{number}]"
        spec: dict[str, Any] = {"name": names[tool.name]}
        if tool.description.strip():
            spec["description"] = tool.description
        spec["inputSchema"] = {"json": _schema(tool.input_schema, f"{path}.input_schema", model, notes)}
        if tool.strict:
            if model.has(Feature.FEATURE_JSON_SCHEMA):
                spec["strict"] = True
            else:
                notes.unsupported(f"{path}.strict", f"{model.name} does not enforce schemas")
        specs.append({"toolSpec": spec})
    return specs


def _choice(request: ChatRequest, names: ToolNames, model: BedrockModel, notes: Notes) -> dict[str, Any] | None:
    """The rule to send, None for none: then the model decides."""
    if not request.HasField("tool_choice"):
        return None
    choice, taken = request.tool_choice, model.wire.choices
    if choice.HasField("parallel") and not choice.parallel:
        notes.unsupported("tool_choice.parallel", "Bedrock can't be told to make one call at most")
    match choice.mode:
        case ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED if "any" in taken:
            return {"any": {}}
        case ToolChoiceMode.TOOL_CHOICE_MODE_NAMED if "tool" in taken:
            return {"tool": {"name": names[choice.names[0]]}}
        case ToolChoiceMode.TOOL_CHOICE_MODE_NAMED if "any" in taken:
            # Only that tool is offered: any is this one.
            return {"any": {}}
        case ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED | ToolChoiceMode.TOOL_CHOICE_MODE_NAMED:
            notes.unsupported("tool_choice.mode", f"{model.name} can't be forced to call a tool; it decides itself")
        case _:
            pass
    return {"auto": {}} if "auto" in taken else None


def _schema(text: str, path: str, model: BedrockModel, notes: Notes) -> Any:
    """A tool's schema as it was given, order of keys and numbers included, as far as the model takes it."""
    limits = _CLAUDE if model.lineage.startswith("anthropic.") else _ANY
    if model.wire.schema_keys:
        limits = Limits(keys=model.wire.schema_keys, references=False)
    plain = plain_schema(text, path, limits)
    notes.lost(path, [(loss.field.removeprefix(f"{path}#"), loss.message) for loss in plain.losses])
    return plain.fragment
