"""Each way in which a provider may fail, and what exactly has to come of it at every front door."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from drill_doors import DOORS, STREAMED, Got

from maestro_sdk.testing import anthropic_messages, openai_chat
from maestro_sdk.testing.faults import Cut, Headers, Reply, Seen, Send, Sse, Step, Wait, encode_sse
from maestro_sdk.testing.wire import PLAIN, SETTLE, Answer, Wire

DEEPEST = 20
"""Pieces of content up to which a stream is cut after every one."""
LONG = Answer(pieces=tuple(f"{number} " for number in range(DEEPEST + 4)))
"""An answer that is longer than the deepest cut."""
SECOND = "from the second"
"""What the second backend answers."""
WIRES: Mapping[str, Wire] = {"openai": openai_chat.WIRE, "anthropic": anthropic_messages.WIRE}
OTHER = {"openai": "anthropic", "anthropic": "openai"}
UNREACHABLE = {"openai": "azure", "anthropic": "vertex"}
"""Who takes a provider's place where nobody listens: the adapter of a wire has one address for all its models."""
ROUTES = ("alone", "second")
"""A route with one backend, and one with another provider behind it."""
QUICK = "1s"
"""Time that routes for stalls leave for the first event, between two events, and for an attempt as a whole."""
LIMITED = 30
"""Seconds of the header `retry-after`."""


@dataclass(frozen=True, slots=True)
class Fault:
    """One row: what the provider does, and what that means.

    `status`, `reason` and `again` tell the error: its HTTP status, its reason, and whether the caller may repeat it.
    `calls` is how often a backend that stands alone is asked, `passes` whether a second one is asked in its place: both
    for a failure before content. From `shown` pieces of content on, nobody else is asked, and nothing is repeated.
    """

    name: str
    reply: Callable[[Wire], Reply] | None
    """None: nobody listens at the provider's address."""
    status: int
    reason: str
    again: bool = True
    calls: int = 2
    passes: bool = True
    shown: int = 0
    retry_after: int = 0
    counts: bool = True
    """Whether it speaks against the backend's health."""
    opens: bool = False
    """Whether the backend is left alone from the first failure on."""
    slow: bool = False
    whole: Mapping[str, tuple[int, str]] | None = None
    """Status and reason by wire where an answer asked for as a whole fails differently."""
    streamed: Mapping[str, tuple[int, str]] | None = None
    """The same for streams, where wires differ."""
    answer: Answer = PLAIN

    def told(self, wire: str, *, streams: bool) -> tuple[int, str]:
        """Status and reason of the error."""
        differing = self.streamed if streams else self.whole
        return (differing or {}).get(wire, (self.status, self.reason))


def _page(status: int, page: bytes = b"<html><body>Sign in</body></html>") -> Callable[[Wire], Reply]:
    return lambda _: lambda _: (Headers(status, {"content-type": "text/html"}), *((Send(page),) if page else ()))


def _half_event(wire: Wire) -> Reply:
    """The stream is cut in the middle of its third piece."""

    def reply(seen: Seen) -> Sequence[Step]:
        if not wire.streams(seen):
            return wire.cut_after(2)(seen)
        groups = wire.content(PLAIN, seen)
        last = groups[2][-1]
        assert isinstance(last, Sse)
        half = encode_sse(last)[:-9]
        begun = [step for group in groups[:2] for step in group]
        head = Headers(200, {"content-type": "text/event-stream"})
        return (head, *wire.opening(PLAIN, seen), *begun, Send(half), Wait(SETTLE), Cut())

    return reply


def _no_credit(wire: Wire) -> Reply:
    return wire.error(402) if wire is anthropic_messages.WIRE else wire.error(429, "insufficient_quota")


def _cut_after(pieces: int) -> Fault:
    reply: Callable[[Wire], Reply] = lambda wire: wire.cut_after(pieces, LONG)  # noqa: E731 - a column of the table
    return Fault(f"cut after {pieces}", reply, 503, "STREAM_BROKEN", shown=pieces, answer=LONG)


_LOADED = {"anthropic": (503, "OVERLOADED")}
# Anthropic says that it is overloaded by 529; a 503 there is a fault like any other.
_FAULTY = {"anthropic": (503, "UPSTREAM_ERROR")}
FAULTS: Sequence[Fault] = (
    Fault("refused connection", None, 503, "UPSTREAM_ERROR"),
    Fault("cut before headers", lambda w: w.cut_before_headers(), 503, "UPSTREAM_ERROR"),
    Fault("cut before content", lambda w: w.cut_before_content(), 503, "STREAM_BROKEN"),
    *(_cut_after(pieces) for pieces in range(1, DEEPEST + 1)),
    Fault("cut inside an event", _half_event, 503, "STREAM_BROKEN", shown=2),
    Fault("stall before headers", lambda w: w.stall_before_headers(), 504, "TIMEOUT", slow=True),
    Fault("stall before content", lambda w: w.stall_after(0), 504, "TIMEOUT", slow=True),
    Fault("stall after content", lambda w: w.stall_after(2), 504, "TIMEOUT", shown=2, slow=True),
    Fault("error before content", lambda w: w.in_band_error(), 503, "UPSTREAM_ERROR", streamed=_LOADED),
    Fault("error after content", lambda w: w.in_band_error(2), 503, "UPSTREAM_ERROR", shown=2, streamed=_LOADED),
    Fault("silent end before content", lambda w: w.silent_end(0), 503, "STREAM_BROKEN"),
    Fault("silent end after content", lambda w: w.silent_end(3), 503, "STREAM_BROKEN", shown=3),
    Fault("silent end after all", lambda w: w.silent_end(), 503, "STREAM_BROKEN", shown=5),
    Fault("malformed before content", lambda w: w.malformed_json(), 503, "STREAM_BROKEN"),
    Fault("malformed after content", lambda w: w.malformed_json(2), 503, "STREAM_BROKEN", shown=2),
    Fault("page as answer", _page(200), 503, "STREAM_BROKEN"),
    Fault("nothing as answer", _page(200, b""), 503, "STREAM_BROKEN"),
    Fault("page with 502", _page(502), 503, "UPSTREAM_ERROR"),
    Fault("429", lambda w: w.rate_limited(), 429, "RATE_LIMITED", counts=False),
    Fault(
        "429 that says when",
        lambda w: w.rate_limited(LIMITED),
        429,
        "RATE_LIMITED",
        calls=1,
        retry_after=LIMITED,
        opens=True,
    ),
    Fault("500", lambda w: w.error(500), 503, "UPSTREAM_ERROR"),
    Fault("503", lambda w: w.error(503), 503, "OVERLOADED", whole=_FAULTY, streamed=_FAULTY),
    Fault("529", lambda w: w.error(529), 503, "OVERLOADED"),
    # A refused key holds back all models of its account (401), or this one alone (403).
    Fault("our key refused", lambda w: w.error(403), 502, "PROVIDER_AUTH", again=False, calls=1, opens=True),
    Fault("our credit is used up", _no_credit, 429, "PROVIDER_QUOTA", again=False, calls=1, opens=True),
    Fault("the model is lost", lambda w: w.error(404), 404, "NOT_FOUND", again=False, calls=1, counts=False),
    Fault("400", lambda w: w.error(400), 400, "INVALID_REQUEST", again=False, calls=1, passes=False, counts=False),
)


@dataclass(frozen=True, slots=True)
class Case:
    """One fault at one door, on one wire, with or without a second backend."""

    fault: Fault
    wire: str
    door: str
    route: str

    @property
    def name(self) -> str:
        """Its name, which its prompt holds too."""
        return f"{self.fault.name}, {self.wire}, {self.door}, {self.route}"

    @property
    def first(self) -> str:
        """The model that fails. One that will be left alone is nobody else's."""
        if self.fault.reply is None:
            return {"azure": "azure/gpt-5.2", "vertex": "vertex/gemini-2.5-flash"}[UNREACHABLE[self.wire]]
        own = f"-{slug(self.fault.name)}-{self.door}-{self.route}" if self.fault.opens else ""
        return f"{self.wire}/drill{own}"

    @property
    def target(self) -> str:
        """The route's name: of its own for each fault, since the cases at one route share its budget of retries."""
        return f"{self.route}-{slug(self.fault.name)}-{self.first.replace('/', '-')}"

    def settings(self) -> dict[str, object]:
        """The route's configuration."""
        second = [f"{OTHER[self.wire]}/drill"] if self.route == "second" else []
        names = ("first_event_timeout", "idle_timeout", "attempt_timeout")
        limits = dict.fromkeys(names, QUICK) if self.fault.slow else {}
        return {
            "targets": [self.first, *second],
            "max_attempts": 2,
            # Every request may have its retry: what is counted here must not depend on what else is under way.
            "retry": {"share": 1.0, "back_off": "10ms"},
            **limits,
        }


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a caller has to get, and how often each of the two providers has to be asked for it."""

    status: int
    reason: str
    text: str
    provider: str
    attempt: int
    began: int
    again: bool
    after_content: bool
    retry_after: int
    first_calls: int
    second_calls: int


def wanted(case: Case) -> Wanted:
    """The outcome of a case."""
    fault, streams = case.fault, case.door in STREAMED
    status, reason = fault.told(case.wire, streams=streams)
    reached = fault.reply is not None
    if streams and fault.shown:
        # Content was handed on: this answer ends here. A stream that has begun has status 200 for good.
        shown = "".join(fault.answer.pieces[: fault.shown])
        return Wanted(status, reason, shown, case.wire, 1, 1, False, True, 0, 1, 0)
    if case.route == "second" and fault.passes:
        # Somebody else answers, and the caller can't tell but by the number of the attempt.
        return Wanted(200, "", SECOND, OTHER[case.wire], 2, 1, False, False, 0, int(reached), 1)
    calls = fault.calls if case.route == "alone" else 1
    return Wanted(status, reason, "", "", 0, 0, fault.again, False, fault.retry_after, calls * reached, 0)


def differences(case: Case, got: Got, first_calls: int, second_calls: int) -> Iterator[str]:
    """What is not as it has to be, in words; nothing when all is well."""
    want = wanted(case)
    pairs: Mapping[str, tuple[object, object]] = {
        "status": (got.status, want.status),
        "reason": (got.reason, want.reason),
        "text": (got.text, want.text),
        "provider": (got.provider, want.provider),
        "attempt": (got.attempt, want.attempt),
        "started": (got.began, want.began),
        "terminals": (got.ended, 1),
        "finish": (got.finish, "" if want.reason else "stop"),
        "retryable": (bool(got.error.get("retryable")), want.again),
        "after_content": (got.after_content, want.after_content),
        "switched": (len(got.switched), 0),
        "calls at the first": (first_calls, want.first_calls),
        "calls at the second": (second_calls, want.second_calls),
    }
    for what, (found, right) in pairs.items():
        if found != right:
            yield f"{what} is {found!r}, not {right!r}"
    waits = float(got.error.get("retry_after", 0))
    # A little of it may have passed.
    if not want.retry_after - 5 <= waits <= want.retry_after:
        yield f"retry_after is {waits}, not {want.retry_after}"
    if case.door in ("rest", "sse") and want.retry_after and not got.retry_after:
        yield "the header retry-after is missing"


def slug(text: str) -> str:
    """A name of letters, digits and dashes."""
    return "".join(sign if sign.isalnum() else "-" for sign in text.lower())


CASES: Mapping[str, Case] = {
    case.name: case
    for case in (
        Case(fault, wire, door, route) for fault in FAULTS for wire in WIRES for door in DOORS for route in ROUTES
    )
}
"""All cases by name."""


@dataclass(frozen=True, slots=True)
class BreakerCase:
    """One fault again and again at one backend, which has a model of its own."""

    fault: Fault
    wire: str
    door: str

    @property
    def name(self) -> str:
        """Its name, which its prompt holds too."""
        return f"breaker, {self.fault.name}, {self.wire}, {self.door}"

    @property
    def model(self) -> str:
        """The model, "provider/name"."""
        return f"{self.wire}/break-{slug(self.fault.name)}-{self.door}"

    @property
    def target(self) -> str:
        """The route's name."""
        return self.model.replace("/", "-")

    def calls(self, limit: int) -> int | None:
        """After how many calls the backend is left alone, when `limit` failures in a row are; None: never."""
        if self.fault.opens:
            return 1
        return limit if self.fault.counts else None


BREAKER_CASES: Mapping[str, BreakerCase] = {
    case.name: case
    for case in (
        BreakerCase(fault, wire, door)
        for fault in FAULTS
        for wire in WIRES
        for door in ("rest", "sse")
        # Slow ones would take their time, and one cut within content is like another.
        if fault.reply is not None and not fault.slow and fault.shown <= 5
    )
}
"""Cases of breakers by name."""
