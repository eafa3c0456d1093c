"""How quick a backend has been of late, as this process saw it."""

from __future__ import annotations

import math

_MEMORY = 10.0
"""Seconds after which a sample weighs a third."""
_TOKENS = 256
"""Tokens of the answer whose time is compared: about a screenful."""


class Pace:
    """Moving averages of the time to the first event, which jumps up at once and comes down slowly, and of tokens/s."""

    __slots__ = ("_at", "first", "rate")

    def __init__(self) -> None:
        self._at = 0.0
        self.first = 0.0
        self.rate = 0.0

    def observe(self, first: float, duration: float, tokens: int, now: float) -> None:
        """Takes an answer: seconds to its first event and to its end, and its output tokens."""
        keep = math.exp(-max(0.0, now - self._at) / _MEMORY) if self._at else 0.0
        self._at = now
        if first < duration:
            # A slow answer is believed at once: who is in trouble should not be asked until many have waited.
            self.first = first if first > self.first else self.first * keep + first * (1.0 - keep)
            duration -= first
        # An answer that came whole tells how long it took, not when it began.
        if tokens > 1 and duration > 0:
            rate = tokens / duration
            self.rate = self.rate * keep + rate * (1.0 - keep) if self.rate else rate

    def expect(self) -> float:
        """Seconds until an answer of usual length is there."""
        return self.first + (_TOKENS / self.rate if self.rate else 0.0)
