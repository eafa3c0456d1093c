"""`maestro replay`: asks a recorded request again, and compares the answers."""

from __future__ import annotations

import asyncio
import difflib
import hashlib
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, cast
from urllib.parse import quote

from google.protobuf.json_format import MessageToDict, ParseDict, ParseError

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, ChatResponse, StreamChatResponse
from maestro_sdk.cli.api import Api
from maestro_sdk.cli.target import Target
from maestro_sdk.llm_client import LLMClient

_MERGED = {"text": "text", "reasoning": "text", "tool_call": "arguments_json"}
_LABEL = "replay_of"
_MOST_LABELS = 32
_SENTENCE = re.compile(r"(?<=\\n)|(?<=[.!?] )")
_WIDEST = 200
"""Characters of a line of a difference, about."""
_TIMEOUT = 600.0


class NotReplayable(Exception):
    """The request can't be asked again as it was; the text says why."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """A recorded request, and its answer in a form that can be compared. `model` is the one that answered."""

    request: ChatRequest
    streamed: bool
    answer: tuple[str, ...]
    model: str
    remarks: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two answers, line by line: `at` is the first line at which they differ, counted from 1; 0 when they are equal."""

    before: tuple[str, ...]
    after: tuple[str, ...]

    @property
    def at(self) -> int:
        pairs = zip(self.before, self.after, strict=False)
        differing = next((number for number, (old, new) in enumerate(pairs, 1) if old != new), 0)
        if not differing and len(self.before) != len(self.after):
            differing = min(len(self.before), len(self.after)) + 1
        return differing

    @property
    def frames(self) -> int:
        """How many lines the longer one of them has."""
        return max(len(self.before), len(self.after))

    def diff(self) -> list[str]:
        """The difference for a person: long texts sentence by sentence, so that those that are equal are left out."""
        before, after = (_pieces(lines) for lines in (self.before, self.after))
        return list(difflib.unified_diff(before, after, "recorded", "now", lineterm=""))


def recorded(target: Target, request_id: str) -> Recorded:
    """What was recorded of a request. Raises `ApiError` and `NotReplayable`."""
    found = Api(target.url, target.key).get(f"/v1/requests/{quote(request_id, safe='')}/content")
    match found:
        case {"content_json": str(text), "content_digest": str(digest)}:
            if hashlib.sha256(text.encode()).hexdigest() != digest:
                raise NotReplayable("the content is not what was recorded: its digest is another")
            return read_content(json.loads(text), request_id)
        case _:
            raise NotReplayable(f"what {target.url} answers is no recorded content: is it a mesh?")


def read_content(document: dict[str, Any], request_id: str) -> Recorded:
    """Recorded content as something that can be asked again. Raises `NotReplayable`."""
    missing = [each["path"] for each in document.get("omitted", ()) if str(each["path"]).startswith("request.")]
    if missing:
        raise NotReplayable(f"what is binary is not recorded, so it can't be asked again: {', '.join(missing)}")
    try:
        request = ParseDict(document["request"], ChatRequest())
        if "response" in document:
            response = ParseDict(document["response"], ChatResponse())
            answer, model, ended = lines_of_response(response), f"{response.provider}/{response.model}", True
        else:
            frames = [ParseDict(frame, StreamChatResponse()) for frame in document["frames"]]
            events = [event for frame in frames for event in frame.events]
            started = next((event.started for event in events if event.HasField("started")), None)
            model = f"{started.provider}/{started.model}" if started is not None else ""
            answer = lines_of_events(events)
            ended = any(event.HasField("finish") for event in events)
    except (ParseError, KeyError) as error:
        raise NotReplayable(f"the content was recorded by another version: {error}") from None
    remarks: list[str] = []
    if redactions := cast("dict[str, int]", document.get("redactions") or {}):
        told = ", ".join(f"{rule}: {count}" for rule, count in redactions.items())
        remarks.append(f"it was redacted ({told}), so neither question nor answer are what they were")
    if document.get("truncated"):
        remarks.append("its answer was too long to be recorded whole")
    if not model:
        remarks.append("no backend began to answer it then, so any may answer now")
    else:
        request.model = model
        if not ended and not document.get("truncated"):
            remarks.append("its answer broke off then, or its caller left")
    # Not part of the question: another connection reads the new answer.
    request.resumable = False
    if len(request.metadata) < _MOST_LABELS:
        request.metadata[_LABEL] = request_id
    return Recorded(request, "response" not in document, answer, model, tuple(remarks))


def ask_again(target: Target, found: Recorded) -> Comparison:
    """Asks the backend that answered then, and compares. Raises `MaestroError`."""
    return Comparison(found.answer, asyncio.run(_ask(target, found)))


async def _ask(target: Target, found: Recorded) -> tuple[str, ...]:
    async with LLMClient(target.url, target.key, timeout=_TIMEOUT) as client:
        if not found.streamed:
            return lines_of_response(await client.chat(found.request))
        async with client.stream(found.request) as stream:
            return lines_of_events([event async for event in stream])


def lines_of_events(events: Iterable[ChatEvent]) -> tuple[str, ...]:
    """Events as lines of JSON, without what is another one each time: identifiers, counts, cost.

    Pieces that follow each other are one: how an answer is cut into pieces is chance.
    """
    found: list[tuple[str, dict[str, Any]]] = []
    for event in events:
        kind = event.WhichOneof("kind")
        if kind is None or kind in ("usage", "part_state"):
            continue
        body = _plain(MessageToDict(getattr(event, kind), preserving_proto_field_name=True))
        held = _MERGED.get(kind)
        if held is not None:
            piece = body.pop(held, "")
            if found and found[-1][0] == kind and found[-1][1].get("index") == body.get("index"):
                found[-1][1][held] = found[-1][1].get(held, "") + piece
                continue
            body[held] = piece
        found.append((kind, body))
    return tuple(_line({kind: body}) for kind, body in found)


def lines_of_response(response: ChatResponse) -> tuple[str, ...]:
    """A whole answer as lines of JSON, without what is another one each time."""
    document = _plain(MessageToDict(response, preserving_proto_field_name=True))
    parts = cast("list[Any]", document.pop("parts", []))
    return (*(_line({"part": part}) for part in parts), _line({"response": document}))


_CHANGING = frozenset(
    {
        "attempt",
        "cached",
        "call_id",
        "cost",
        "headroom",
        "logprobs",
        "provider_metadata",
        "provider_state",
        "response_id",
        "stream",
        "usage",
    }
)


def _plain(value: Any) -> Any:
    match value:
        case dict():
            members = cast("dict[str, Any]", value)
            return {name: _plain(each) for name, each in members.items() if name not in _CHANGING}
        case list():
            return [_plain(each) for each in cast("list[Any]", value)]
        case _:
            return value


def _line(document: Any) -> str:
    """One line of JSON, in which nothing gives orders to a terminal."""
    text = json.dumps(document, ensure_ascii=False, sort_keys=True)
    if text.isprintable():
        return text
    return "".join(letter if letter.isprintable() else json.dumps(letter)[1:-1] for letter in text)


def _pieces(lines: Iterable[str]) -> list[str]:
    """Lines cut behind sentences and ends of lines of their texts; without those, behind words."""
    found: list[str] = []
    for line in lines:
        if len(line) <= _WIDEST:
            found.append(line)
            continue
        for sentence in _SENTENCE.split(line):
            found += re.findall(rf".{{1,{_WIDEST}}}(?: |$)|.{{1,{_WIDEST}}}", sentence)
    return found
