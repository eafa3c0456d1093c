"""What may happen between an adapter and its provider, and what a caller of the contract has to see of it.

One table for all wires: `SCENARIOS` scripts the provider's side by `maestro_sdk.testing.wire`, and says what comes out
of `StreamChat` and `Chat`. What differs between wires is data (`manners`). `driving` runs the table.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from maestro.llm.v1.chat_pb2 import ChatRequest, FinishReason, Reasoning, ReasoningEffort
from maestro.llm.v1.model_pb2 import Feature
from maestro_sdk.conformance import prompts
from maestro_sdk.conformance.manners import Cause, Manner, Refused
from maestro_sdk.testing.faults import Cut, Headers, Reply, Seen, Send, SendJson, Step, Wait
from maestro_sdk.testing.wire import PIECES, SETTLE, Answer, Tokens, ToolCall, Wire, chopped

TEXT = "".join(PIECES)
DEADLINE = 0.3
"""Seconds that the caller gives an answer which never comes."""
PACE = 0.08
"""Seconds between the pieces of a paced answer."""
SLOW = 0.3
"""Seconds until a slow first token."""


@dataclass(frozen=True, slots=True)
class Whole:
    """A good answer: exactly this."""

    text: str = TEXT
    calls: Sequence[ToolCall] = ()
    thoughts: str = ""
    reason: FinishReason.ValueType = FinishReason.FINISH_REASON_STOP
    raw_reason: str = ""
    """The provider's word, where it is to be checked."""
    tokens: Tokens | None = field(default_factory=Tokens)
    """None when the provider reports none."""
    signature: str = ""
    spread: float = 0.0
    """Seconds that lie at least between the first piece of a stream and its end."""


@dataclass(frozen=True, slots=True)
class Failed:
    """An error: its reason, from which status and verdicts follow, and the text that came before it in a stream."""

    reason: str
    before: str = ""
    retry_after: float | None = None
    upstream_status: int = 0
    """Status that the details have to tell; 0 when there was none."""


@dataclass(frozen=True, slots=True)
class Released:
    """The caller goes away after this text, or after `DEADLINE`; the provider's socket is closed at once."""

    after: str = ""
    deadline: bool = False


Wanted = Whole | Failed | Released


@dataclass(frozen=True, slots=True)
class Turn:
    """One answer of the provider, and what has to come of it; `whole` is set where `Chat` differs from `StreamChat`."""

    reply: Reply
    wanted: Wanted
    whole: Wanted | None = None


@dataclass(frozen=True, slots=True)
class Scenario:
    """`turns` are made for a wire; none means that the wire has no such thing."""

    name: str
    title: str
    turns: Callable[[Wire, Manner], Sequence[Turn]]
    request: Callable[[], ChatRequest] = field(default=lambda: prompts.ask("Say hello."))
    needs: Feature.ValueType = Feature.FEATURE_CHAT


def _tools() -> ChatRequest:
    return prompts.ask("How is the weather, and how late is it?", tools=[prompts.weather_tool(), prompts.time_tool()])


def _thinking() -> ChatRequest:
    return prompts.ask("Think.", reasoning=Reasoning(effort=ReasoningEffort.REASONING_EFFORT_HIGH), max_tokens=20_000)


_PARIS = ToolCall("call_a", "get_weather", {"city": "Paris", "note": "“rain”, \\ or \n sun? ☂ 😀"})
_ROME = ToolCall("call_b", "get_time", {"zone": "Europe/Rome", "big": 12345678901234567890, "list": [1.5, None, True]})
_BARE = ToolCall("call_c", "get_time", {})
_HTML = b"<html><head><title>Sign in</title></head><body>data: {}</body></html>\n"
_THOUGHTS = ("First", " one,", " then the other.")


def _answered(answer: Answer, **wanted: Any) -> Callable[[Wire, Manner], Sequence[Turn]]:
    return lambda wire, _: (Turn(wire.answer(answer), Whole(**wanted)),)


def _called(*calls: ToolCall, text: str = "", interleaved: bool = False, fragment: int = 7) -> Any:
    reason = FinishReason.FINISH_REASON_TOOL_CALLS

    def turns(wire: Wire, _: Manner) -> Sequence[Turn]:
        reply = wire.tools(*calls, text=text, interleaved=interleaved, fragment=fragment)
        return (Turn(reply, Whole(text=text, calls=calls, reason=reason)),)

    return turns


def _chopped(size: int) -> Callable[[Wire, Manner], Sequence[Turn]]:
    pieces = ("Grüße", " ☂", " 😀", " “漢字”\n\n", "data: [DONE]")
    reason = FinishReason.FINISH_REASON_TOOL_CALLS
    answer = Answer(pieces=pieces, calls=(_PARIS,))
    wanted = Whole(text="".join(pieces), calls=(_PARIS,), reason=reason)
    return lambda wire, _: (Turn(chopped(wire.answer(answer), size), wanted),)


def _thought(wire: Wire, manner: Manner) -> Sequence[Turn]:
    if not manner.thoughts:
        return ()
    answer = Answer(thoughts=_THOUGHTS, signature=manner.signature)
    return (Turn(wire.answer(answer), Whole(thoughts="".join(_THOUGHTS), signature=manner.signature)),)


def _counted(**counts: int) -> Callable[[Wire, Manner], Sequence[Turn]]:
    tokens = Tokens(**{"input": 2000, "output": 90, **counts})

    def turns(wire: Wire, manner: Manner) -> Sequence[Turn]:
        carried = set(counts) <= manner.counts
        return (Turn(wire.text(tokens=tokens), Whole(tokens=tokens)),) if carried else ()

    return turns


def _counted_together(wire: Wire, manner: Manner) -> Sequence[Turn]:
    counts = {"cache_read": 1200, "cache_write_5m": 300, "reasoning": 40}
    tokens = Tokens(input=2000, output=90, **{name: count for name, count in counts.items() if name in manner.counts})
    return (Turn(wire.text(tokens=tokens), Whole(tokens=tokens)),) if manner.counts else ()


def _stopped(wire: Wire, manner: Manner) -> Sequence[Turn]:
    return [
        Turn(wire.text(stop=word), Whole(reason=reason, raw_reason=word))
        for reason, words in manner.stops.items()
        for word in words
    ]


def _unknown_stop(wire: Wire, manner: Manner) -> Sequence[Turn]:
    word = manner.unknown_stop
    wanted = Whole(reason=FinishReason.FINISH_REASON_OTHER, raw_reason=word)
    return (Turn(wire.text(stop=word), wanted),) if word else ()


def _refused(cause: Cause) -> Callable[[Wire, Manner], Sequence[Turn]]:
    def turn(wire: Wire, refused: Refused) -> Turn:
        reply = wire.error(refused.status, refused.kind, refused.message, refused.headers)
        return Turn(reply, Failed(cause.value, upstream_status=refused.status))

    return lambda wire, manner: [turn(wire, refused) for refused in manner.refused(cause)]


def _waits(wire: Wire, _: Manner) -> Sequence[Turn]:
    hints: Sequence[tuple[Mapping[str, str], float]] = (({"retry-after": "7"}, 7.0), ({"retry-after-ms": "1500"}, 1.5))
    return [
        Turn(wire.rate_limited(headers=headers), Failed("RATE_LIMITED", retry_after=seconds, upstream_status=429))
        for headers, seconds in hints
    ]


def _broken(make: Callable[[Wire], Reply], reason: str, before: str = "") -> Callable[[Wire, Manner], Sequence[Turn]]:
    return lambda wire, _: (Turn(make(wire), Failed(reason, before)),)


def _in_band(pieces: int) -> Callable[[Wire, Manner], Sequence[Turn]]:
    return lambda wire, manner: (
        Turn(wire.in_band_error(pieces), Failed(manner.in_band, _said(pieces)), Failed(manner.in_document)),
    )


def _left(make: Callable[[Wire], Reply], after: str = "") -> Callable[[Wire, Manner], Sequence[Turn]]:
    return lambda wire, _: (Turn(make(wire), Released(after)),)


def _overdue(make: Callable[[Wire], Reply]) -> Callable[[Wire, Manner], Sequence[Turn]]:
    return lambda wire, _: (Turn(make(wire), Released(deadline=True)),)


def _instead(status: int, page: bytes, reason: str) -> Callable[[Wire, Manner], Sequence[Turn]]:
    """Something else than the provider answers: a proxy, a load balancer."""
    steps = (Headers(status, {"content-type": "text/html"}), *((Send(page),) if page else ()))
    failed = Failed(reason, upstream_status=status if status >= 400 else 0)
    return lambda _, __: (Turn(lambda _: steps, failed),)


def _ended(wire: Wire, manner: Manner) -> Sequence[Turn]:
    def reply(seen: Seen) -> Sequence[Step]:
        steps = wire.text()(seen)
        whole = any(isinstance(step, SendJson) for step in steps)
        return steps if whole else (*steps, Wait(SETTLE), Cut(reset=True))

    return (Turn(reply, Whole()),) if manner.terminal else ()


def _paced(wire: Wire, _: Manner) -> Sequence[Turn]:
    # Half of the time between the first and the last piece: a busy machine may be late with the first one.
    spread = PACE * (len(PIECES) - 1) / 2
    return (Turn(wire.text(pace=PACE), Whole(spread=spread)),)


def _said(pieces: int) -> str:
    return "".join(PIECES[:pieces])


SCENARIOS: tuple[Scenario, ...] = (
    Scenario("text", "a text in several pieces", _answered(Answer())),
    Scenario("paced", "pieces are passed on as they come", _paced),
    Scenario(
        "slow_first_token",
        "a first token that is long in coming",
        lambda w, _: [Turn(w.slow_first_token(SLOW), Whole())],
    ),
    Scenario("tool", "a call after text", _called(_PARIS, text="Let me look."), _tools, Feature.FEATURE_TOOLS),
    Scenario("tool_bare", "a call without arguments", _called(_BARE), _tools, Feature.FEATURE_TOOLS),
    Scenario("tool_letters", "arguments letter by letter", _called(_PARIS, fragment=1), _tools, Feature.FEATURE_TOOLS),
    Scenario("tool_whole", "arguments in one piece", _called(_ROME, fragment=0), _tools, Feature.FEATURE_TOOLS),
    Scenario(
        "tools_in_turn",
        "two calls, one after the other",
        _called(_PARIS, _ROME),
        _tools,
        Feature.FEATURE_PARALLEL_TOOLS,
    ),
    Scenario(
        "tools_interleaved",
        "three calls whose fragments alternate",
        _called(_PARIS, _ROME, _BARE, text="All at once.", interleaved=True, fragment=5),
        _tools,
        Feature.FEATURE_PARALLEL_TOOLS,
    ),
    Scenario("chopped", "the answer in pieces of seven bytes", _chopped(7), _tools, Feature.FEATURE_TOOLS),
    Scenario("lumped", "the whole answer in one piece", _chopped(0), _tools, Feature.FEATURE_TOOLS),
    Scenario("thinking", "reasoning before text", _thought, _thinking, Feature.FEATURE_REASONING),
    Scenario("usage_cache_read", "usage: read from the cache", _counted(cache_read=1500)),
    Scenario("usage_cache_write", "usage: written to the cache", _counted(cache_write_5m=1800)),
    Scenario("usage_reasoning", "usage: reasoning", _counted(reasoning=60)),
    Scenario("usage_all", "usage: all at once", _counted_together),
    Scenario(
        "usage_none", "the provider reports no usage", lambda w, _: [Turn(w.text(tokens=None), Whole(tokens=None))]
    ),
    Scenario("stops", "the provider's words for the end", _stopped),
    Scenario("stop_unknown", "an unknown word for the end", _unknown_stop),
    Scenario("invalid", "400", _refused(Cause.INVALID)),
    Scenario("context_too_long", "400: the conversation is too long", _refused(Cause.CONTEXT)),
    Scenario("key_refused", "401, 403: our key is refused", _refused(Cause.KEY)),
    Scenario("quota", "402, 429: the credit is used up", _refused(Cause.QUOTA)),
    Scenario("model_lost", "404: the provider does not know the model", _refused(Cause.MODEL)),
    Scenario("rate_limited", "429 that does not say when", _refused(Cause.RATE)),
    Scenario("rate_limited_until", "429 that says when", _waits),
    Scenario("fault", "500, 502", _refused(Cause.FAULT)),
    Scenario("overloaded", "503, 529", _refused(Cause.LOAD)),
    Scenario(
        "cut_before_headers", "cut before the answer", _broken(lambda w: w.cut_before_headers(), "UPSTREAM_ERROR")
    ),
    Scenario("cut_before_content", "cut before content", _broken(lambda w: w.cut_before_content(), "STREAM_BROKEN")),
    Scenario("cut_after_1", "cut after a piece", _broken(lambda w: w.cut_after(1), "STREAM_BROKEN", _said(1))),
    Scenario("cut_after_3", "cut after three pieces", _broken(lambda w: w.cut_after(3), "STREAM_BROKEN", _said(3))),
    Scenario("silent_end_0", "a clean end without content", _broken(lambda w: w.silent_end(0), "STREAM_BROKEN")),
    Scenario("silent_end", "a clean end without a reason", _broken(lambda w: w.silent_end(), "STREAM_BROKEN", TEXT)),
    Scenario("cut_after_end", "cut after the terminal event", _ended),
    Scenario("page_instead", "502 with a proxy's page", _instead(502, _HTML, "UPSTREAM_ERROR")),
    Scenario("nothing_instead", "503 without a body", _instead(503, b"", "OVERLOADED")),
    Scenario("page_as_answer", "200 with a proxy's page", _instead(200, _HTML, "STREAM_BROKEN")),
    Scenario("nothing_as_answer", "200 without a body", _instead(200, b"", "STREAM_BROKEN")),
    Scenario("in_band_error_0", "an error inside the answer, before content", _in_band(0)),
    Scenario("in_band_error_2", "an error inside the answer, after two pieces", _in_band(2)),
    Scenario("malformed_0", "an event that is no JSON", _broken(lambda w: w.malformed_json(), "STREAM_BROKEN")),
    Scenario(
        "malformed_2", "the same after two pieces", _broken(lambda w: w.malformed_json(2), "STREAM_BROKEN", _said(2))
    ),
    Scenario("stall_silent", "nothing comes until the caller's deadline", _overdue(lambda w: w.stall_before_headers())),
    Scenario("stall_inside", "nothing more comes until the deadline", _overdue(lambda w: w.stall_after(2))),
    Scenario("left_early", "the caller leaves before anything came", _left(lambda w: w.stall_before_headers())),
    Scenario("left_inside", "the caller leaves inside the answer", _left(lambda w: w.stall_after(2), _said(2))),
)
"""All scenarios."""


def arguments(call: ToolCall) -> Any:
    """The arguments of a scripted call as a value."""
    return json.loads(call.text or "{}")
