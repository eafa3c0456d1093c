"""The obliging model behind Ollama's wire: three models that differ in what they can do themselves.

`able` calls tools, sees and reasons; `plain` can be held to a schema, as every model of an Ollama server can; `handed`
runs on somebody else's machine, where nothing holds it to anything. What the last two lack comes to them as text, by
the kit's polyfills, and is read here as a model would read it.
"""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from maestro.llm.v1.chat_pb2 import (
    ChatRequest,
    FinishReason,
    JsonSchemaFormat,
    Reasoning,
    ReasoningEffort,
    Tool,
    ToolChoice,
    ToolChoiceMode,
)
from maestro.llm.v1.message_pb2 import ImagePart, Message, Part, Role, TextPart, ToolCallPart, ToolResultPart
from maestro_sdk.testing import ollama_chat
from maestro_sdk.testing.faults import FaultServer, Reply, Seen, Send, SendJson, Step, Wait
from maestro_sdk.testing.obliging import ObligingModel
from maestro_sdk.testing.obliging_embeddings import DIMENSIONS, vector
from maestro_sdk.testing.obliging_wires import PACE
from maestro_sdk.testing.wire import Answer

ABLE, PLAIN, HANDED, EMBEDDER = "able:8b", "plain:1b", "handed:120b-cloud", "embedder:latest"
_SHOWN: Mapping[str, Mapping[str, Any]] = {
    ABLE: {"capabilities": ["completion", "tools", "vision", "thinking"]},
    PLAIN: {"capabilities": ["completion"]},
    HANDED: {"capabilities": ["completion"], "remote_host": "https://ollama.example"},
    EMBEDDER: {"capabilities": ["embedding"]},
}
_ROLES = {"user": Role.ROLE_USER, "assistant": Role.ROLE_ASSISTANT, "tool": Role.ROLE_TOOL}
_TOOLS = re.compile(r"^# Tools\n.*\n((?:\{.*\}\n)+)", re.MULTILINE)
_FORM = re.compile(r"^# Form of the answer\n.*\n(\{.*\})$", re.MULTILINE)
_MUST = re.compile(r"^You must call (?:at least one tool now: )?(.+?)(?: now)?\.$", re.MULTILINE)
_RESULT = re.compile(r"<tool_result>(\{.*?\})</tool_result>")


def oblige_ollama(server: FaultServer) -> None:
    """Lets `server` answer as an Ollama server: its list of models, chats and embeddings."""
    tags = [{"name": name, "model": name, "digest": name} for name in _SHOWN]
    server.on("GET", "/api/tags", SendJson({"models": tags}))
    server.on("POST", "/api/show", _show)
    server.on("POST", ollama_chat.PATH, _reply())
    server.on("POST", "/api/embed", _embed)


def read_ollama(body: Any) -> ChatRequest:
    """What an Ollama request asks for; what stands in its system text as a polyfill wrote it counts as asked."""
    options: Mapping[str, Any] = body.get("options") or {}
    request = ChatRequest(stop=options.get("stop", ()), seed=options.get("seed"), max_tokens=options.get("num_predict"))
    for number, message in enumerate(body["messages"]):
        if message["role"] == "system":
            request.system += message["content"]
        else:
            parts = _parts(message, number)
            role = Role.ROLE_TOOL if any(part.HasField("tool_result") for part in parts) else _ROLES[message["role"]]
            if role == Role.ROLE_TOOL and request.messages[-1].role == role:
                request.messages[-1].parts.extend(parts)
            else:
                request.messages.append(Message(role=role, parts=parts))
    for tool in body.get("tools", ()):
        function = tool["function"]
        request.tools.append(Tool(name=function["name"], input_schema=json.dumps(function["parameters"])))
    _read_polyfills(request)
    form = body.get("format")
    if isinstance(form, dict) and not request.tools:
        request.response_format.json_schema.CopyFrom(JsonSchemaFormat(schema=json.dumps(form)))
    if body.get("think") not in {None, False}:
        request.reasoning.CopyFrom(Reasoning(effort=ReasoningEffort.REASONING_EFFORT_HIGH))
    return request


def _reply() -> Reply:
    model = ObligingModel()

    def reply(seen: Seen) -> Sequence[Step]:
        body = seen.json()
        request = read_ollama(body)
        obliged = model.answer(request)
        stop = "length" if obliged.reason == FinishReason.FINISH_REASON_LENGTH else None
        answer = replace(obliged.answer, stop=stop)
        if request.tools and "tools" not in body:
            answer = _written(answer, structured="format" in body, formed=request.HasField("response_format"))
        steps = ollama_chat.WIRE.answer(answer, PACE)(seen)
        return [Wait(PACE), *(_with_logprobs(step) if body.get("logprobs") else step for step in steps)]

    return reply


def _written(answer: Answer, *, structured: bool, formed: bool) -> Answer:
    """The answer of a model that was told by text how to call tools, and where `formed` what a reply has to meet."""
    calls = [{"name": call.name, "arguments": json.loads(call.text)} for call in answer.calls]
    if structured:
        reply: Any = "".join(answer.pieces)
        text = json.dumps({"calls": calls} if calls else {"reply": json.loads(reply) if formed else reply})
    elif calls:
        text = "\n".join(f"<tool_call>{json.dumps(call)}</tool_call>" for call in calls)
    else:
        return answer
    return replace(answer, pieces=re.findall(r".{1,7}", text, re.DOTALL), calls=())


def _read_polyfills(request: ChatRequest) -> None:
    """Takes tools, the rule for calling them, and the wanted form out of the system text."""
    if found := _TOOLS.search(request.system):
        for line in found[1].splitlines():
            tool = json.loads(line)
            request.tools.append(Tool(name=tool["name"], input_schema=json.dumps(tool["arguments"])))
        if must := _MUST.search(request.system):
            names = [tool.name for tool in request.tools if tool.name in must[1]]
            named = len(names) == 1
            mode = ToolChoiceMode.TOOL_CHOICE_MODE_NAMED if named else ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED
            request.tool_choice.CopyFrom(ToolChoice(mode=mode, names=names if named else ()))
    if found := _FORM.search(request.system):
        request.response_format.json_schema.CopyFrom(JsonSchemaFormat(schema=found[1]))


def _parts(message: Mapping[str, Any], number: int) -> list[Part]:
    text: str = message.get("content") or ""
    if message["role"] == "tool":
        told = Part(text=TextPart(text=text))
        return [Part(tool_result=ToolResultPart(call_id=message.get("tool_call_id", ""), parts=[told]))]
    results = [json.loads(found) for found in _RESULT.findall(text)]
    if results:
        told = [Part(text=TextPart(text=str(result.get("content", result.get("error"))))) for result in results]
        return [Part(tool_result=ToolResultPart(call_id=f"{number}", parts=[part])) for part in told]
    parts = [Part(image=ImagePart(data=base64.b64decode(image))) for image in message.get("images", ())]
    parts.append(Part(text=TextPart(text=text)))
    for call in message.get("tool_calls", ()):
        made = call["function"]
        arguments = json.dumps(made["arguments"])
        parts.append(Part(tool_call=ToolCallPart(call_id=call["id"], name=made["name"], arguments_json=arguments)))
    return parts


def _show(seen: Seen) -> Sequence[Step]:
    info = {"general.architecture": "obliging", "obliging.context_length": 32768}
    return [SendJson({"details": {"family": "obliging"}, "model_info": info, **_SHOWN[seen.json()["model"]]})]


def _embed(seen: Seen) -> Sequence[Step]:
    body = seen.json()
    texts: list[str] = body["input"]
    vectors = [vector(text, body.get("dimensions", DIMENSIONS)) for text in texts]
    return [SendJson({"embeddings": vectors, "prompt_eval_count": sum(1 + len(text) // 4 for text in texts)})]


def _with_logprobs(step: Step) -> Step:
    """The step with a probability for its text."""
    match step:
        case Send(data):
            frame = json.loads(data)
            return Send(json.dumps({**frame, **_probable(frame)}).encode() + b"\n")
        case SendJson(frame):
            return SendJson({**frame, **_probable(frame)})
        case _:
            return step


def _probable(frame: Mapping[str, Any]) -> dict[str, Any]:
    text = frame["message"]["content"]
    top = [{"token": "other", "logprob": -2.5}]
    return {"logprobs": [{"token": text, "logprob": -0.25, "top_logprobs": top}]} if text else {}
