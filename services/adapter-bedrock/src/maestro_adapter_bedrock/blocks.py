"""The content blocks of an answer as parts: pieces of a stream, or the whole blocks of a document."""

from __future__ import annotations

from base64 import b64decode, b64encode
from collections.abc import Mapping
from typing import Any, cast

import orjson

from maestro.llm.v1.chat_pb2 import ChatEvent, PartState, ReasoningDelta, TextDelta, ToolCallDelta
from maestro.llm.v1.message_pb2 import Citation, OpaquePart, Origin, Part, ReasoningPart
from maestro_adapter_bedrock.conversation import API
from maestro_adapter_bedrock.models import PROVIDER
from maestro_adapter_bedrock.request import Outgoing
from maestro_sdk.errors import StreamBroken

Json = Mapping[str, Any]


class _Block:
    """A block under way: its part, its kind, and what waits for its end."""

    __slots__ = ("begun", "index", "kind", "raw", "redacted", "signature")

    def __init__(self, index: int, kind: str) -> None:
        self.index = index
        self.kind = kind
        self.begun = False
        self.signature = ""
        self.redacted: list[str] = []
        self.raw: dict[str, Any] = {}


class Blocks:
    """Turns blocks into events. The wire numbers them, and begins only some of them with an event of their own."""

    __slots__ = ("_blocks", "_next", "_origin", "_outgoing", "begun", "calls", "response_id")

    def __init__(self, outgoing: Outgoing, response_id: str) -> None:
        self.begun = False
        """Whether the answer has begun; the stream says so."""
        self.calls = 0
        self.response_id = response_id
        self._outgoing = outgoing
        self._blocks: dict[int, _Block] = {}
        self._next = 0
        self._origin = Origin(provider=PROVIDER, api=API, model=outgoing.lineage)

    def on_start(self, frame: Json, events: list[ChatEvent]) -> None:
        """A block begins."""
        start: Json = frame.get("start") or {}
        if not start:
            # Some servers announce text, too.
            return
        kind = _kind(start)
        self._start(frame["contentBlockIndex"], kind, start[kind], events)

    def on_delta(self, frame: Json, events: list[ChatEvent]) -> None:
        """A block goes on."""
        number, delta = frame["contentBlockIndex"], frame["delta"]
        block = self._blocks.get(number)
        if (text := delta.get("text")) is not None:
            block = block or self._begin(number, "text")
            if text:
                events.append(ChatEvent(text=TextDelta(index=block.index, text=text)))
            return
        kind = _kind(delta)
        match kind:
            case "toolUse":
                if block is None:
                    raise StreamBroken("the provider's stream goes on with a call that never began")
                self._argue(block, delta[kind].get("input") or "", events)
            case "reasoningContent":
                self._reason(block or self._begin(number, "reasoning"), delta[kind], events)
            case "citation":
                block = block or self._begin(number, "text")
                events.append(ChatEvent(text=TextDelta(index=block.index, citations=[_citation(delta[kind])])))
            case _:
                # What only its origin understands: results of the provider's own tools, made images.
                block = block or self._begin(number, kind)
                _merge(block.raw, delta[kind])

    def on_stop(self, frame: Json, events: list[ChatEvent]) -> None:
        """A block ends."""
        block = self._blocks.pop(frame["contentBlockIndex"], None)
        if block is not None:
            self._end(block, events)

    def close(self, events: list[ChatEvent]) -> None:
        """Ends all blocks."""
        for block in self._blocks.values():
            self._end(block, events)
        self._blocks.clear()

    def read(self, number: int, content: Json, events: list[ChatEvent]) -> None:
        """A whole block."""
        kind = _kind(content)
        match kind:
            case "text":
                self.on_delta({"contentBlockIndex": number, "delta": content}, events)
            case "citationsContent":
                self._read_citations(number, content[kind], events)
            case "reasoningContent":
                block = self._begin(number, "reasoning")
                reasoning: Json = content[kind]
                for name, value in cast("Json", reasoning.get("reasoningText", reasoning)).items():
                    self._reason(block, {name: value}, events)
            case "toolUse":
                block = self._start(number, kind, content[kind], events)
                given: Any = content[kind].get("input")
                self._argue(block, orjson.dumps({} if given is None else given).decode(), events)
            case _:
                block = self._begin(number, kind)
                _merge(block.raw, content[kind])
        self.on_stop({"contentBlockIndex": number}, events)

    def _begin(self, number: int, kind: str) -> _Block:
        if not self.begun:
            raise StreamBroken("the provider's stream has content before messageStart")
        block = self._blocks[number] = _Block(self._next, kind)
        self._next += 1
        return block

    def _start(self, number: int, kind: str, start: Json, events: list[ChatEvent]) -> _Block:
        if kind != "toolUse" or start.get("type"):
            # The provider's own tools are run by it, not by the caller.
            block = self._begin(number, kind)
            _merge(block.raw, {name: value for name, value in start.items() if name != "input"})
            return block
        block = self._begin(number, "call")
        self.calls += 1
        name = start["name"]
        call = ToolCallDelta(
            index=block.index,
            call_id=start.get("toolUseId") or f"call_{self.response_id}_{self.calls}",
            name=self._outgoing.tool_names.get(name, name),
        )
        events.append(ChatEvent(tool_call=call))
        return block

    def _argue(self, block: _Block, fragment: str, events: list[ChatEvent]) -> None:
        if block.kind != "call":
            block.raw["input"] = block.raw.get("input", "") + fragment
        elif fragment:
            block.begun = True
            events.append(ChatEvent(tool_call=ToolCallDelta(index=block.index, arguments_json=fragment)))

    def _reason(self, block: _Block, piece: Json, events: list[ChatEvent]) -> None:
        for name, value in piece.items():
            match name:
                case "text":
                    # Text may be empty, and signed all the same: then the state needs its part.
                    if value:
                        block.begun = True
                        events.append(ChatEvent(reasoning=ReasoningDelta(index=block.index, text=value)))
                case "signature":
                    block.signature += value
                case "redactedContent":
                    block.redacted.append(value)
                case _:
                    # A kind of piece that is newer than this adapter.
                    continue

    def _end(self, block: _Block, events: list[ChatEvent]) -> None:
        match block.kind:
            case "text":
                pass
            case "reasoning":
                self._end_reasoning(block, events)
            case "call":
                if not block.begun:
                    events.append(ChatEvent(tool_call=ToolCallDelta(index=block.index, arguments_json="{}")))
            case kind:
                if isinstance(given := block.raw.get("input"), str):
                    block.raw["input"] = orjson.loads(given or "{}")
                opaque = OpaquePart(json=orjson.dumps({kind: block.raw}).decode())
                events.append(ChatEvent(part=Part(index=block.index, opaque=opaque, origin=self._origin)))

    def _end_reasoning(self, block: _Block, events: list[ChatEvent]) -> None:
        if block.redacted:
            part = Part(
                index=block.index,
                reasoning=ReasoningPart(redacted=True),
                origin=self._origin,
                provider_state=_join(block.redacted).encode(),
            )
            events.append(ChatEvent(part=part))
            return
        if not block.begun:
            events.append(ChatEvent(reasoning=ReasoningDelta(index=block.index)))
        if block.signature:
            state = block.signature.encode()
            events.append(ChatEvent(part_state=PartState(index=block.index, origin=self._origin, provider_state=state)))

    def _read_citations(self, number: int, content: Json, events: list[ChatEvent]) -> None:
        block = self._begin(number, "text")
        text = "".join(piece.get("text", "") for piece in content.get("content") or ())
        if text:
            events.append(ChatEvent(text=TextDelta(index=block.index, text=text)))
        citations = [_citation(found) for found in content.get("citations") or ()]
        if citations:
            events.append(ChatEvent(text=TextDelta(index=block.index, citations=citations)))


def _kind(union: Json) -> str:
    """The name of the only member. Raises `LookupError` when there is none."""
    for name in union:
        return name
    raise LookupError("an empty block")


def _join(pieces: list[str]) -> str:
    """Blobs as one. A single one stays as it was, letter by letter."""
    if len(pieces) == 1:
        return pieces[0]
    return b64encode(b"".join(b64decode(piece) for piece in pieces)).decode("ascii")


def _merge(raw: dict[str, Any], piece: Any) -> None:
    """Adds a piece: an object's fields, or a list's items to the content."""
    if isinstance(piece, dict):
        raw.update(cast("dict[str, Any]", piece))
    elif isinstance(piece, list):
        raw["content"] = [*raw.get("content", []), *cast("list[Any]", piece)]
    else:
        raw.setdefault("pieces", []).append(piece)


def _citation(found: Json) -> Citation:
    location: Json = found.get("location") or {}
    kind = next(iter(location), "")
    place: Json = location.get(kind) or {}
    citation = Citation(
        title=found.get("title") or "",
        url=place.get("url") or found.get("source") or "",
        cited_text="".join(piece.get("text") or "" for piece in found.get("sourceContent") or ()),
    )
    if kind == "documentChar":
        # Pages, chunks and results are counted in other units than characters.
        if place.get("start") is not None:
            citation.start = place["start"]
        if place.get("end") is not None:
            citation.end = place["end"]
    return citation
