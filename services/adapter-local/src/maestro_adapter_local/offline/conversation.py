"""What the offline model sees of a request: the last question, the tools' results since then, the amount of text."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.message_pb2 import Part, Role
from maestro_adapter_local.offline import tokens
from maestro_sdk.errors import UnsupportedParameter, Violation


@dataclass(frozen=True, slots=True)
class Result:
    """The result of a tool call; `name` is empty when the conversation doesn't hold the call."""

    name: str
    text: str
    is_error: bool


@dataclass(frozen=True, slots=True)
class Conversation:
    """`question` is the text of the last user turn; `called` and `results` are what came after it, oldest first.

    `turn` numbers the answer to come, from 1. `awaits_answer` tells that the last turn holds results of tools.
    """

    question: str
    system: str
    turn: int
    called: tuple[str, ...]
    results: tuple[Result, ...]
    awaits_answer: bool
    input_tokens: int


def read(request: ChatRequest) -> Conversation:
    """The conversation of a request. Raises `UnsupportedParameter` for content that the offline model can't see."""
    question = ""
    turn = 1
    called: list[str] = []
    results: list[Result] = []
    names: dict[str, str] = {}
    awaits = False
    counted = tokens.count(request.system) + sum(_tool_texts(request))
    if request.response_format.HasField("json_schema"):
        counted += tokens.count(request.response_format.json_schema.schema)
    for number, message in enumerate(request.messages):
        awaits = False
        texts: list[str] = []
        for place, part in enumerate(message.parts):
            path = f"messages[{number}].parts[{place}]"
            match part.WhichOneof("kind"):
                case "text":
                    texts.append(part.text.text)
                    counted += tokens.count(part.text.text)
                case "tool_call":
                    call = part.tool_call
                    names[call.call_id] = call.name
                    called.append(call.name)
                    counted += tokens.count(call.name) + tokens.count(call.arguments_json)
                case "tool_result":
                    result = part.tool_result
                    text = _result_text(result.parts, path)
                    results.append(Result(names.get(result.call_id, ""), text, result.is_error))
                    counted += tokens.count(text)
                    awaits = True
                case "refusal":
                    texts.append(part.refusal.text)
                    counted += tokens.count(part.refusal.text)
                case "reasoning" | "opaque":
                    # Reasoning and state of another model: dropped, as the contract asks.
                    pass
                case kind:
                    raise _blind(path, kind)
        if message.role == Role.ROLE_ASSISTANT:
            turn += 1
        elif message.role == Role.ROLE_USER and texts:
            question = "\n".join(texts)
            called.clear()
            results.clear()
    return Conversation(question, request.system, turn, tuple(called), tuple(results), awaits, counted)


def _result_text(parts: Iterable[Part], path: str) -> str:
    texts: list[str] = []
    for place, part in enumerate(parts):
        kind = part.WhichOneof("kind")
        if kind != "text":
            raise _blind(f"{path}.tool_result.parts[{place}]", kind)
        texts.append(part.text.text)
    return "\n".join(texts)


def _tool_texts(request: ChatRequest) -> Iterable[int]:
    for tool in request.tools:
        yield tokens.count(tool.name) + tokens.count(tool.description) + tokens.count(tool.input_schema)


def _blind(path: str, kind: str | None) -> UnsupportedParameter:
    field, message = f"{path}.{kind}" if kind else path, "the offline model reads text only"
    return UnsupportedParameter(f"{field}: {message}", violations=[Violation(field, message)])
