"""An answer as a stream: events that fold to it, byte for byte. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    ChatResponse,
    Finish,
    PartState,
    ReasoningDelta,
    Started,
    StreamChatResponse,
    TextDelta,
    ToolCallDelta,
)
from maestro.llm.v1.message_pb2 import Part


def replay(response: ChatResponse) -> StreamChatResponse:
    """All events of an answer in one message: nobody has to wait for any of them."""
    return StreamChatResponse(events=_events(response))


def _events(response: ChatResponse) -> Iterator[ChatEvent]:
    yield ChatEvent(
        started=Started(
            response_id=response.response_id,
            provider=response.provider,
            model=response.model,
            attempt=response.attempt,
        )
    )
    for warning in response.warnings:
        yield ChatEvent(warning=warning)
    for switched in response.switches:
        yield ChatEvent(switched=switched)
    for part in response.parts:
        yield from _part(part)
    finish = Finish(
        reason=response.finish_reason,
        raw_reason=response.raw_reason,
        stop_sequence=response.stop_sequence,
        usage=response.usage,
        cost=response.cost if response.HasField("cost") else None,
        cached=response.cached,
    )
    for name, facts in response.provider_metadata.items():
        finish.provider_metadata[name].CopyFrom(facts)
    yield ChatEvent(finish=finish)


def _part(part: Part) -> Iterator[ChatEvent]:
    """Pieces, which every reader of streams knows; what pieces can't say comes as a whole part."""
    delta = _delta(part)
    if delta is None:
        yield ChatEvent(part=part)
        return
    yield delta
    if part.HasField("provider_state"):
        yield ChatEvent(part_state=PartState(index=part.index, origin=part.origin, provider_state=part.provider_state))


def _delta(part: Part) -> ChatEvent | None:
    if part.HasField("origin") != part.HasField("provider_state"):
        return None
    match part.WhichOneof("kind"):
        case "text":
            said = part.text
            return ChatEvent(
                text=TextDelta(
                    index=part.index,
                    text=said.text,
                    logprobs=said.logprobs,
                    citations=said.citations,
                    polyfilled=part.polyfilled,
                )
            )
        case "reasoning" if not part.reasoning.redacted and not part.polyfilled:
            thought = part.reasoning
            return ChatEvent(reasoning=ReasoningDelta(index=part.index, text=thought.text, summary=thought.summary))
        case "tool_call":
            call = part.tool_call
            return ChatEvent(
                tool_call=ToolCallDelta(
                    index=part.index,
                    call_id=call.call_id,
                    name=call.name,
                    arguments_json=call.arguments_json,
                    polyfilled=part.polyfilled,
                )
            )
        case _:
            return None
