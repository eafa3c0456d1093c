"""An answer that was begun: an assistant message that stands last. The offline model says what it leaves unsaid."""

from __future__ import annotations

from dataclasses import replace

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.message_pb2 import Role
from maestro_adapter_local.offline.answer import Answer


def take_begun(request: ChatRequest) -> tuple[ChatRequest, str]:
    """The request as it was before the answer began, and the text of its beginning; empty when none was begun."""
    messages = request.messages
    if len(messages) < 2 or messages[-1].role != Role.ROLE_ASSISTANT:
        return request, ""
    kinds = {part.WhichOneof("kind") for part in messages[-1].parts}
    text = "".join(part.text.text for part in messages[-1].parts if part.HasField("text"))
    if not text or "tool_call" in kinds:
        return request, ""
    asked = ChatRequest()
    asked.CopyFrom(request)
    del asked.messages[-1]
    return asked, text


def go_on(answer: Answer, begun: str) -> Answer:
    """What is left to say: the answer without its beginning, or all of it behind a beginning that is another's."""
    text = answer.text
    if text.startswith(begun):
        text = text[len(begun) :]
    elif text and not begun[-1].isspace():
        text = f" {text}"
    return replace(answer, text=text, reasoning="")
