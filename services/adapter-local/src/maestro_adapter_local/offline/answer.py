"""What the offline model answers: a pure function of the request."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from maestro.llm.v1 import chat_pb2
from maestro.llm.v1.chat_pb2 import ChatRequest, FinishReason, ReasoningEffort, Tool, ToolChoiceMode
from maestro_adapter_local.offline import prose, tokens
from maestro_adapter_local.offline.conversation import Conversation
from maestro_adapter_local.offline.instance import dump, make_instance
from maestro_adapter_local.offline.literals import Literals
from maestro_adapter_local.offline.schema import BadSchema, TooHard
from maestro_sdk.errors import InvalidRequest, UnsupportedParameter, Violation

_CALL_WISH = re.compile(r"\b(?:use|using|call|calling|invoke|run)\b[^.!?\n]{0,40}\btools?\b", re.IGNORECASE)
_REFUSAL = re.compile(
    r"\b(?:don['\u2019]?t|do not|never|without|no need to)\b[^.!?\n]{0,20}\b(?:us(?:e|ing)|call(?:ing)?|tools?)\b",
    re.IGNORECASE,
)
_PARALLEL = re.compile(
    r"\b(?:parallel|at once|simultaneously|at the same time|all (?:the )?tools|both tools)\b", re.IGNORECASE
)
_MOST_CALLS = 16
_NO_SAMPLING = "the offline model doesn't sample: its answers are always the same"
_EFFORT_SENTENCES = {
    ReasoningEffort.REASONING_EFFORT_MINIMAL: 1,
    ReasoningEffort.REASONING_EFFORT_LOW: 2,
    ReasoningEffort.REASONING_EFFORT_MEDIUM: 3,
    ReasoningEffort.REASONING_EFFORT_HIGH: 4,
    ReasoningEffort.REASONING_EFFORT_MAX: 5,
}


@dataclass(frozen=True, slots=True)
class Call:
    """A tool call; `arguments` is JSON text."""

    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Answer:
    """An answer before limits are applied. `reason` and `usage` (counts by field) are set by scripts only."""

    text: str = ""
    calls: tuple[Call, ...] = ()
    reasoning: str = ""
    reason: FinishReason.ValueType = FinishReason.FINISH_REASON_UNSPECIFIED
    usage: Mapping[str, int] = field(default_factory=dict[str, int])
    warnings: tuple[chat_pb2.Warning, ...] = field(default=())


def digest_of(request: ChatRequest) -> bytes:
    """32 bytes that stand for the request: conversation, parameters and seed, without labels and wishes for routing."""
    if request.metadata or request.HasField("routing"):
        plain = ChatRequest()
        plain.CopyFrom(request)
        plain.ClearField("metadata")
        plain.ClearField("routing")
        request = plain
    return hashlib.blake2b(request.SerializeToString(deterministic=True), digest_size=32).digest()


def voice_of(request: ChatRequest) -> bytes:
    """32 bytes that choose the words: conversation and seed only, so that a limit cuts a text but never changes it."""
    heard = ChatRequest(model=request.model, system=request.system, messages=request.messages)
    if request.HasField("seed"):
        heard.seed = request.seed
    return hashlib.blake2b(heard.SerializeToString(deterministic=True), digest_size=32).digest()


def compose(request: ChatRequest, conversation: Conversation) -> Answer:
    """The answer to `request`. Raises `InvalidRequest` and `UnsupportedParameter` where a schema can't be met."""
    calls = choose_calls(request, conversation)
    if calls:
        answer = Answer(calls=calls)
    else:
        match request.response_format.WhichOneof("kind"):
            case "json_schema":
                answer = Answer(text=_structured(request, conversation))
            case "json":
                answer = Answer(text=dump({"model": "offline", "notice": prose.NOTICE, "text": conversation.question}))
            case _:
                answer = Answer(text=_text(conversation, voice_of(request)))
    return replace(answer, reasoning=_reasoning(request, conversation, answer), warnings=warnings_for(request))


def warnings_for(request: ChatRequest) -> tuple[chat_pb2.Warning, ...]:
    """What has no effect here. Raises `UnsupportedParameter` instead when the request is strict."""
    without_effect: list[tuple[str, str]] = []
    if request.HasField("temperature"):
        without_effect.append(("temperature", _NO_SAMPLING))
    if request.HasField("top_p"):
        without_effect.append(("top_p", _NO_SAMPLING))
    if request.HasField("logprobs"):
        without_effect.append(("logprobs", "the offline model has no probabilities"))
    if request.HasField("cache"):
        without_effect.append(("cache", "the offline model has no prompt cache"))
    if "local" in request.provider_options:
        without_effect.append(("provider_options.local", "the offline model has no further options"))
    if without_effect and request.strict:
        raise UnsupportedParameter(
            "; ".join(f"{name}: {why}" for name, why in without_effect),
            violations=[Violation(name, why) for name, why in without_effect],
        )
    return tuple(
        chat_pb2.Warning(code="unsupported_parameter", message=why, field=name) for name, why in without_effect
    )


def choose_calls(request: ChatRequest, conversation: Conversation) -> tuple[Call, ...]:
    """The tools to call now, with arguments that meet their schemas; none when there is nothing to call."""
    mode = request.tool_choice.mode
    tools = _allowed_tools(request)
    if not tools or mode == ToolChoiceMode.TOOL_CHOICE_MODE_NONE:
        return ()
    question = conversation.question
    named = _named_tools(tools, question)
    forced = mode in (ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED, ToolChoiceMode.TOOL_CHOICE_MODE_NAMED)
    # The choice allows several calls unless it says otherwise; the prompt must ask for them.
    choice = request.tool_choice
    parallel = (not choice.HasField("parallel") or choice.parallel) and _PARALLEL.search(question) is not None
    if forced:
        chosen = named or tools[:1]
    elif _REFUSAL.search(question):
        return ()
    else:
        # Tools that the prompt names are called one per turn, in the order in which it names them.
        chosen = [tool for tool in named if tool.name not in conversation.called]
        wished = _CALL_WISH.search(question) or (parallel and len(tools) == 1)
        if not named and wished and not conversation.called:
            chosen = tools if parallel else tools[:1]
    if not chosen:
        return ()
    literals = Literals(question, without=[tool.name for tool in request.tools])
    if not parallel:
        chosen = chosen[:1]
    elif len(chosen) == 1:
        chosen = chosen * max(2, literals.subjects())
    places = {tool.name: place for place, tool in enumerate(request.tools)}
    return tuple(
        Call(tool.name, _arguments(tool, f"tools[{places[tool.name]}].input_schema", literals))
        for tool in chosen[:_MOST_CALLS]
    )


def _allowed_tools(request: ChatRequest) -> list[Tool]:
    choice = request.tool_choice
    known = {tool.name: tool for tool in request.tools}
    for place, name in enumerate(choice.names):
        if name not in known:
            raise InvalidRequest.at(f"tool_choice.names[{place}]", f"there is no tool {name!r} in the request")
    if choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_NAMED and len(choice.names) != 1:
        raise InvalidRequest.at("tool_choice.names", "the mode NAMED takes exactly one name")
    if choice.mode == ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED and not known:
        raise InvalidRequest.at("tool_choice.mode", "the mode REQUIRED needs tools")
    return [known[name] for name in dict.fromkeys(choice.names)] or list(known.values())


def _named_tools(tools: list[Tool], question: str) -> list[Tool]:
    """The tools whose names stand in the prompt, in its order; `get_weather` is also named by "get weather"."""
    found: list[tuple[int, int, Tool]] = []
    for place, tool in enumerate(tools):
        words = r"[\s_.-]?".join(re.escape(word) for word in re.split(r"[_.-]+", tool.name) if word) or re.escape(
            tool.name
        )
        match = re.search(rf"(?<![\w]){words}(?![\w])", question, re.IGNORECASE)
        if match:
            found.append((match.start(), place, tool))
    return [tool for _, _, tool in sorted(found, key=lambda entry: entry[:2])]


def _arguments(tool: Tool, path: str, literals: Literals) -> str:
    if not tool.input_schema:
        return "{}"
    try:
        value = make_instance(tool.input_schema, literals, "named")
    except BadSchema as error:
        raise InvalidRequest.at(path, str(error)) from error
    except TooHard as error:
        raise _unsupported(path, error) from error
    if not isinstance(value, dict):
        raise InvalidRequest.at(path, "#: the arguments of a tool are an object, and no object meets the schema")
    return dump(value)


def _structured(request: ChatRequest, conversation: Conversation) -> str:
    path = "response_format.json_schema.schema"
    prompt = "\n".join([conversation.question, *(result.text for result in conversation.results)])
    try:
        return dump(make_instance(request.response_format.json_schema.schema, Literals(prompt)))
    except BadSchema as error:
        raise InvalidRequest.at(path, str(error)) from error
    except TooHard as error:
        raise _unsupported(path, error) from error


def _text(conversation: Conversation, voice: bytes) -> str:
    if conversation.awaits_answer and conversation.results:
        facts = [prose.NOTICE]
        for result in conversation.results:
            tool = f"The tool {result.name}" if result.name else "A tool"
            ends = "failed" if result.is_error else "returned"
            facts.append(f"{tool} {ends}: {prose.quoted(result.text, 2_000) or 'nothing'}")
        if conversation.question:
            facts.append(f"You had written: “{prose.quoted(conversation.question)}”.")
        return "\n".join(facts)
    verbatim = prose.asked_verbatim(conversation.question)
    if verbatim:
        return verbatim
    length = prose.asked_length(conversation.question)
    if length is not None:
        return prose.written(*length, voice)
    return prose.reply(conversation.question, conversation.system, conversation.turn, voice)


def _reasoning(request: ChatRequest, conversation: Conversation, answer: Answer) -> str:
    """A true account of how the answer came about; empty unless reasoning was asked for."""
    if not request.HasField("reasoning"):
        return ""
    wish = request.reasoning
    amount = _EFFORT_SENTENCES.get(wish.effort, 0)
    if wish.effort == ReasoningEffort.REASONING_EFFORT_UNSPECIFIED and wish.HasField("budget_tokens"):
        amount = 5
    if amount == 0:
        return ""
    if answer.calls:
        verdict = (
            f"I call {prose.amount_of(len(answer.calls), 'tool')}: {', '.join(call.name for call in answer.calls)}."
        )
    elif conversation.awaits_answer:
        verdict = f"I repeat what {prose.amount_of(len(conversation.results), 'tool')} said."
    else:
        verdict = "No tool is to be called, so I answer with text."
    form = request.response_format.WhichOneof("kind") or "text"
    steps = [
        verdict,
        f"The last user turn has {prose.amount_of(len(conversation.question.split()), 'word')}.",
        f"The request offers {prose.amount_of(len(request.tools), 'tool')}.",
        f"The form of the answer is {form}.",
        f"The request has {prose.amount_of(conversation.input_tokens, 'token')}.",
    ]
    text = " ".join(steps[:amount])
    if wish.HasField("budget_tokens"):
        text = "".join(tokens.split(text)[: wish.budget_tokens])
    return text


def _unsupported(path: str, error: TooHard) -> UnsupportedParameter:
    return UnsupportedParameter(f"{path}: {error}", violations=[Violation(path, str(error))])
