"""One answer of the model: its text is read, and what may go to the caller goes at once."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from maestro.llm.v1.chat_pb2 import ChatEvent, TextDelta
from maestro.llm.v1.message_pb2 import Citation
from maestro_sdk.adapter.polyfill.calls import Calls
from maestro_sdk.adapter.polyfill.json_text import NotJson, parse
from maestro_sdk.adapter.polyfill.plan import Means, Plan
from maestro_sdk.adapter.polyfill.tools_answer import AnswerParser, CallBegin, CallEnd, CallMore
from maestro_sdk.adapter.polyfill.tools_parser import Broken, Call, Gap, Parser, Text
from maestro_sdk.adapter.toolcalls import PartIndexes

Piece: TypeAlias = Text | Gap | Call | CallBegin | CallMore | CallEnd | Broken


class Attempt:
    """Reads one answer. After something broken nothing more is given out: what follows is to be written anew."""

    def __init__(self, plan: Plan, calls: Calls, indexes: PartIndexes, response_id: str, *, repairing: bool) -> None:
        """`repairing`: only calls were asked for, so text waits in `held` until it is known what it is."""
        self.broken = ""
        """What is wrong with a call, for the model; empty while all is well."""
        self.partial = False
        """Whether the beginning of what is broken has already gone to the caller."""
        self.cut = False
        """Whether what is broken is so because the text ended."""
        self.native_calls = False
        """Whether the model made calls by itself."""
        self.refused = False
        """Whether the model refused by a part of its own."""
        self.citations: list[Citation] = []
        self._calls = calls
        self._taken = calls.count
        self._indexes = indexes
        self.response_id = response_id
        self._structured = plan.calls and plan.tools is Means.STRUCTURED
        self._holds = repairing or plan.form is not Means.NATIVE
        self._held: list[str] = []
        self._said: list[str] = []
        self._in_text = False
        self._index = -1
        self._reader: Parser | AnswerParser | None = None
        if self._structured:
            self._reader = AnswerParser(json_reply=plan.form is not Means.NATIVE)
        elif plan.calls:
            self._reader = Parser()

    @property
    def said(self) -> str:
        """All text of the model, as it wrote it."""
        return "".join(self._said)

    @property
    def held(self) -> str:
        """The text that was not given out: it waits for its form, or stands in a repair."""
        return "".join(self._held)

    @property
    def made(self) -> int:
        """How many calls this answer brought."""
        return self._calls.count - self._taken

    def feed(self, text: str, index: int) -> list[ChatEvent]:
        """The events that a piece of the model's text brings; `index` is that of the model's part."""
        self._said.append(text)
        if index != self._index:
            self._index, self._in_text = index, False
        pieces: Sequence[Piece] = [Text(text)] if self._reader is None else self._reader.feed(text)
        return [event for piece in pieces for event in self._take(piece)]

    def end(self) -> list[ChatEvent]:
        """The events that the end of the text brings."""
        pieces: Sequence[Piece] = () if self._reader is None else self._reader.end()
        was_broken = bool(self.broken)
        events = [event for piece in pieces for event in self._take(piece)]
        self.cut = bool(self.broken) and not was_broken
        return events

    def see(self, event: ChatEvent) -> None:
        """Takes note of what the model did by itself, without text."""
        part = event.part.WhichOneof("kind") if event.HasField("part") else None
        self.native_calls = self.native_calls or event.HasField("tool_call") or part == "tool_call"
        self.refused = self.refused or part == "refusal"

    def say(self, text: str, *, polyfilled: bool) -> list[ChatEvent]:
        """The events of text that goes to the caller."""
        if not text:
            return []
        index = self._indexes.get("text") if self._in_text else self._indexes.begin("text")
        self._in_text = True
        citations, self.citations = self.citations, []
        return [ChatEvent(text=TextDelta(index=index, text=text, polyfilled=polyfilled, citations=citations))]

    def _take(self, piece: Piece) -> list[ChatEvent]:
        if self.broken:
            return []
        match piece:
            case Text(text) if self._holds:
                self._held.append(text)
                return []
            case Text(text):
                # A reply that has begun can't be taken back when its JSON breaks off.
                self.partial = self._structured
                return self.say(text, polyfilled=self._structured)
            case Gap():
                return []
            case Call(_, name, arguments):
                self._in_text = False
                self.broken = self._calls.flaw(name, arguments)
                return [] if self.broken else self._calls.whole(piece, self.response_id)
            case CallBegin(name):
                self._in_text = False
                self.broken = self._calls.flaw(name, None)
                return [] if self.broken else self._calls.begin(name, self.response_id)
            case CallMore(fragment):
                return self._calls.more(fragment)
            case CallEnd(name, arguments):
                return self._end_call(name, arguments)
            case Broken(_, error):
                self.broken = error
                self.partial = self.partial or self._calls.open
                return []

    def _end_call(self, name: str, arguments: str) -> list[ChatEvent]:
        try:
            parse(arguments)
        except NotJson as error:
            self.broken, self.partial = f"the arguments of {name} are not JSON: {error}", True
            return []
        return self._calls.end(self._calls.flaw(name, arguments))
