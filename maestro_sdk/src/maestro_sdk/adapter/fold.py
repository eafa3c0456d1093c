"""The one fold: a stream of events becomes the unary answer. `Chat` equals the fold of `StreamChat`, byte for byte."""

from __future__ import annotations

from collections.abc import Iterable

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatResponse, ReasoningDelta, TextDelta, ToolCallDelta
from maestro.llm.v1.message_pb2 import Part
from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.errors import StreamBroken

_USAGE_COUNTS = tuple(field.name for field in Usage.DESCRIPTOR.fields if field.name != "estimated")


class Fold:
    """Collects events of one answer; `response()` gives the answer once `finish` was fed."""

    __slots__ = ("_finished", "_kinds", "_parts", "_pieces", "_response", "_started")

    def __init__(self) -> None:
        self._response = ChatResponse()
        self._parts: dict[int, Part] = {}
        # Text of each part as pieces: joined once at the end, since appending to a protobuf string copies it.
        self._pieces: dict[int, list[str]] = {}
        self._kinds: dict[int, str] = {}
        self._started = False
        self._finished = False

    @property
    def finished(self) -> bool:
        """Whether `finish` was fed."""
        return self._finished

    def feed(self, events: Iterable[ChatEvent]) -> None:
        """Adds events in order. Raises `StreamBroken` for an event that breaks the contract's order."""
        response = self._response
        for event in events:
            if self._finished:
                raise StreamBroken("the answer went on after its finish event")
            kind = event.WhichOneof("kind")
            if not self._started and kind != "started":
                raise StreamBroken("the answer's first event is not `started`")
            match kind:
                case "text":
                    self._add_text(event.text)
                case "tool_call":
                    self._add_call(event.tool_call)
                case "reasoning":
                    self._add_reasoning(event.reasoning)
                case "part":
                    part = self._part(event.part.index, event.part.WhichOneof("kind"))
                    part.CopyFrom(event.part)
                    # The whole part holds what its deltas brought so far.
                    self._pieces[event.part.index].clear()
                case "part_state":
                    part = self._part(event.part_state.index, None)
                    part.origin.CopyFrom(event.part_state.origin)
                    part.provider_state = event.part_state.provider_state
                case "usage":
                    merge_usage(response.usage, event.usage)
                case "warning":
                    response.warnings.append(event.warning)
                case "switched":
                    response.switches.append(event.switched)
                case "started":
                    if self._started:
                        raise StreamBroken("the answer began twice")
                    self._started = True
                    started = event.started
                    response.response_id = started.response_id
                    response.provider = started.provider
                    response.model = started.model
                    response.attempt = started.attempt
                case "finish":
                    self._finish(event)
                case _:
                    raise StreamBroken("an event has no kind; the adapter speaks a newer contract")

    def response(self) -> ChatResponse:
        """The answer. Raises `StreamBroken` when no `finish` was fed."""
        if not self._finished:
            raise StreamBroken("the answer ended without a finish event")
        return self._response

    def _add_text(self, delta: TextDelta) -> None:
        part = self._part(delta.index, "text")
        part.text.SetInParent()
        self._pieces[delta.index].append(delta.text)
        if delta.logprobs:
            part.text.logprobs.extend(delta.logprobs)
        if delta.citations:
            part.text.citations.extend(delta.citations)
        if delta.polyfilled:
            part.polyfilled = True

    def _add_call(self, delta: ToolCallDelta) -> None:
        part = self._part(delta.index, "tool_call")
        part.tool_call.SetInParent()
        if delta.call_id:
            part.tool_call.call_id = delta.call_id
        if delta.name:
            part.tool_call.name = delta.name
        self._pieces[delta.index].append(delta.arguments_json)
        if delta.polyfilled:
            part.polyfilled = True

    def _add_reasoning(self, delta: ReasoningDelta) -> None:
        part = self._part(delta.index, "reasoning")
        part.reasoning.SetInParent()
        self._pieces[delta.index].append(delta.text)
        if delta.summary:
            part.reasoning.summary = True

    def _part(self, index: int, kind: str | None) -> Part:
        """The part with that index, of that kind; None when the event does not say which."""
        part = self._parts.get(index)
        if part is None:
            part = self._response.parts.add(index=index)
            # A repeated field of messages keeps its elements in place, so the reference stays good.
            self._parts[index] = part
            self._pieces[index] = []
        if kind is not None and self._kinds.setdefault(index, kind) != kind:
            raise StreamBroken(f"part {index} is {self._kinds[index]} and {kind}: two parts share an index")
        return part

    def _finish(self, event: ChatEvent) -> None:
        finish, response = event.finish, self._response
        response.finish_reason = finish.reason
        response.raw_reason = finish.raw_reason
        response.stop_sequence = finish.stop_sequence
        response.cached = finish.cached
        merge_usage(response.usage, finish.usage)
        if finish.HasField("cost"):
            response.cost.CopyFrom(finish.cost)
        if finish.HasField("headroom"):
            response.headroom.CopyFrom(finish.headroom)
        for key, value in finish.provider_metadata.items():
            response.provider_metadata[key].CopyFrom(value)
        for index, part in self._parts.items():
            text = "".join(self._pieces[index])
            match self._kinds.get(index):
                case "text":
                    part.text.text += text
                case "tool_call":
                    part.tool_call.arguments_json += text
                case "reasoning":
                    part.reasoning.text += text
                case None:
                    raise StreamBroken(f"part {index} has a provider state and no content")
                case _:
                    pass  # came whole: only the three kinds above have deltas
        self._finished = True


def merge_usage(total: Usage, latest: Usage) -> None:
    """Takes the maximum per field: usage in a stream is cumulative, and late reports may lack early fields."""
    total.SetInParent()
    for name in _USAGE_COUNTS:
        value = getattr(latest, name)
        if value > getattr(total, name):
            setattr(total, name, value)
    if latest.estimated:
        total.estimated = True


def fold(events: Iterable[ChatEvent]) -> ChatResponse:
    """The answer that `events` make. Raises `StreamBroken` unless they begin once and end with one `finish`."""
    folding = Fold()
    folding.feed(events)
    return folding.response()
