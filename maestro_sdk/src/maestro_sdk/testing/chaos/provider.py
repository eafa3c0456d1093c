"""Providers under weather: each answer is known from its question, each call is written down, some calls fail.

A question carries a mark, "[r17]", and the answer is a text that belongs to that mark, so that what a caller saw can be
held against what it should have seen: a lost or repeated piece shows.
"""

from __future__ import annotations

import json
import random
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from maestro_sdk.testing import anthropic_messages, openai_chat
from maestro_sdk.testing.faults import Cut, FaultServer, Reply, Seen, Step, Wait
from maestro_sdk.testing.wire import SETTLE, Answer, Tokens, Wire

PIECES = 12
INPUT_TOKENS = 10
REFUSED = "refuse me"
"""What a question says that the provider refuses as the caller's fault."""
_MARK = re.compile(rb"\[(r\d+)\]")


def pieces_of(mark: str) -> list[str]:
    """The pieces of the answer to a mark."""
    return [f"{mark}/{number} " for number in range(PIECES)]


def text_of(mark: str) -> str:
    """The whole answer to a mark."""
    return "".join(pieces_of(mark))


@dataclass(frozen=True, slots=True)
class Weather:
    """How a provider behaves: shares from 0 to 1, of calls that fail at once, are cut midway, or begin late."""

    failing: float = 0.0
    cut: float = 0.0
    late: float = 0.0
    lateness: float = 0.3
    pace: float = 0.005


@dataclass(slots=True)
class Call:
    """One call that arrived. `tokens` are those of output that were sent, all of them where `whole`."""

    provider: str
    mark: str
    at: float
    """Unix time of arrival."""
    fate: str
    tokens: int
    seen: Seen = field(repr=False)

    @property
    def whole(self) -> bool:
        """Whether the answer was sent to its end."""
        return self.fate == "answered" and self.seen.closed_at is None


class Providers:
    """OpenAI and Anthropic on one fault server."""

    def __init__(self, server: FaultServer, seed: int) -> None:
        self.weather = {"openai": Weather(), "anthropic": Weather()}
        self.calls: list[Call] = []
        self._dice = random.Random(seed)  # noqa: S311 - a storm that can be repeated is the point
        server.replace("POST", openai_chat.PATH, self._reply("openai", openai_chat.WIRE))
        server.replace("POST", anthropic_messages.PATH, self._reply("anthropic", anthropic_messages.WIRE))

    def of(self, mark: str) -> list[Call]:
        """The calls for a mark."""
        return [call for call in self.calls if call.mark == mark]

    def _reply(self, provider: str, wire: Wire) -> Reply:
        def reply(seen: Seen) -> Sequence[Step]:
            found = _MARK.search(seen.body)
            mark = found[1].decode() if found else ""
            weather, rolled = self.weather[provider], self._dice.random()
            call = Call(provider, mark, time.time(), "answered", 0, seen)
            self.calls.append(call)
            if REFUSED.encode() in seen.body:
                call.fate = "refused"
                return wire.error(400)(seen)
            if rolled < weather.failing:
                call.fate = "failed"
                return wire.error(500)(seen)
            left = _left(mark, seen)
            call.tokens = len(left)
            late = (Wait(weather.lateness),) if rolled > 1.0 - weather.late else ()
            answer = Answer(pieces=left, tokens=Tokens(input=INPUT_TOKENS, output=len(left)))
            if not wire.streams(seen):
                return (*late, *wire.answer(answer)(seen))
            groups = [(Wait(weather.pace), *group) for group in wire.content(answer, seen)]
            if rolled >= weather.failing + weather.cut:
                pieces = [step for group in groups for step in group]
                return (*late, *wire.opening(answer, seen), *pieces, *wire.closing(answer, seen))
            call.fate = "cut"
            call.tokens = self._dice.randint(0, len(left))
            pieces = [step for group in groups[: call.tokens] for step in group]
            # What was sent is read before the cut: in one read with it, it might be dropped.
            return (*late, *wire.opening(answer, seen), *pieces, Wait(SETTLE), Cut())

        return reply


def _left(mark: str, seen: Seen) -> list[str]:
    """The pieces that a conversation doesn't hold yet: all, or what follows an answer that another one began."""
    shown = "".join(_texts(message) for message in seen.json()["messages"] if message["role"] == "assistant")
    text = text_of(mark)
    if not text.startswith(shown.rstrip()):
        raise ValueError(f"{shown!r} is no beginning of {text!r}")
    rest = text[len(shown.rstrip()) :] if shown else text
    return re.findall(r"\s*\S+\s*?(?=\s\S|$)|\s+$", rest) or [rest]


def _texts(message: Any) -> str:
    content = message.get("content") or ""
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def describe(calls: Sequence[Call]) -> str:
    """What happened to calls, for a failing test."""
    return json.dumps([(call.provider, call.mark, call.fate, round(call.at, 3)) for call in calls])
