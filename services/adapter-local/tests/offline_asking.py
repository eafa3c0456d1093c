"""What the tests of the offline model share: tools, a form, and a question with its answer."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, ChatResponse, JsonSchemaFormat, ResponseFormat, Tool
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart, ToolResultPart
from maestro_adapter_local.provider import LocalProvider
from maestro_adapter_local.settings import LocalSettings
from maestro_sdk.adapter.fold import fold

WEATHER = Tool(
    name="get_weather",
    description="Tells the weather",
    input_schema=json.dumps(
        {
            "type": "object",
            "properties": {"city": {"type": "string"}, "unit": {"enum": ["celsius", "fahrenheit"]}},
            "required": ["city"],
            "additionalProperties": False,
        }
    ),
)
SEARCH = Tool(
    name="search",
    input_schema='{"type": "object", "properties": {"query": {"type": "string"}}, "required": ["query"]}',
)
CLOCK = Tool(name="clock")


def ask(text: str, **fields: Any) -> ChatRequest:
    """A request with one user turn."""
    turn = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=text))])
    return ChatRequest(model="local/offline", messages=[turn], **fields)


def answer(request: ChatRequest, **offline: Any) -> ChatResponse:
    """The unary answer, after checking that the stream folds to the same bytes."""
    whole, batches = asyncio.run(both(request, offline))
    folded = fold(event for batch in batches for event in batch)
    assert folded.SerializeToString(deterministic=True) == whole.SerializeToString(deterministic=True)
    return whole


async def both(request: ChatRequest, offline: dict[str, Any]) -> tuple[ChatResponse, list[Sequence[ChatEvent]]]:
    provider = LocalProvider(LocalSettings.model_validate({"offline": offline, "hashing": False}))
    try:
        return fold(await provider.complete(request)), [batch async for batch in provider.stream(request)]
    finally:
        await provider.close()


def text_of(response: ChatResponse) -> str:
    return "".join(part.text.text for part in response.parts)


def calls_of(response: ChatResponse) -> list[tuple[str, Any]]:
    """Name and arguments of every call."""
    parts = [part.tool_call for part in response.parts if part.HasField("tool_call")]
    return [(call.name, json.loads(call.arguments_json)) for call in parts]


def with_results(request: ChatRequest, response: ChatResponse, *results: str, is_error: bool = False) -> ChatRequest:
    """The conversation after the tools have answered."""
    after = ChatRequest()
    after.CopyFrom(request)
    after.messages.add(role=Role.ROLE_ASSISTANT, parts=response.parts)
    called = [part.tool_call for part in response.parts if part.HasField("tool_call")]
    after.messages.add(
        role=Role.ROLE_TOOL,
        parts=[
            Part(
                tool_result=ToolResultPart(
                    call_id=call.call_id, parts=[Part(text=TextPart(text=result))], is_error=is_error
                )
            )
            for call, result in zip(called, results, strict=True)
        ],
    )
    return after


TEXTS = st.text(alphabet="abc de. \n“é", max_size=60) | st.sampled_from(
    ["hello", "Write 80 words", "Count to 40", "Write 3 paragraphs", "Tell me six sentences"]
)

PERSON = {
    "type": "object",
    "properties": {
        "name": {"type": "string"},
        "age": {"type": "integer", "minimum": 0},
        "tags": {"type": "array", "items": {"type": "string"}},
    },
    "required": ["name", "age"],
    "additionalProperties": False,
}  # fmt: skip


def in_form(schema: Any) -> ResponseFormat:
    return ResponseFormat(json_schema=JsonSchemaFormat(name="x", schema=json.dumps(schema)))
