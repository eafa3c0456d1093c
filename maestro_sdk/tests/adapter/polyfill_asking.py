"""A question to a model that writes calls and JSON as text, and what the caller saw of the answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, ChatResponse, FinishReason, JsonSchemaFormat, ResponseFormat
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.polyfill import Polyfilled
from maestro_sdk.errors import MaestroError
from maestro_sdk.testing.plain_models import TextProvider
from maestro_sdk.types import tool, user

STOP = FinishReason.FINISH_REASON_STOP
LENGTH = FinishReason.FINISH_REASON_LENGTH
CALLS = FinishReason.FINISH_REASON_TOOL_CALLS
MALFORMED = FinishReason.FINISH_REASON_MALFORMED
CITY: dict[str, Any] = {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]}
WEATHER = tool("weather", "Tells the weather.", CITY)
CLOCK = tool("clock", "Tells the time.")

GOOD = '<tool_call>{"name":"weather","arguments":{"city":"Oslo"}}</tool_call>'


def asked(**fields: Any) -> ChatRequest:
    return ChatRequest(model="plain/model", messages=[user("Weather in Oslo?")], **fields)


def with_tools(**fields: Any) -> ChatRequest:
    return asked(tools=[WEATHER, CLOCK], **fields)


def in_form(schema: Any = CITY, **fields: Any) -> ChatRequest:
    wanted = JsonSchemaFormat(name="city", schema=json.dumps(schema), **fields)
    return asked(response_format=ResponseFormat(json_schema=wanted))


class Seen:
    """What the caller saw: the events, the answer they make, and the error, one of the two."""

    def __init__(self, batches: Sequence[Sequence[ChatEvent]], error: MaestroError | None, inner: TextProvider) -> None:
        self.events = [event for batch in batches for event in batch]
        self.error = error
        self.inner = inner

    @property
    def answer(self) -> ChatResponse:
        if self.error is not None:
            raise self.error
        return fold(self.events)

    @property
    def facts(self) -> dict[str, Any]:
        return MessageToDict(self.answer.provider_metadata["maestro"])

    @property
    def calls(self) -> list[tuple[str, str]]:
        return [
            (part.tool_call.name, part.tool_call.arguments_json)
            for part in self.answer.parts
            if part.HasField("tool_call")
        ]

    @property
    def said_before_repairs(self) -> list[str]:
        """The last turn of each request to the model but the first: what it was asked to mend."""
        return [request.messages[-1].parts[-1].text.text for request in self.inner.requests[1:]]


async def ask(
    request: ChatRequest, *answers: str | Sequence[ChatEvent], constrained: bool = False, **settings: Any
) -> Seen:
    """Asks by stream and by complete, in pieces of several sizes: all have to come to the same."""
    seen: list[Seen] = []
    for size in (1, 4, 1000):
        inner = TextProvider(*answers, size=size, **settings)
        batches: list[Sequence[ChatEvent]] = []
        error: MaestroError | None = None
        try:
            async for batch in Polyfilled(inner, constrained).stream(request):
                assert batch
                batches.append(batch)
        except MaestroError as raised:
            error = raised
        seen.append(Seen(batches, error, inner))
        unary = Polyfilled(TextProvider(*answers, size=size, **settings), constrained)
        if error is None:
            whole = fold(await unary.complete(request))
            assert whole.SerializeToString(deterministic=True) == seen[-1].answer.SerializeToString(deterministic=True)
            assert seen[0].answer == whole
        else:
            with pytest.raises(type(error)) as again:
                await unary.complete(request)
            assert str(again.value) == str(error) == str(seen[0].error)
        assert [sent.SerializeToString(deterministic=True) for sent in inner.requests] == [
            sent.SerializeToString(deterministic=True) for sent in seen[0].inner.requests
        ]
    return seen[1]
