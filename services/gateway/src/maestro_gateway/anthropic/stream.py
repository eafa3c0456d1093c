"""Answers in the shape of Anthropic's messages, as a stream of events. Pure.

That stream has one block at a time, the contract lets parts interleave: text that comes back to an earlier part begins
a new block; what comes while a call is being written waits until its arguments are whole.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import orjson

from maestro.llm.v1.chat_pb2 import (
    ChatEvent,
    Finish,
    PartState,
    Started,
    ToolCallDelta,
    Warning,  # noqa: A004 - the contract's name
)
from maestro.llm.v1.message_pb2 import Citation, Part
from maestro.llm.v1.usage_pb2 import Usage
from maestro_gateway.anthropic.answer import (
    blocks,
    citation_data,
    encode_error,
    frame,
    reason_word,
    stop_details,
    usage_data,
    warnings_of,
)
from maestro_gateway.anthropic.request import Asked
from maestro_gateway.anthropic.seal import seal
from maestro_gateway.dialect import facts
from maestro_gateway.json_codec.answer import PING
from maestro_sdk.adapter.fold import merge_usage
from maestro_sdk.errors import MaestroError

_NOT_ASSIGNED = -1
_IDLE = b'event: ping\ndata: {"type":"ping"}\n\n'


class MessageEvents:
    """Turns the events of one answer into server-sent events."""

    __slots__ = (
        "_arguments",
        "_asked",
        "_call_ids",
        "_found",
        "_kind",
        "_next",
        "_part",
        "_seen",
        "_started",
        "_state_of_call",
        "_usage",
        "_waiting",
        "_warnings",
        "route",
    )

    def __init__(self, asked: Asked) -> None:
        self.route = ""
        """Empty when the model was named directly."""
        self._asked = asked
        self._started = Started()
        self._usage = Usage()
        self._warnings: list[Warning] = []
        self._found: list[bytes] = []
        # The block that is open: its kind, and the part that it belongs to.
        self._kind = ""
        self._part = _NOT_ASSIGNED
        self._next = 0
        # The arguments of the call that is open, and the state that follows it.
        self._arguments: list[str] = []
        self._state_of_call: Part | None = None
        # What waits for the end of a call, by part.
        self._waiting: dict[int, list[tuple[str, Any]]] = {}
        # Parts that had a block, with its kind.
        self._seen: dict[int, str] = {}
        self._call_ids: dict[int, str] = {}

    def frames(self, events: Iterable[ChatEvent]) -> bytes:
        """The events of some events; `message_stop` follows the last one."""
        batch = list(events)
        for event in batch:
            match event.WhichOneof("kind"):
                case "text" | "reasoning" | "tool_call" | "part_state" | "part" as kind:
                    content = getattr(event, kind)
                    if self._kind == "tool_use" and content.index != self._part:
                        self._waiting.setdefault(content.index, []).append((kind, content))
                    else:
                        self._write(kind, content)
                    if self._waiting:
                        self._catch_up()
                case "usage":
                    merge_usage(self._usage, event.usage)
                case "started":
                    self._begin(event.started, batch)
                case "warning":
                    self._warnings.append(event.warning)
                case "finish":
                    self._finish(event.finish)
                case _:
                    pass  # Has no place in this shape.
        found, self._found = self._found, []
        return b"".join(found)

    def idle(self) -> bytes:
        """A sign of life: the stream begins with `message_start`, so before that it is a comment."""
        return _IDLE if self._started.provider else PING

    def error(self, error: MaestroError, request_id: str) -> bytes:
        """The event of an error that ends a stream."""
        return b"event: error\ndata: %b\n\n" % encode_error(error, request_id)

    def _begin(self, started: Started, batch: Iterable[ChatEvent]) -> None:
        self._started = started
        usage = next((event.usage for event in batch if event.WhichOneof("kind") == "usage"), Usage())
        message: dict[str, Any] = {
            **frame(started.response_id, f"{started.provider}/{started.model}"),
            "content": [],
            "stop_reason": None,
            "stop_sequence": None,
            "usage": usage_data(usage),
        }
        self._send("message_start", {"message": message})

    def _write(self, kind: str, content: Any) -> None:
        """Writes what belongs to the open block, or opens one for it."""
        match kind:
            case "text":
                if content.text:
                    self._open("text", content.index, {"type": "text", "text": ""})
                    self._delta({"type": "text_delta", "text": content.text})
                if content.citations:
                    self._cite(content.index, content.citations)
            case "reasoning":
                self._open("thinking", content.index, {"type": "thinking", "thinking": "", "signature": ""})
                self._delta({"type": "thinking_delta", "thinking": content.text})
            case "tool_call":
                self._call(content)
            case "part_state":
                self._state(content)
            case _:
                self._whole(content)

    def _cite(self, part: int, citations: Iterable[Citation]) -> None:
        self._open("text", part, {"type": "text", "text": ""})
        for each in citations:
            self._delta({"type": "citations_delta", "citation": citation_data(each)})

    def _catch_up(self, *, at_end: bool = False) -> None:
        """Writes what waited, as far as the call before it is whole."""
        while self._waiting and (at_end or self._kind != "tool_use" or self._is_whole()):
            self._close()
            part = next(iter(self._waiting))
            for kind, content in self._waiting.pop(part):
                self._write(kind, content)

    def _is_whole(self) -> bool:
        """Whether the arguments of the open call are a JSON object."""
        # Looked at only when it may be: this is asked for every piece of what waits.
        if not self._arguments or not self._arguments[-1].rstrip().endswith("}"):
            return False
        try:
            orjson.loads("".join(self._arguments))
        except orjson.JSONDecodeError:
            return False
        return True

    def _open(self, kind: str, part: int, block: Mapping[str, Any]) -> None:
        """Makes the block of a part the open one."""
        if self._kind == kind and self._part == part:
            return
        self._close()
        self._kind, self._part = kind, part
        self._seen[part] = kind
        self._send("content_block_start", {"index": self._next, "content_block": block})

    def _close(self) -> None:
        if not self._kind:
            return
        self._send("content_block_stop", {"index": self._next})
        self._next += 1
        self._kind, self._part = "", _NOT_ASSIGNED
        self._arguments.clear()
        sealed, self._state_of_call = self._state_of_call, None
        if sealed is not None:
            self._aside({"type": "redacted_thinking", "data": seal(sealed)})

    def _delta(self, delta: Mapping[str, Any]) -> None:
        self._send("content_block_delta", {"index": self._next, "delta": delta})

    def _call(self, call: ToolCallDelta) -> None:
        if self._part != call.index:
            if call.index in self._call_ids:
                return  # Its arguments were whole: only white space can follow.
            self._call_ids[call.index] = call.call_id
            block: dict[str, Any] = {"type": "tool_use", "id": call.call_id, "name": call.name, "input": {}}
            self._open("tool_use", call.index, block)
        if call.arguments_json:
            self._arguments.append(call.arguments_json)
            self._delta({"type": "input_json_delta", "partial_json": call.arguments_json})

    def _state(self, state: PartState) -> None:
        sealed = Part(index=state.index, origin=state.origin, provider_state=state.provider_state)
        if self._kind == "thinking" and self._part == state.index:
            sealed.reasoning.SetInParent()
            self._delta({"type": "signature_delta", "signature": seal(sealed)})
            self._close()
            return
        if state.index in self._call_ids:
            sealed.tool_call.call_id = self._call_ids[state.index]
            if self._part == state.index:
                # More of its arguments may follow.
                self._state_of_call = sealed
                return
        elif self._seen.get(state.index) == "thinking":
            sealed.reasoning.SetInParent()
        else:
            sealed.text.text = "said" if state.index in self._seen else ""
        self._aside({"type": "redacted_thinking", "data": seal(sealed)})

    def _whole(self, part: Part) -> None:
        if part.index in self._seen:
            # It repeats what was written of it.
            if part.HasField("provider_state"):
                self._state(PartState(index=part.index, origin=part.origin, provider_state=part.provider_state))
            return
        for block in blocks(part):
            match block["type"]:
                case "text":
                    self._open("text", part.index, {"type": "text", "text": ""})
                    self._delta({"type": "text_delta", "text": block["text"]})
                    if part.text.citations:
                        self._cite(part.index, part.text.citations)
                case "tool_use":
                    self._call_ids[part.index] = part.tool_call.call_id
                    self._open("tool_use", part.index, {**block, "input": {}})
                    text = orjson.dumps(block["input"]).decode()
                    self._delta({"type": "input_json_delta", "partial_json": text})
                    self._close()
                case _:
                    self._aside(block)

    def _aside(self, block: Mapping[str, Any]) -> None:
        """A block that comes whole."""
        self._open(str(block["type"]), _NOT_ASSIGNED, block)
        self._close()

    def _finish(self, finish: Finish) -> None:
        self._catch_up(at_end=True)
        self._close()
        merge_usage(self._usage, finish.usage)
        started = self._started
        cost = finish.cost if finish.HasField("cost") else None
        told = warnings_of(self._asked, started.provider, self._warnings)
        delta = {
            "stop_reason": reason_word(finish.reason, finish.raw_reason),
            "stop_sequence": finish.stop_sequence or None,
            "stop_details": stop_details(finish.reason, finish.provider_metadata),
        }
        more = {"maestro": facts(started.provider, started.attempt, self.route, cost, told)}
        self._send("message_delta", {"delta": delta, "usage": usage_data(self._usage), **more})
        self._send("message_stop", {})

    def _send(self, kind: str, data: Mapping[str, Any]) -> None:
        body = orjson.dumps({"type": kind, **data})
        self._found.append(b"event: %b\ndata: %b\n\n" % (kind.encode(), body))
