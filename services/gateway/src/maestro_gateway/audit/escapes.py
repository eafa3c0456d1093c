"""Escapes of JSON within a text: what they mean, and where it is written. Pure.

Without this an escape hides what stands behind it (in `\\nsk-…` a letter stands before the key), and what is taken out
of a text may tear an escape apart.
"""

from __future__ import annotations

import re
from bisect import bisect_right

LEVELS = 3
"""How often text is taken for escaped."""
_ESCAPE = re.compile(r'\\(?:u([0-9A-Fa-f]{4})|(["\\/bfnrt]))')
_MEANT = {"b": "\b", "f": "\f", "n": "\n", "r": "\r", "t": "\t"}


class Escapes:
    """The escapes of one text. `meant` is the text with each of them replaced by its character; false without any."""

    def __init__(self, text: str) -> None:
        meant: list[str] = []
        # Where pieces begin that are written as they are meant, or an escape: as meant, and as written.
        self._meant = [0]
        self._written = [0]
        length = at = 0
        for match in _ESCAPE.finditer(text):
            meant += text[at : match.start()], _character(match)
            length += match.start() - at
            at = match.end()
            self._meant += length, length + 1
            self._written += match.start(), at
            length += 1
        meant.append(text[at:])
        self.meant = "".join(meant)

    def __bool__(self) -> bool:
        return len(self._meant) > 1

    def written(self, place: int) -> int:
        """Where in the text it is written that stands at a place of `meant`."""
        number = bisect_right(self._meant, place) - 1
        return self._written[number] + place - self._meant[number]

    def widened(self, start: int, end: int) -> tuple[int, int]:
        """A span of the text with the whole of the escapes that it begins and ends within."""
        first, last = (bisect_right(self._written, place) - 1 for place in (start, end))
        # Every second piece is an escape, the first one is not.
        if first % 2:
            start = self._written[first]
        if last % 2 and self._written[last] < end:
            end = self._written[last + 1]
        return start, end


class Seen:
    """What is left to see of a text without what `unseen` matches."""

    def __init__(self, text: str, unseen: re.Pattern[str]) -> None:
        kept: list[str] = []
        # Where pieces begin that are seen: in `text`, and as written.
        self._seen: list[int] = []
        self._written: list[int] = []
        length = at = 0
        for begin, end in [*(match.span() for match in unseen.finditer(text)), (len(text), len(text))]:
            if begin > at:
                self._seen.append(length)
                self._written.append(at)
                kept.append(text[at:begin])
                length += begin - at
            at = end
        self.text = "".join(kept)

    def written(self, start: int, end: int) -> tuple[int, int]:
        """Where a span of `text` that holds something is written."""
        return self._place(start), self._place(end - 1) + 1

    def _place(self, place: int) -> int:
        number = bisect_right(self._seen, place) - 1
        return self._written[number] + place - self._seen[number]


def _character(escape: re.Match[str]) -> str:
    code, letter = escape.groups()
    return chr(int(code, 16)) if code is not None else _MEANT.get(letter, letter)
