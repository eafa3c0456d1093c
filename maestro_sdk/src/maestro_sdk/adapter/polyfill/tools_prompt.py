"""Rewrites a request for a model without tools or JSON schema: all that it needs to know stands in text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from maestro.llm.v1.chat_pb2 import ChatRequest, JsonSchemaFormat, ResponseFormat, Tool
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro_sdk.adapter.polyfill import json_text
from maestro_sdk.adapter.polyfill.json_schema import form_of, schema_of
from maestro_sdk.adapter.polyfill.json_text import NotJson
from maestro_sdk.adapter.polyfill.plan import Means, Plan
from maestro_sdk.adapter.polyfill.tools_parser import CLOSE, OPEN
from maestro_sdk.adapter.polyfill.tools_schema import answer_schema
from maestro_sdk.errors import InvalidRequest

RESULT_OPEN = "<tool_result>"
RESULT_CLOSE = "</tool_result>"

_TOOLS = """\
# Tools
You can call tools. These are all of them, with the JSON schema of their arguments:
{tools}"""
_CALLS_BY_TAGS = f"""\
To call a tool, write on a line of its own, outside of any code block:
{OPEN}{{"name": "<name of the tool>", "arguments": {{<its arguments as JSON>}}}}{CLOSE}
Then end your answer; the result comes in the next message within {RESULT_OPEN} and {RESULT_CLOSE}.
Never write a result yourself."""
_CALLS_BY_SCHEMA = f"""\
Your answer is one JSON object and nothing else. To call tools, answer with:
{{"calls": [{{"name": "<name of the tool>", "arguments": {{<its arguments as JSON>}}}}]}}
The results come in the next message within {RESULT_OPEN} and {RESULT_CLOSE}.
Never write a result yourself."""
_REPLY_BY_SCHEMA = """\
To reply without a call, answer with:
{{"reply": {reply}}}"""
_FORM = """\
# Form of the answer
{whose} is one JSON value and nothing else: no words around it, no code block. It meets this JSON schema:
{schema}"""


def to_prompted(request: ChatRequest, plan: Plan) -> ChatRequest:
    """What is sent to the model for `request`: a request that needs nothing which the plan says the model lacks.

    Raises `InvalidRequest` for schemas that are none.
    """
    prompted = ChatRequest()
    prompted.CopyFrom(request)
    if plan.narrowed:
        _narrow(prompted, plan)
    if plan.history:
        del prompted.tools[:]
        prompted.ClearField("tool_choice")
        _rewrite(prompted, request, plan)
    if plan.calls or plan.form is not Means.NATIVE:
        # The text that comes back is not the text that goes on, so nothing about its tokens holds.
        prompted.ClearField("logprobs")
    words: list[str] = []
    if plan.calls:
        words.append(_tools_text(request, plan))
    if plan.halt:
        prompted.stop.append(RESULT_OPEN)
    if plan.form is not Means.NATIVE:
        words.append(_form_text(request, plan))
        prompted.ClearField("response_format")
    if plan.calls and plan.tools is Means.STRUCTURED:
        schema = JsonSchemaFormat(name="answer", schema=answer_schema(request, plan), strict=True)
        prompted.response_format.CopyFrom(ResponseFormat(json_schema=schema))
    elif plan.form is Means.STRUCTURED:
        form = form_of(request)
        schema = JsonSchemaFormat(
            name=form.name or "answer", schema=form.text, strict=True, description=form.description
        )
        prompted.response_format.CopyFrom(ResponseFormat(json_schema=schema))
    if words:
        _tell(prompted, "\n\n".join(words), plan)
    return prompted


def write_call(name: str, arguments: str) -> str:
    """A call as the model is asked to write it; `arguments` is the JSON text of an object."""
    return f'{OPEN}{{"name":{json_text.write(name)},"arguments":{arguments or "{}"}}}{CLOSE}'


def go_on(prompted: ChatRequest, said: str, demand: str) -> ChatRequest:
    """The request that asks once more: after what the model said, and what is demanded of it now."""
    again = ChatRequest()
    again.CopyFrom(prompted)
    if said.strip():
        again.messages.append(Message(role=Role.ROLE_ASSISTANT, parts=[_text(said)]))
    _add(again.messages, Role.ROLE_USER, [_text(demand)])
    return again


def _narrow(prompted: ChatRequest, plan: Plan) -> None:
    """Leaves the model only the tools that it may call; it decides itself whether it calls one."""
    kept = [tool for tool in prompted.tools if tool.name in plan.offered]
    parallel = prompted.tool_choice.parallel if prompted.tool_choice.HasField("parallel") else None
    del prompted.tools[:]
    prompted.tools.extend(kept)
    prompted.ClearField("tool_choice")
    if kept and parallel is not None:
        prompted.tool_choice.parallel = parallel


def _tools_text(request: ChatRequest, plan: Plan) -> str:
    offered = [(number, tool) for number, tool in enumerate(request.tools) if tool.name in plan.offered]
    words = [_TOOLS.format(tools="\n".join(_describe(tool, number) for number, tool in offered))]
    if plan.tools is Means.STRUCTURED:
        words.append(_CALLS_BY_SCHEMA)
        if not plan.must:
            words.append(_REPLY_BY_SCHEMA.format(reply='"<your reply>"' if plan.form is Means.NATIVE else "<JSON>"))
    else:
        words.append(_CALLS_BY_TAGS)
        if not plan.must:
            words.append("Call tools only when they help; otherwise answer as usual.")
    if plan.must:
        names = " or ".join(plan.offered)
        words.append(f"You must call {names} now." if plan.single else f"You must call at least one tool now: {names}.")
    elif not plan.single:
        words.append("You may make several calls in one answer, one after the other.")
    if plan.single:
        words.append("Make one call only.")
    return "\n".join(words)


def _describe(tool: Tool, number: int) -> str:
    described: dict[str, Any] = {"name": tool.name}
    if tool.description:
        described["description"] = tool.description
    described["arguments"] = {"type": "object", "properties": {}}
    if tool.input_schema:
        described["arguments"] = schema_of(tool.input_schema, f"tools[{number}].input_schema")
    return json_text.write(described)


def _form_text(request: ChatRequest, plan: Plan) -> str:
    form = form_of(request)
    whose = "An answer without a call" if plan.calls else "Your answer"
    if plan.calls and plan.tools is Means.STRUCTURED:
        whose = 'The value of "reply"'
    text = _FORM.format(whose=whose, schema=json_text.write(form.schema))
    return f"{text}\nIt is for: {form.description}" if form.description else text


def _tell(prompted: ChatRequest, words: str, plan: Plan) -> None:
    """Puts `words` below the system text, or before the first turn where the model takes none."""
    if plan.system:
        prompted.system = f"{prompted.system}\n\n{words}" if prompted.system else words
        return
    first = next((message for message in prompted.messages if message.role == Role.ROLE_USER), None)
    told = [_text(words)]
    if first is None:
        prompted.messages.insert(0, Message(role=Role.ROLE_USER, parts=told))
    else:
        parts = [*told, *first.parts]
        del first.parts[:]
        first.parts.extend(_joined(parts))


def _rewrite(prompted: ChatRequest, request: ChatRequest, plan: Plan) -> None:
    """Turns calls and results of earlier turns into text; turns that follow each other become one turn.

    Many models' templates take nothing but user and assistant in turn.
    """
    del prompted.messages[:]
    names = {
        part.tool_call.call_id: part.tool_call.name
        for message in request.messages
        for part in message.parts
        if part.HasField("tool_call")
    }
    places: list[int] = []
    for number, message in enumerate(request.messages):
        match message.role:
            case Role.ROLE_ASSISTANT:
                role, parts = message.role, _said(message, f"messages[{number}]", plan)
            case Role.ROLE_USER | Role.ROLE_TOOL:
                role, parts = Role.ROLE_USER, _told(message, names)
            case other:
                raise InvalidRequest.at(f"messages[{number}].role", f"{other} is none that is known")
        _add(prompted.messages, role, parts)
        places.append(len(prompted.messages) - 1)
    for point in prompted.cache.points:
        match point.WhichOneof("after"):
            case "message" if point.message < len(places):
                point.message = places[point.message]
            case "tools":
                point.system = True
            case _:
                pass


def _said(message: Message, path: str, plan: Plan) -> Sequence[Part]:
    """The parts of a turn of the model, its calls as it would write them now."""
    structured = plan.calls and plan.tools is Means.STRUCTURED
    calls: list[str] = []
    parts: list[Part] = []
    for number, part in enumerate(message.parts):
        if not part.HasField("tool_call"):
            parts.append(part)
            continue
        name = part.tool_call.name
        arguments = _arguments(part.tool_call.arguments_json, f"{path}.parts[{number}].tool_call.arguments_json")
        calls.append(f'{{"name":{json_text.write(name)},"arguments":{arguments}}}')
        if not structured:
            parts.append(_text(write_call(name, arguments)))
    if not structured:
        return parts
    if calls:
        return [*parts, _text(f'{{"calls":[{",".join(calls)}]}}')]
    reply = "".join(part.text.text for part in parts if part.HasField("text"))
    if not reply:
        return parts
    plain = plan.form is not Means.NATIVE and _is_json(reply)
    others = [part for part in parts if not part.HasField("text")]
    return [*others, _text(f'{{"reply":{reply if plain else json_text.write(reply)}}}')]


def _text(text: str) -> Part:
    return Part(text=TextPart(text=text))


def _is_json(text: str) -> bool:
    try:
        json_text.parse(text)
    except NotJson:
        return False
    return True


def _arguments(text: str, path: str) -> str:
    """The arguments of an earlier call as one line. Raises `InvalidRequest` at `path` when they are no JSON object."""
    if not text:
        return "{}"
    try:
        value = json_text.parse(text)
    except NotJson as error:
        raise InvalidRequest.at(path, f"is not JSON: {error}") from error
    if not isinstance(value, dict):
        raise InvalidRequest.at(path, "is not a JSON object")
    return json_text.write(value)


def _told(message: Message, names: Mapping[str, str]) -> Sequence[Part]:
    """The parts of a turn of the user or of tools. What a tool returned is quoted, so that it can't pass for a call."""
    parts: list[Part] = []
    for part in message.parts:
        if not part.HasField("tool_result"):
            parts.append(part)
            continue
        result = part.tool_result
        said = "\n".join(inner.text.text for inner in result.parts if inner.HasField("text"))
        facts: dict[str, Any] = {"name": names.get(result.call_id, "tool")}
        facts["error" if result.is_error else "content"] = said
        parts.append(_text(f"{RESULT_OPEN}{json_text.write(facts)}{RESULT_CLOSE}"))
        # Pictures and documents follow the text: a model that sees takes them, any other one refuses them by itself.
        parts += [inner for inner in result.parts if not inner.HasField("text")]
    return parts


def _add(messages: Any, role: Role.ValueType, parts: Sequence[Part]) -> None:
    """Adds a turn, to the one before where that is of the same role."""
    if messages and messages[-1].role == role:
        parts = [*messages[-1].parts, *parts]
        del messages[-1].parts[:]
        messages[-1].parts.extend(_joined(parts))
    else:
        messages.append(Message(role=role, parts=_joined(parts)))


def _joined(parts: Sequence[Part]) -> Sequence[Part]:
    """The parts, texts that follow each other as one: some servers take a turn only as one text."""
    joined: list[Part] = []
    for part in parts:
        last = joined[-1] if joined else None
        if last is not None and _is_plain(last) and _is_plain(part):
            joined[-1] = _text("\n\n".join(text for text in (last.text.text, part.text.text) if text))
        else:
            joined.append(part)
    return joined


def _is_plain(part: Part) -> bool:
    return part.HasField("text") and not part.HasField("provider_state")
