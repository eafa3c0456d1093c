"""What a request needs that its model does not have, and by which means it is made."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum

from maestro.llm.v1.chat_pb2 import ChatRequest, ToolChoiceMode
from maestro.llm.v1.model_pb2 import Feature, FeatureSupport, Model, Support
from maestro_sdk.adapter.models import support_of
from maestro_sdk.errors import CapabilityUnavailable, InvalidRequest

_NONE = ToolChoiceMode.TOOL_CHOICE_MODE_NONE
_FORCED = frozenset({ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED, ToolChoiceMode.TOOL_CHOICE_MODE_NAMED})
_MOST_STOPS = 4
"""Stop texts that every server takes."""
_TOOL_PARTS = frozenset({"tool_call", "tool_result"})


class Means(Enum):
    """How something is met; the value is what `provider_metadata` says."""

    NATIVE = "native"
    STRUCTURED = "structured_output"
    PROMPT = "prompt"


@dataclass(frozen=True, slots=True)
class Abilities:
    """What a model has natively, as far as polyfills go by it."""

    tools: bool
    tool_choice: bool
    json_schema: bool
    system: bool
    stop: bool

    @classmethod
    def of(cls, model: Model) -> Abilities:
        """What `model` claims."""

        def native(feature: Feature.ValueType) -> bool:
            return support_of(model, feature) == Support.SUPPORT_NATIVE

        return cls(
            native(Feature.FEATURE_TOOLS),
            native(Feature.FEATURE_TOOL_CHOICE),
            native(Feature.FEATURE_JSON_SCHEMA),
            native(Feature.FEATURE_SYSTEM_PROMPT),
            native(Feature.FEATURE_STOP_SEQUENCES),
        )

    @property
    def complete(self) -> bool:
        """Whether there is nothing to add."""
        return self.tools and self.tool_choice and self.json_schema


@dataclass(frozen=True, slots=True)
class Plan:
    """How a request is served by a model that lacks something of it.

    With `tools` NATIVE the model makes the calls itself; else `offered` names those that it may call (none: no call is
    looked for), `must` demands a call and `single` allows only one. `narrowed` keeps all but `offered` from the model,
    since it can't be told to leave them alone. `history` turns earlier calls and results into text. `form` is how the
    response format is met. `system` tells whether the model takes system text, `halt` that it is to be stopped where it
    begins to make up the result of a call.
    """

    tools: Means = Means.NATIVE
    form: Means = Means.NATIVE
    offered: tuple[str, ...] = ()
    must: bool = False
    single: bool = False
    narrowed: bool = False
    history: bool = False
    system: bool = True
    halt: bool = False

    @property
    def calls(self) -> bool:
        """Whether calls are read out of the model's text."""
        return self.tools is not Means.NATIVE and bool(self.offered)


def plan_of(request: ChatRequest, abilities: Abilities, constrained: bool) -> Plan | None:
    """The plan for `request`, None when the model meets all of it natively.

    `constrained`: the server can hold an answer to a JSON schema. Raises `CapabilityUnavailable` when something had to
    be polyfilled under `routing.require_native`, and `InvalidRequest` for a rule that the tools can't meet.
    """
    if abilities.complete:
        return None
    missing: list[Feature.ValueType] = []
    choice = request.tool_choice
    made = Means.STRUCTURED if constrained else Means.PROMPT
    tools, offered, narrowed = Means.NATIVE, (), False
    past = not abilities.tools and _has_tool_turns(request)
    wanted = bool(request.tools) and choice.mode != _NONE
    forced = choice.mode in _FORCED
    if not abilities.tools and (wanted or past):
        missing.append(Feature.FEATURE_TOOLS)
    if request.tools and not abilities.tool_choice and (forced or choice.names or choice.mode == _NONE):
        missing.append(Feature.FEATURE_TOOL_CHOICE)
    if not abilities.tools or Feature.FEATURE_TOOL_CHOICE in missing:
        offered = _offered(request)
        if not abilities.tools or forced:
            tools = made if request.tools or past else Means.NATIVE
        else:
            narrowed = True
    calls = tools is not Means.NATIVE and bool(offered)
    form = Means.NATIVE
    if request.response_format.WhichOneof("kind") in {"json", "json_schema"}:
        if not abilities.json_schema:
            missing.append(Feature.FEATURE_JSON_SCHEMA)
            form = made
        elif calls:
            # The model's own response format would leave no room for calls.
            form = made
    missing += [
        feature for feature in request.routing.required if feature not in missing and _lacks(abilities, feature)
    ]
    if missing and request.routing.require_native:
        names = ", ".join(Feature.Name(feature).removeprefix("FEATURE_") for feature in missing)
        raise CapabilityUnavailable(f"{request.model} has no {names} of its own, and routing.require_native is set")
    if tools is Means.NATIVE and form is Means.NATIVE and not narrowed:
        return None
    return Plan(
        tools=tools,
        form=form,
        offered=offered,
        must=calls and forced,
        single=calls and _single(request),
        narrowed=narrowed,
        history=tools is not Means.NATIVE,
        system=abilities.system,
        halt=calls and tools is Means.PROMPT and abilities.stop and len(request.stop) < _MOST_STOPS,
    )


def polyfilled(model: Model, constrained: bool) -> Model:
    """`model` with the features that polyfills add."""
    abilities = Abilities.of(model)
    if support_of(model, Feature.FEATURE_CHAT) != Support.SUPPORT_NATIVE or abilities.complete:
        return model
    added: list[Feature.ValueType] = []
    if not abilities.tools:
        added += [Feature.FEATURE_TOOLS, Feature.FEATURE_PARALLEL_TOOLS]
        if constrained and support_of(model, Feature.FEATURE_STREAMING) == Support.SUPPORT_NATIVE:
            added.append(Feature.FEATURE_STREAMED_TOOL_ARGS)
    if not abilities.tool_choice:
        added.append(Feature.FEATURE_TOOL_CHOICE)
    if not abilities.json_schema:
        added.append(Feature.FEATURE_JSON_SCHEMA)
    copy = Model()
    copy.CopyFrom(model)
    del copy.features[:]
    copy.features.extend(entry for entry in model.features if entry.feature not in added)
    copy.features.extend(FeatureSupport(feature=name, support=Support.SUPPORT_POLYFILLED) for name in added)
    return copy


def _lacks(abilities: Abilities, feature: Feature.ValueType) -> bool:
    match feature:
        case Feature.FEATURE_TOOLS | Feature.FEATURE_PARALLEL_TOOLS | Feature.FEATURE_STREAMED_TOOL_ARGS:
            return not abilities.tools
        case Feature.FEATURE_TOOL_CHOICE:
            return not abilities.tool_choice
        case Feature.FEATURE_JSON_SCHEMA:
            return not abilities.json_schema
        case _:
            # What no polyfill makes is as native as it is.
            return False


def _offered(request: ChatRequest) -> tuple[str, ...]:
    """The tools that the rule leaves. Raises `InvalidRequest` where there is nothing to obey it with."""
    choice = request.tool_choice
    given = [tool.name for tool in request.tools]
    if choice.mode == _NONE:
        return ()
    if choice.mode in _FORCED and not given:
        raise InvalidRequest.at("tool_choice.mode", "asks for a call, but there are no tools")
    if choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_NAMED and len(choice.names) != 1:
        raise InvalidRequest.at("tool_choice.names", "NAMED needs exactly one name")
    for number, name in enumerate(choice.names if given else ()):
        if name not in given:
            raise InvalidRequest.at(f"tool_choice.names[{number}]", f"there is no tool {name!r}")
    return tuple(name for name in given if not choice.names or name in choice.names)


def _single(request: ChatRequest) -> bool:
    """Whether one call is all; a named tool is called once unless more are asked for."""
    choice = request.tool_choice
    if choice.HasField("parallel"):
        return not choice.parallel
    return choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_NAMED


def _has_tool_turns(request: ChatRequest) -> bool:
    return any(part.WhichOneof("kind") in _TOOL_PARTS for message in request.messages for part in message.parts)
