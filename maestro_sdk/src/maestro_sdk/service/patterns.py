"""Which regular expressions may be applied to other people's text: those that can't take for ever.

Python's engine goes back and tries another way wherever there is one, and text that is made for it lets `(a+)+b` go on
for years. So a pattern has to say how often each piece repeats at most, and all its pieces together may not have too
many ways; then no text takes more than so many steps for each of its characters.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

LONGEST = 256
"""Characters that a find may have."""
_WAYS = 1000
_PLAIN = frozenset("dDwWsSnrt")
_NOWHERE = frozenset("bB")
_REPEATS = re.compile(r"\{([0-9]{1,4})(?:(,)([0-9]{1,4})?)?\}")


@dataclass(frozen=True, slots=True)
class _Piece:
    """How short and long a find of it is, and in how many ways it may come about."""

    shortest: int
    longest: int
    ways: int


class _Refused(ValueError):
    pass


def problem_of(pattern: str) -> str:
    """Why a pattern is not taken; empty when it is."""
    reader = _Reader(pattern)
    try:
        piece = reader.read_choice()
        if reader.rest:
            raise _Refused(f"has a ) without its ( at character {reader.at + 1}")
        re.compile(pattern)
    except _Refused as error:
        return str(error)
    except re.error as error:
        return f"is no regular expression: {error}"
    if piece.shortest == 0:
        return "would find nothing everywhere: some piece of it has to be there"
    if piece.longest > LONGEST:
        return f"could find {piece.longest} characters at once; {LONGEST} are the most"
    if piece.ways > _WAYS:
        return f"could find the same text in more than {_WAYS} ways: repeat less, or within narrower bounds"
    return ""


class _Reader:
    """Reads what patterns may consist of: characters, classes, groups, choices, and repeats with an end."""

    def __init__(self, pattern: str) -> None:
        self._pattern = pattern
        self.at = 0

    @property
    def rest(self) -> str:
        return self._pattern[self.at :]

    def read_choice(self) -> _Piece:
        found = [self._read_sequence()]
        while self._take("|"):
            found.append(self._read_sequence())
        return _Piece(
            min(piece.shortest for piece in found),
            max(piece.longest for piece in found),
            sum(piece.ways for piece in found),
        )

    def _read_sequence(self) -> _Piece:
        shortest, longest, ways = 0, 0, 1
        while self.rest and self.rest[0] not in "|)":
            piece = self._read_repeated()
            shortest, longest = shortest + piece.shortest, longest + piece.longest
            ways = min(ways * piece.ways, _WAYS + 1)
        return _Piece(shortest, longest, ways)

    def _read_repeated(self) -> _Piece:
        piece = self._read_piece()
        if self._take("?"):
            low, high = 0, 1
        elif self.rest[:1] in ("*", "+"):
            raise _Refused(f"has a {self.rest[0]} without an end; say how often at most, for example {{1,64}}")
        elif self.rest[:1] == "{":
            match = _REPEATS.match(self.rest)
            if match is None:
                raise _Refused(r"has a { that begins no repeat such as {1,64}; a plain one is \{")
            if match[2] and match[3] is None:
                raise _Refused(f"has a repeat without an end, {match[0]}; say how often at most")
            self.at += match.end()
            low, high = int(match[1]), int(match[3] or match[1])
        else:
            return piece
        if self.rest[:1] in ("?", "*", "+", "{"):
            raise _Refused("repeats a repeat, or asks for a lazy one; neither is taken")
        # Bounded before it is raised to a power: the number would be as long as a book.
        ways = min(piece.ways ** min(high, 16), _WAYS + 1) * (high - low + 1) if piece.ways > 1 else high - low + 1
        return _Piece(piece.shortest * low, piece.longest * high, min(ways, _WAYS + 1))

    def _read_piece(self) -> _Piece:
        first = self.rest[0]
        self.at += 1
        match first:
            case "(":
                if self.rest[:1] == "?" and not self._take("?:"):
                    raise _Refused(f"has a group (?{self.rest[1:2]}…; only ( and (?: are taken")
                piece = self.read_choice()
                if not self._take(")"):
                    raise _Refused("has a ( without its )")
                return piece
            case "[":
                return self._read_class()
            case "\\":
                return self._read_escape()
            case "^" | "$":
                return _Piece(0, 0, 1)
            case "?" | "*" | "+" | "{":
                raise _Refused(f"has a {first} with nothing before it to repeat")
            case _:
                return _Piece(1, 1, 1)

    def _read_class(self) -> _Piece:
        self._take("^")
        self._take("]")
        while self.rest and not self._take("]"):
            if self.rest[0] == "\\":
                self.at += 1
                self._read_escape(inside=True)
            else:
                self.at += 1
        return _Piece(1, 1, 1)

    def _read_escape(self, *, inside: bool = False) -> _Piece:
        following = self.rest[:1]
        self.at += 1
        if following in _NOWHERE and following and not inside:
            return _Piece(0, 0, 1)
        if not following or (following.isalnum() and following not in _PLAIN):
            raise _Refused(f"has the escape \\{following}, which is not taken here")
        return _Piece(1, 1, 1)

    def _take(self, text: str) -> bool:
        if not self.rest.startswith(text):
            return False
        self.at += len(text)
        return True
