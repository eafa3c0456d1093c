"""From the contract to the wire: a `ChatRequest` becomes the JSON of one chat-completions call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from maestro.llm.v1.chat_pb2 import (
    ChatRequest,
    ReasoningEffort,
    ResponseFormat,
    Tool,
    ToolChoiceMode,
    Warning,  # noqa: A004 - the contract's name
)
from maestro_sdk.adapter.chat_completions.caching import mark_cache
from maestro_sdk.adapter.chat_completions.content import messages
from maestro_sdk.adapter.chat_completions.dialect import Dialect
from maestro_sdk.adapter.notes import refuse_warnings
from maestro_sdk.adapter.options import merge_patch, own_options, refuse_reserved
from maestro_sdk.adapter.plain_schema import plain_schema
from maestro_sdk.adapter.strict_subset import Strict, fit_strict
from maestro_sdk.adapter.tool_names import ToolNames
from maestro_sdk.adapter.tool_schema import parse_any_schema, parse_schema
from maestro_sdk.errors import InvalidRequest, UnsupportedParameter

# What a caller may not set by `provider_options`: the mesh decides it, or the answer could not be read.
_RESERVED: Mapping[str, str] = {
    "model": "the model is chosen by `model`",
    "messages": "the conversation stands in `messages`",
    "stream": "the kind of the call decides",
    "n": "one answer per request; send the request several times",
    "functions": "tools stand in `tools`",
    "function_call": "the rule for calling tools stands in `tool_choice`",
    "modalities": "answers are text",
    "audio": "answers are text",
}

_REASONS = 3
"""How many of the reasons against a schema are told."""


@dataclass(slots=True)
class WireRequest:
    """One call: its JSON body as a mapping, and what was not done as asked."""

    body: dict[str, Any]
    warnings: list[Warning] = field(default_factory=list[Warning])
    tool_names: Mapping[str, str] = field(default_factory=dict[str, str])
    """The contract's name by the wire's, for the tools whose names the wire does not take; `Stream` turns them back."""

    def encode(self) -> bytes:
        """The bytes to send."""
        return orjson.dumps(self.body)


def to_wire(request: ChatRequest, dialect: Dialect, *, stream: bool = False) -> WireRequest:
    """The call that asks for `request`.

    Raises `InvalidRequest` for what breaks the contract and `UnsupportedParameter` for content that the dialect can't
    carry, each with the path of the field; under `strict` also for parameters that would else be dropped with a
    warning.
    """
    wire = WireRequest({"model": dialect.wire_name or request.model.removeprefix(f"{dialect.provider}/")})
    body = wire.body
    ends: dict[int, int] | None = {} if request.HasField("cache") else None
    names: Mapping[str, str] | None = None
    if dialect.tool_name_length:
        names = ToolNames([tool.name for tool in request.tools], dialect.tool_name_length)
        wire.tool_names = names.renamed
    body["messages"] = messages(request, dialect, wire.warnings, ends, names)
    if dialect.continue_final and _is_begun(body["messages"][-1]):
        # Else the template would close the turn, and the model begin another one.
        body["add_generation_prompt"] = False
        body["continue_final_message"] = True
    _tools(request, dialect, wire, names)
    _sampling(request, dialect, wire)
    _format(request.response_format, dialect, wire)
    _reasoning(request, dialect, wire)
    if ends is not None:
        mark_cache(request, dialect, body, ends, wire.warnings)
    if stream:
        body["stream"] = True
        if dialect.stream_options:
            body["stream_options"] = dict(dialect.stream_options)
    if dialect.provider in request.provider_options:
        options = own_options(request.provider_options, dialect.provider)
        if options.get("n") == 1:
            del options["n"]
        refuse_reserved(options, dialect.provider, _RESERVED)
        merge_patch(body, options)
    if request.strict:
        refuse_warnings(wire.warnings)
    return wire


def _is_begun(message: Mapping[str, Any]) -> bool:
    """Whether the wire's last message is an answer that was begun, as text."""
    return message["role"] == "assistant" and bool(message.get("content")) and "tool_calls" not in message


def _sampling(request: ChatRequest, dialect: Dialect, wire: WireRequest) -> None:
    body = wire.body
    for name in ("temperature", "top_p"):
        if request.HasField(name):
            if dialect.temperature:
                body[name] = getattr(request, name)
            else:
                _unsupported(wire, name, f"this model takes no {name}")
    if request.HasField("max_tokens"):
        body[dialect.max_tokens] = request.max_tokens
    if request.stop:
        if dialect.stop_limit:
            body["stop"] = list(request.stop[: dialect.stop_limit])
        for position in range(dialect.stop_limit, len(request.stop)):
            why = f"takes at most {dialect.stop_limit} stop texts" if dialect.stop_limit else "takes no stop texts"
            _unsupported(wire, f"stop[{position}]", f"this model {why}")
    if request.HasField("seed"):
        if dialect.seed:
            body["seed"] = request.seed
        else:
            _unsupported(wire, "seed", "this model takes no seed")
    if request.HasField("logprobs"):
        if dialect.logprobs:
            body["logprobs"] = True
            if request.logprobs.top:
                body["top_logprobs"] = request.logprobs.top
        else:
            _unsupported(wire, "logprobs", "this model returns no log probabilities")


def _reasoning(request: ChatRequest, dialect: Dialect, wire: WireRequest) -> None:
    bound = dialect.tools_effort if "tools" in wire.body else ""
    if bound:
        wire.body["reasoning_effort"] = bound
    if not request.HasField("reasoning"):
        return
    reasoning = request.reasoning
    if reasoning.HasField("budget_tokens"):
        _unsupported(wire, "reasoning.budget_tokens", "reasoning is set by effort here, not by a number of tokens")
    if reasoning.effort == ReasoningEffort.REASONING_EFFORT_UNSPECIFIED:
        return
    word = dialect.effort(reasoning.effort)
    if word and bound and word != bound:
        _unsupported(wire, "reasoning.effort", f"with tools, this model takes only the effort {bound!r} on this wire")
    elif word:
        wire.body["reasoning_effort"] = word
    elif dialect.efforts or reasoning.effort != ReasoningEffort.REASONING_EFFORT_OFF:
        # A model that never reasons obeys `off` by itself.
        name = ReasoningEffort.Name(reasoning.effort).removeprefix("REASONING_EFFORT_").lower()
        known = f"takes the efforts {', '.join(dialect.efforts)}" if dialect.efforts else "does not reason"
        _unsupported(wire, "reasoning.effort", f"this model {known}, not {name}")


def _format(form: ResponseFormat, dialect: Dialect, wire: WireRequest) -> None:
    match form.WhichOneof("kind"):
        case None | "text":
            pass
        case "json":
            if dialect.json_object:
                wire.body["response_format"] = {"type": "json_object"}
            else:
                _unsupported(wire, "response_format.json", "this model has no JSON mode")
        case "json_schema":
            if not dialect.json_schema:
                _unsupported(wire, "response_format.json_schema", "this model can't be held to a JSON Schema")
                return
            asked = form.json_schema
            schema: dict[str, Any] = {"name": asked.name or "answer"}
            if asked.description:
                schema["description"] = asked.description
            path = "response_format.json_schema"
            document = parse_any_schema(asked.schema, f"{path}.schema")
            strict = asked.strict
            if strict and dialect.strict_subset is not None:
                fitted = fit_strict(asked.schema, document, dialect.strict_subset)
                strict = _enforceable(fitted, path, "schema", dialect, wire)
                document = fitted.document or document
            schema["schema"] = document
            if asked.HasField("strict"):
                schema["strict"] = strict
            wire.body["response_format"] = {"type": "json_schema", "json_schema": schema}


def _tools(request: ChatRequest, dialect: Dialect, wire: WireRequest, wire_names: Mapping[str, str] | None) -> None:
    if not (request.tools or request.HasField("tool_choice")):
        return
    body, choice = wire.body, request.tool_choice
    mode, names = choice.mode, list(choice.names)
    known = {tool.name for tool in request.tools}
    for position, name in enumerate(names):
        if name not in known:
            raise InvalidRequest.at(f"tool_choice.names[{position}]", f"no tool is named {name!r}")
    if mode == ToolChoiceMode.TOOL_CHOICE_MODE_NAMED and len(names) != 1:
        raise InvalidRequest.at("tool_choice.names", "the mode NAMED needs exactly one name")
    if not request.tools:
        if mode == ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED:
            raise InvalidRequest.at("tool_choice.mode", "REQUIRED needs tools; give `tools` or leave `tool_choice` out")
        return
    if mode == ToolChoiceMode.TOOL_CHOICE_MODE_NONE and not dialect.tool_choice:
        return  # Without tools none can be called.
    if not dialect.tools:
        message = "this model can't call tools here; choose one with the feature TOOLS"
        raise UnsupportedParameter.at("tools", message)
    named = mode == ToolChoiceMode.TOOL_CHOICE_MODE_NAMED
    forbidden = mode == ToolChoiceMode.TOOL_CHOICE_MODE_NONE
    # Where the wire can't name a subset, offering only that subset says the same.
    by_list = bool(names) and not forbidden and not (dialect.tool_choice and (named or dialect.allowed_tools))
    body["tools"] = [
        _tool(tool, f"tools[{position}]", dialect, wire, wire_names)
        for position, tool in enumerate(request.tools)
        if not by_list or tool.name in names
    ]
    if request.HasField("tool_choice"):
        chosen = names if wire_names is None else [wire_names[name] for name in names]
        rule = _tool_choice(mode, chosen, dialect)
        if dialect.tool_choice:
            if rule is not None:
                body["tool_choice"] = rule
        elif rule not in (None, "auto"):
            _unsupported(wire, "tool_choice.mode", "this model can't be made to call a tool")
    if choice.HasField("parallel"):
        if dialect.parallel_tool_calls:
            body["parallel_tool_calls"] = choice.parallel
        else:
            _unsupported(wire, "tool_choice.parallel", "this model decides by itself whether calls stand side by side")


def _tool_choice(mode: ToolChoiceMode.ValueType, names: Sequence[str], dialect: Dialect) -> str | dict[str, Any] | None:
    match mode:
        case ToolChoiceMode.TOOL_CHOICE_MODE_NONE:
            return "none"
        case ToolChoiceMode.TOOL_CHOICE_MODE_NAMED:
            return {"type": "function", "function": {"name": names[0]}}
        case ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED:
            word = "required"
        case ToolChoiceMode.TOOL_CHOICE_MODE_AUTO:
            word = "auto"
        case ToolChoiceMode.TOOL_CHOICE_MODE_UNSPECIFIED:
            if not names:
                return None
            word = "auto"
        case _:
            raise UnsupportedParameter.at("tool_choice.mode", "the contract is newer than this adapter")
    if names and dialect.allowed_tools:
        allowed = [{"type": "function", "function": {"name": name}} for name in names]
        return {"type": "allowed_tools", "allowed_tools": {"mode": word, "tools": allowed}}
    return word


def _tool(
    tool: Tool, path: str, dialect: Dialect, wire: WireRequest, names: Mapping[str, str] | None
) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.name if names is None else names[tool.name]}
    if tool.description:
        function["description"] = tool.description
    parameters = _parameters(tool.input_schema, f"{path}.input_schema", dialect, wire)
    function["parameters"] = parameters
    if tool.HasField("strict"):
        if dialect.strict_tools and tool.strict and dialect.strict_subset is not None:
            fitted = fit_strict(tool.input_schema, parameters, dialect.strict_subset)
            if _enforceable(fitted, path, "input_schema", dialect, wire):
                function["parameters"] = fitted.document
                function["strict"] = True
        elif dialect.strict_tools:
            function["strict"] = tool.strict
        elif tool.strict:
            _unsupported(wire, f"{path}.strict", "this model does not hold arguments to their schema")
    return {"type": "function", "function": function}


def _parameters(text: str, path: str, dialect: Dialect, wire: WireRequest) -> Mapping[str, Any]:
    if dialect.schema_limits is None:
        return parse_schema(text, path)
    plain = plain_schema(text, path, dialect.schema_limits)
    for loss in plain.losses:
        message = f"{loss.field}: {loss.message}"
        wire.warnings.append(Warning(code="schema_rewritten", message=message, field=loss.field))
    return plain.document


def _enforceable(fitted: Strict, path: str, schema: str, dialect: Dialect, wire: WireRequest) -> bool:
    """Whether the schema can be enforced; tells the first reasons where it can't."""
    if fitted.document is not None:
        return True
    told = "; ".join(f"{path}.{schema}#{pointer}: {why}" for pointer, why in fitted.reasons[:_REASONS])
    more = len(fitted.reasons) - _REASONS
    further = f"; and {more} more" if more > 0 else ""
    message = f"{path}.strict was not sent: {dialect.provider} can't enforce this schema: {told}{further}"
    wire.warnings.append(Warning(code="schema_rewritten", message=message, field=f"{path}.strict"))
    return False


def _unsupported(wire: WireRequest, path: str, message: str) -> None:
    wire.warnings.append(Warning(code="unsupported_parameter", message=f"{path} was not sent: {message}", field=path))
