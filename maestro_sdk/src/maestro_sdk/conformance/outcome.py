"""What a case found out."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Verdict(Enum):
    """How a case ended. PROVEN and NOT_DECLARED are good, UNTESTED says nothing, FAILED and BLOCKED are bad."""

    PROVEN = "proven"
    FAILED = "failed"
    BLOCKED = "blocked"
    """Not run, since a case that it stands on failed."""
    NOT_DECLARED = "not_declared"
    """The server does not claim this feature."""
    UNTESTED = "untested"
    """The server claims this feature and the suite has no case for it."""


class Broken(Exception):
    """A promise that does not hold: what was `seen`, and `where` in the exchange."""

    def __init__(self, seen: str, where: str = "") -> None:
        super().__init__(f"{where}: {seen}" if where else seen)
        self.seen = seen
        self.where = where


class NotApplicable(Exception):
    """There is nothing to prove here, and why."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one case. `contract` is the rule that holds, `seen` what was seen (also when it is proven)."""

    name: str
    title: str
    feature: str
    """Name of the feature without prefix; empty for a core case."""
    support: str
    """How the model claims to meet the feature: native, polyfilled, none; empty for a core case."""
    verdict: Verdict
    seen: str
    contract: str
    where: str
    seconds: float

    @property
    def good(self) -> bool:
        """Whether it leaves the report green."""
        return self.verdict not in {Verdict.FAILED, Verdict.BLOCKED}


def expect(holds: object, seen: str, where: str = "") -> None:
    """Raises `Broken` unless `holds` is true."""
    if not holds:
        raise Broken(seen, where)
