"""How quick a backend has been of late, as this process saw it."""

from __future__ import annotations

import math

_MEMORY = 10.0
"""Seconds after which a sample weighs a third."""
_TOKENS = 256
"""Tokens of the answer whose time is compared: about a screenful."""
ENOUGH = 20
"""Samples without which nobody can say what is late."""
_KEPT = 64
_LEAST, _MOST = 2.0, 10.0


class Late:
    """The time after which an answer is late: the 95th percentile of the last samples.

    It is at least twice the median, since waiting on is quicker than asking anew below that, and at most ten times:
    stalls that are as frequent as one in twenty would make themselves the rule.
    """

    __slots__ = ("_found", "_next", "_ring")

    def __init__(self) -> None:
        self._ring: list[float] = []
        self._next = 0
        self._found = -1.0

    def add(self, seconds: float) -> None:
        """Takes a sample."""
        self._found = -1.0
        if len(self._ring) < _KEPT:
            self._ring.append(seconds)
            return
        self._ring[self._next] = seconds
        self._next = (self._next + 1) % _KEPT

    def after(self) -> float | None:
        """Seconds; None until there are enough samples."""
        count = len(self._ring)
        if count < ENOUGH:
            return None
        if self._found < 0.0:
            ordered = sorted(self._ring)
            median = ordered[count // 2]
            self._found = min(max(ordered[math.ceil(count * 0.95) - 1], median * _LEAST), median * _MOST)
        return self._found


class Pace:
    """Moving averages of the time to the first content, which jumps up at once and comes down slowly, and of tokens/s.

    `begins` tells when a streamed answer is late to begin, `ends` when one that comes as a whole is late.
    """

    __slots__ = ("_at", "begins", "ends", "first", "rate")

    def __init__(self) -> None:
        self._at = 0.0
        self.first = 0.0
        self.rate = 0.0
        self.begins = Late()
        self.ends = Late()

    def observe(self, first: float, duration: float, tokens: int, now: float) -> None:
        """Takes an answer: seconds to its first content and to its end, and its output tokens."""
        keep = math.exp(-max(0.0, now - self._at) / _MEMORY) if self._at else 0.0
        self._at = now
        if first < duration:
            # A slow answer is believed at once: who is in trouble should not be asked until many have waited.
            self.first = first if first > self.first else self.first * keep + first * (1.0 - keep)
            self.begins.add(first)
            duration -= first
        else:
            self.ends.add(duration)
        # An answer that came whole tells how long it took, not when it began.
        if tokens > 1 and duration > 0:
            rate = tokens / duration
            self.rate = self.rate * keep + rate * (1.0 - keep) if self.rate else rate

    def expect(self) -> float:
        """Seconds until an answer of usual length is there."""
        return self.first + (_TOKENS / self.rate if self.rate else 0.0)
