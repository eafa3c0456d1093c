"""Names of tools for wires that take fewer than the contract does: no dots, and not as many characters.

    names = ToolNames((tool.name for tool in request.tools), 64)
    names["files.read"]            # "files_read", in tools, rules and past calls alike
    names.renamed                  # {"files_read": "files.read"}, for the calls in the answer

A name that fits stays as it is. Different names stay different: one whose new form is taken gets a checksum as well.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable

_WRONG = re.compile(r"[^a-zA-Z0-9_-]")
_CHECKSUM = 9
"""Characters of a checksum and what divides it from the name."""


class ToolNames(dict[str, str]):
    """The wire's name by the contract's; a name that was not given at the start is named when it is asked for.

    The same names in the same order always give the same result, so that the prompt stays the same from turn to turn.
    """

    __slots__ = ("_most", "renamed")

    def __init__(self, given: Iterable[str], most: int) -> None:
        """`given` are the tools' names, of which those that fit come first; `most` is the wire's limit, at least 16."""
        super().__init__()
        self.renamed: dict[str, str] = {}
        """The contract's name by the wire's, for those that differ."""
        self._most = most
        strange: list[str] = []
        for name in given:
            if self._fits(name):
                self[name] = name
            else:
                strange.append(name)
        for name in strange:
            self.__missing__(name)

    def __missing__(self, name: str) -> str:
        new = wire_name(name, self._most)
        attempt = 0
        while new in self.renamed or (new != name and new in self):
            new = _with_checksum(_WRONG.sub("_", name), f"{name}{'.' * attempt}", self._most)
            attempt += 1
        self[name] = new
        if new != name:
            self.renamed[new] = name
        return new

    def _fits(self, name: str) -> bool:
        return len(name) <= self._most and not _WRONG.search(name)


def wire_name(name: str, most: int) -> str:
    """A tool's name with `_` for what the wire refuses, and a checksum for what is too long: `most` characters."""
    new = _WRONG.sub("_", name)
    return new if len(new) <= most else _with_checksum(new, name, most)


def _with_checksum(new: str, name: str, most: int) -> str:
    return f"{new[: most - _CHECKSUM]}_{zlib.crc32(name.encode()):08x}"
