"""The offline model's own tokens. Usage counts these, so it is exact, not estimated.

A token is one of: up to twelve letters, digits or underscores with the space before them; one other sign with the space
before it; a run of white space. Splitting is stable: the first n tokens of a text are the tokens of the text they make.
"""

from __future__ import annotations

import re

_TOKEN = re.compile(r" ?\w{1,12}| ?[^\w\s]|\s+")


def split(text: str) -> list[str]:
    """The tokens of `text`; joined they are `text` again."""
    return _TOKEN.findall(text)


def count(text: str) -> int:
    """How many tokens `text` has."""
    return len(_TOKEN.findall(text)) if text else 0
