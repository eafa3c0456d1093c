"""Goes on with a broken answer at another backend: what it is asked, and how its events join those already shown.

Pure; one `Continuation` per request whose route resumes. What the caller sees is one answer: one `started`, the text
whole under its own index, `switched` where the other backend goes on, one `finish` with the tokens of all of them.

Reasoning that was shown stays shown, but no other backend can take it along. An answer of which nothing but reasoning
was shown begins anew, its reasoning under an index of its own.
"""

from __future__ import annotations

from collections.abc import Iterable
from decimal import Decimal

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, Finish, ReasoningEffort, Switched, TextDelta
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro.llm.v1.model_pb2 import Feature
from maestro.llm.v1.usage_pb2 import Cost, Usage
from maestro_sdk.adapter.fold import merge_usage
from maestro_sdk.errors import StreamBroken
from maestro_sdk.mesh.seam import Seam
from maestro_sdk.mesh.table import Backend

INSTRUCTION = (
    "Your last message was cut off by a failure of the connection. Go on with it exactly where it stops, as if there "
    "had been no break: begin with the very next character, repeat nothing of it, and add no remark about the break."
)
"""What a backend without FEATURE_PREFILL is asked, after the answer so far."""

_PREFILL, _TOOLS = 1 << Feature.FEATURE_PREFILL, 1 << Feature.FEATURE_TOOLS
_COUNTS = tuple(field.name for field in Usage.DESCRIPTOR.fields if field.name != "estimated")
# Four characters a token is the usual rule of thumb.
_CHARACTERS_PER_TOKEN = 4


class Continuation:
    """One request and the answer so far."""

    __slots__ = (
        "_anew",
        "_before",
        "_cost",
        "_fresh",
        "_heard",
        "_leg",
        "_obstacle",
        "_open",
        "_pieces",
        "_request",
        "_texts",
        "_told",
        "_top",
        "_used",
        "_writing",
    )

    def __init__(self, request: ChatRequest) -> None:
        """`request` is what the caller asked; it is read, never changed."""
        self._request = request
        self._obstacle = ""
        # Text of each text part as pieces, in the order in which the parts began; the one that grows, and whether
        # another backend may add to it; the highest index of all parts.
        self._texts: dict[int, list[str]] = {}
        self._pieces: list[str] = []
        self._writing = -1
        self._open = False
        self._top = -1
        # Tokens of the attempts that broke, and those with what this attempt told; whether it told any; characters that
        # came after; whether anything of it was shown.
        self._before, self._used = Usage(), Usage()
        self._told = False
        self._fresh = 0
        self._heard = False
        # Output tokens of attempts of which nothing went into the text; cost of those that broke, None when unknown.
        self._anew = 0
        self._cost: Cost | None = Cost(usd="0")
        self._leg: _Leg | None = None

    def note(self, events: Iterable[ChatEvent]) -> None:
        """Takes every event that is handed on to the caller, those that `join` gave included."""
        for event in events:
            match event.WhichOneof("kind"):
                case "text":
                    self._note_text(event.text)
                case "reasoning":
                    self._touch(event.reasoning.index)
                    self._fresh += len(event.reasoning.text)
                case "tool_call":
                    self._touch(event.tool_call.index)
                    self._obstacle = self._obstacle or "a tool call has begun"
                case "part":
                    self._note_part(event.part)
                case "part_state":
                    self._touch(event.part_state.index)
                    if event.part_state.index == self._writing:
                        # Whoever signed the part did not sign what another backend would add to it.
                        self._open = False
                case "usage":
                    merge_usage(self._used, event.usage)
                    self._told, self._fresh = True, 0
                case "finish":
                    self._obstacle = "the answer is complete"
                case "switched":
                    self._heard = True
                case _:
                    pass  # started, warning: nothing of it has to be told to another backend

    def refusal(self) -> str:
        """Why no other backend can go on now, for a person; empty when one can."""
        if self._obstacle or not self._text().rstrip():
            return self._obstacle
        request = self._request
        if request.HasField("logprobs"):
            return "log probabilities were asked for, and those of a continued text would be of another text"
        if request.response_format.WhichOneof("kind") in ("json", "json_schema"):
            # Providers' grammars and the adapters' checks alike begin with the first character of the answer they make:
            # they would enforce a second document behind half of a first one.
            return "the form of the answer is enforced, and nothing enforces that of its second half"
        if request.HasField("max_tokens") and self._left() <= 0:
            return "max_tokens is used up"
        return ""

    def fits(self, backend: Backend) -> bool:
        """Whether `backend` can go on: it takes an answer as begun, or an instruction, and has room for it."""
        text = self._text().rstrip()
        if not text:
            return True
        if self._request.routing.require_native and not self._prefills(backend):
            return False
        return not backend.window or (_characters(self._request) + len(text)) // _CHARACTERS_PER_TOKEN < backend.window

    def follow(self, backend: Backend, cost: Cost | None = None, usage: Usage | None = None) -> ChatRequest:
        """The request for `backend`, which goes on from here. What it sends then goes through `join`.

        `cost` and `usage` are those of the attempt that broke. An unknown cost makes that of the whole answer unknown,
        an unknown usage is estimated. Ask `refusal` first.
        """
        shown = self._text()
        told = shown.rstrip()
        self._end_attempt(cost, usage)
        if not told:
            self._anew = self._before.output_tokens
        request = ChatRequest()
        request.CopyFrom(self._request)
        request.model = backend.model
        native = self._prefills(backend)
        if told:
            if request.HasField("max_tokens"):
                request.max_tokens = self._left()
            _limit_reasoning(request, native)
            # No white space at the end: some providers refuse it, and for none does a token begin after it.
            _append(request, told)
            if not native:
                request.messages.append(Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text=INSTRUCTION))]))
        self._leg = _Leg(Seam(shown, may_repeat=not native), self._writing if self._open else None, self._top + 1)
        return request

    def join(self, events: Iterable[ChatEvent], switched: Switched) -> list[ChatEvent]:
        """The events to hand on for `events`, the next ones of the backend that goes on; `switched` comes first, once.

        Text may be held back until it is certain that it repeats nothing; it comes before `finish` at the latest.
        """
        leg = self._leg
        if leg is None:
            raise ValueError("join before follow: no backend goes on")
        joined: list[ChatEvent] = []
        if not leg.announced:
            leg.announced = True
            joined.append(ChatEvent(switched=switched))
        for event in events:
            match event.WhichOneof("kind"):
                case "started":
                    pass
                case "usage":
                    joined.append(ChatEvent(usage=_sum(self._before, event.usage)))
                case "finish":
                    leg.flush(joined)
                    joined.append(self._finish(event.finish))
                case "text" | "reasoning" | "tool_call" | "part" | "part_state":
                    leg.move(event, joined)
                case _:
                    joined.append(event)
        return joined

    def spent(self) -> Usage:
        """Tokens of all attempts so far; estimated where an attempt broke before its provider told them."""
        total = Usage()
        total.CopyFrom(self._used)
        if self._heard and not self._told:
            total.input_tokens += _characters(self._request) // _CHARACTERS_PER_TOKEN
            total.estimated = True
        if self._fresh:
            total.output_tokens += -(-self._fresh // _CHARACTERS_PER_TOKEN)
            total.estimated = True
        return total

    def _prefills(self, backend: Backend) -> bool:
        """Whether the model itself goes on with an answer as begun."""
        # A polyfill of tools holds the whole answer to a form, which its rest does not have.
        wanted = _PREFILL | (_TOOLS if self._request.tools else 0)
        return backend.native & wanted == wanted

    def _text(self) -> str:
        return "".join(piece for pieces in self._texts.values() for piece in pieces)

    def _left(self) -> int:
        return self._request.max_tokens - self.spent().output_tokens + self._anew

    def _note_text(self, delta: TextDelta) -> None:
        if delta.index != self._writing:
            self._begin_text(delta.index)
        self._heard = True
        self._pieces.append(delta.text)
        self._fresh += len(delta.text)
        if delta.logprobs:
            self._obstacle = self._obstacle or "the text comes with log probabilities"

    def _begin_text(self, index: int) -> None:
        self._touch(index)
        if index in self._texts:
            self._obstacle = self._obstacle or "text parts grow side by side"
        self._pieces = self._texts.setdefault(index, [])
        self._writing, self._open = index, True

    def _note_part(self, part: Part) -> None:
        self._touch(part.index)
        match kind := part.WhichOneof("kind"):
            case "text":
                if part.index != self._writing:
                    self._begin_text(part.index)
                known = sum(map(len, self._pieces))
                self._pieces[:] = [part.text.text]
                self._fresh += max(0, len(part.text.text) - known)
                self._open = self._open and not part.HasField("provider_state")
            case "reasoning":
                self._fresh += len(part.reasoning.text)
            case "tool_call":
                self._obstacle = self._obstacle or "a tool call has begun"
            case _:
                self._obstacle = self._obstacle or f"the answer holds {kind}, which no other backend can take along"

    def _touch(self, index: int) -> None:
        self._heard = True
        self._top = max(self._top, index)

    def _end_attempt(self, cost: Cost | None, usage: Usage | None) -> None:
        # An attempt of which nothing was shown is no part of this answer: it is accounted like any that fell over.
        if self._heard or self._told:
            self._cost = None if self._cost is None or cost is None else _sum_costs(self._cost, cost)
            self._before = self.spent() if usage is None else _sum(self._before, usage)
        self._used.CopyFrom(self._before)
        self._told = self._heard = False
        self._fresh = 0

    def _finish(self, finish: Finish) -> ChatEvent:
        event = ChatEvent(finish=finish)
        event.finish.usage.CopyFrom(_sum(self._before, finish.usage))
        if finish.HasField("cost"):
            if self._cost is None:
                event.finish.ClearField("cost")
            else:
                event.finish.cost.CopyFrom(_sum_costs(self._cost, finish.cost))
        return event


class _Leg:
    """The events of the backend that goes on, on their way into the answer."""

    __slots__ = ("_indexes", "_last", "_next", "_polyfilled", "_said", "_seam", "_target", "announced")

    def __init__(self, seam: Seam, target: int | None, first: int) -> None:
        """`target` is the part that its first text goes on with; `first` the first index that is free."""
        self._seam, self._target, self._next = seam, target, first
        self._indexes: dict[int, int] = {}
        # What the backend itself said, by its own index, in text parts that are not in the answer as it made them.
        self._said: dict[int, list[str]] = {}
        self._last = 0
        self._polyfilled = False
        self.announced = False

    def move(self, event: ChatEvent, joined: list[ChatEvent]) -> None:
        """Adds what the event is in the answer."""
        moved = ChatEvent()
        moved.CopyFrom(event)
        match event.WhichOneof("kind"):
            case "text":
                if self._is_changed(event.text.index):
                    self._say(moved.text, joined)
                    return
                moved.text.index = self._index(event.text.index)
            case "reasoning":
                moved.reasoning.index = self._index(event.reasoning.index)
            case "tool_call":
                self.flush(joined)
                moved.tool_call.index = self._index(event.tool_call.index)
            case "part":
                if event.part.HasField("text") and self._is_changed(event.part.index):
                    self._say_whole(event.part, joined)
                    return
                self.flush(joined)
                moved.part.index = self._index(event.part.index)
            case _:
                if event.part_state.index in self._said:
                    return  # The part is not what the backend signed.
                moved.part_state.index = self._index(event.part_state.index)
        joined.append(moved)

    def flush(self, joined: list[ChatEvent]) -> None:
        """Adds the text that is held back."""
        if rest := self._seam.close():
            index = self._index(self._last)
            joined.append(ChatEvent(text=TextDelta(index=index, text=rest, polyfilled=self._polyfilled)))

    def _is_changed(self, index: int) -> bool:
        """Whether the text part is in the answer otherwise than the backend makes it: joined or shortened."""
        if index in self._said:
            return True
        if index in self._indexes:
            return False
        if self._target is not None:
            self._indexes[index], self._target = self._target, None
        elif not self._seam.open:
            return False
        self._said[index] = []
        return True

    def _say(self, delta: TextDelta, joined: list[ChatEvent]) -> None:
        self._said[delta.index].append(delta.text)
        self._last, self._polyfilled = delta.index, delta.polyfilled
        delta.text = self._seam.feed(delta.text)
        if delta.text or delta.citations or delta.logprobs:
            delta.index = self._index(delta.index)
            joined.append(ChatEvent(text=delta))

    def _say_whole(self, part: Part, joined: list[ChatEvent]) -> None:
        """A whole part as the rest of its text: in the answer it is longer or shorter than the backend knows."""
        said = "".join(self._said[part.index])
        if not part.text.text.startswith(said):
            raise StreamBroken("a whole text part contradicts its deltas")
        rest = TextDelta(index=part.index, text=part.text.text[len(said) :], polyfilled=part.polyfilled)
        rest.citations.extend(part.text.citations)
        self._say(rest, joined)

    def _index(self, index: int) -> int:
        found = self._indexes.get(index)
        if found is None:
            found = self._indexes[index] = self._next
            self._next += 1
        return found


def _characters(request: ChatRequest) -> int:
    count = len(request.system)
    for message in request.messages:
        for part in message.parts:
            count += len(part.text.text) if part.HasField("text") else 0
    return count


def _append(request: ChatRequest, text: str) -> None:
    """Adds to the assistant's turn at the end, or begins one; what the caller began and the answer are one text."""
    last = request.messages[-1] if request.messages else None
    if last is None or last.role != Role.ROLE_ASSISTANT:
        request.messages.append(Message(role=Role.ROLE_ASSISTANT, parts=[Part(text=TextPart(text=text))]))
    elif last.parts[-1].HasField("text") and not last.parts[-1].HasField("provider_state"):
        last.parts[-1].text.text += text
    else:
        last.parts.append(Part(text=TextPart(text=text)))


def _limit_reasoning(request: ChatRequest, native: bool) -> None:
    """Takes out reasoning that cannot be: before a text that has begun, or of more tokens than are left."""
    if not request.HasField("reasoning") or request.reasoning.effort == ReasoningEffort.REASONING_EFFORT_OFF:
        return
    request.reasoning.ClearField("budget_tokens")
    if native or not request.reasoning.effort:
        request.ClearField("reasoning")


def _sum(one: Usage, other: Usage) -> Usage:
    total = Usage(estimated=one.estimated or other.estimated)
    for name in _COUNTS:
        if value := getattr(one, name) + getattr(other, name):
            setattr(total, name, value)
    return total


def _sum_costs(one: Cost, other: Cost) -> Cost:
    """The sum, under the later price list."""
    return Cost(
        usd=format(Decimal(one.usd) + Decimal(other.usd), "f"),
        price_date=max(one.price_date, other.price_date),
        estimated=one.estimated or other.estimated,
    )
