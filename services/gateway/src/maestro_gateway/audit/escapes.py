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


def _character(escape: re.Match[str]) -> str:
    code, letter = escape.groups()
    return chr(int(code, 16)) if code is not None else _MEANT.get(letter, letter)
