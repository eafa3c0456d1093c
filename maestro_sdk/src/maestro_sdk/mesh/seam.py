"""The place where two backends' texts meet: what the second one says again is taken out, nothing else is."""

from __future__ import annotations

SHORTEST_REPEAT = 16
"""Characters that a repetition has to have: fewer may just as well be meant."""


class Seam:
    """Takes the text of the backend that goes on, piece by piece, and gives what belongs behind the text shown so far.

    Two things are taken out at the beginning, as soon as there is enough text to be certain; until then it is held:

    - A repetition of the end of `before`, where one may come: the longest end that the new text begins with, of at
      least `SHORTEST_REPEAT` characters. A repetition that is made of one short piece again and again ("na na na na")
      stays, since nobody can tell it from a text that goes on like that.
    - The white space at the end of the text shown, which the backend was not told: what of it the new text begins with.
    """

    __slots__ = ("_before", "_held", "_white", "open")

    def __init__(self, shown: str, *, may_repeat: bool) -> None:
        """`shown` is the text so far, `may_repeat` whether the new one may begin with its end.

        `open` tells whether something may still be taken out.
        """
        told = shown.rstrip()
        self._before = told if may_repeat else ""
        self._white = shown[len(told) :]
        self._held = ""
        self.open = bool(self._white) or len(self._before) >= SHORTEST_REPEAT

    def feed(self, text: str) -> str:
        """What of the new text so far is certain and was not given yet."""
        if not self.open:
            return text
        self._held += text
        if self._may_repeat() or self._may_be_white():
            return ""
        return self.close()

    def close(self) -> str:
        """What is held back, when no more text comes that could tell."""
        rest = self._held[_overlap(self._before, self._held) :]
        self.open, self._held = False, ""
        return rest[_common(self._white, rest) :]

    def _may_repeat(self) -> bool:
        """Whether all new text so far stands in `before`, where more of it follows."""
        found = self._before.find(self._held, 0, max(0, len(self._before) - 1))
        return 0 <= found <= len(self._before) - SHORTEST_REPEAT

    def _may_be_white(self) -> bool:
        rest = self._held[_overlap(self._before, self._held) :]
        return len(rest) < len(self._white) and self._white.startswith(rest)


def _overlap(before: str, after: str) -> int:
    """Characters of `after` that repeat the end of `before` for certain."""
    if len(before) < SHORTEST_REPEAT or len(after) < SHORTEST_REPEAT:
        return 0
    pattern = after[: len(before)]
    borders = _borders(pattern)
    length = 0
    for character in before[-len(pattern) :]:
        while length and (length == len(pattern) or pattern[length] != character):
            length = borders[length]
        if pattern[length] == character:
            length += 1
    if length < SHORTEST_REPEAT or borders[length] * 2 >= length:
        return 0
    return length


def _borders(text: str) -> list[int]:
    """By length: how many characters the beginning of that length has at its start and at its end alike."""
    borders = [0, 0]
    length = 0
    for character in text[1:]:
        while length and text[length] != character:
            length = borders[length]
        if text[length] == character:
            length += 1
        borders.append(length)
    return borders


def _common(one: str, other: str) -> int:
    """Characters with which both texts begin."""
    count = 0
    for left, right in zip(one, other, strict=False):
        if left != right:
            break
        count += 1
    return count
