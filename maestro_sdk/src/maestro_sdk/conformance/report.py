"""What a run found out, for people and for machines."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Self

from maestro_sdk.conformance.outcome import Outcome, Verdict
from maestro_sdk.conformance.target import Target

FORMAT = "maestro.conformance/1"
_MARKS = {
    Verdict.PROVEN: "proven",
    Verdict.FAILED: "FAILED",
    Verdict.BLOCKED: "blocked",
    Verdict.NOT_DECLARED: "-",
    Verdict.UNTESTED: "untested",
}


@dataclass(frozen=True, slots=True)
class Report:
    """The outcomes of one run, and against what it ran."""

    address: str
    server: str
    """Name and version of the server, empty when it did not tell."""
    spi_versions: Sequence[str]
    model: str
    """Id of the model that was asked, empty without one."""
    time: str
    seconds: float
    outcomes: Sequence[Outcome]

    @classmethod
    def of(cls, target: Target, outcomes: Sequence[Outcome], seconds: float) -> Self:
        """The report of a run that just ended."""
        info, model = target.info, target.model
        return cls(
            target.address,
            f"{info.name} {info.version}" if info is not None else "",
            tuple(info.spi_versions) if info is not None else (),
            model.id if model is not None else "",
            datetime.now(UTC).isoformat(timespec="seconds"),
            seconds,
            tuple(outcomes),
        )

    @property
    def passed(self) -> bool:
        """Whether every core case and every claimed feature that has a case is proven."""
        return bool(self.outcomes) and all(outcome.good for outcome in self.outcomes)

    def count(self, verdict: Verdict) -> int:
        """How many cases ended so."""
        return sum(outcome.verdict is verdict for outcome in self.outcomes)

    def of_case(self, name: str) -> Outcome:
        """The outcome of a case."""
        return next(outcome for outcome in self.outcomes if outcome.name == name)

    def as_json(self) -> dict[str, Any]:
        """The machine-readable report."""
        return {
            "format": FORMAT,
            "suite_version": _suite_version(),
            "address": self.address,
            "server": self.server,
            "spi_versions": list(self.spi_versions),
            "model": self.model,
            "time": self.time,
            "seconds": round(self.seconds, 3),
            "passed": self.passed,
            "summary": {verdict.value: self.count(verdict) for verdict in Verdict},
            "cases": [
                {
                    "name": outcome.name,
                    "title": outcome.title,
                    "kind": "feature" if outcome.feature else "core",
                    "feature": outcome.feature or None,
                    "support": outcome.support or None,
                    "verdict": outcome.verdict.value,
                    "seen": outcome.seen,
                    "contract": outcome.contract,
                    "where": outcome.where,
                    "seconds": round(outcome.seconds, 4),
                }
                for outcome in self.outcomes
            ],
        }

    def as_text(self) -> str:
        """The report for a person: a line per case, and what is wrong in full at the end."""
        return "\n".join([self.head(), "", *(line(outcome) for outcome in self.outcomes), "", *self.tail()])

    def head(self) -> str:
        """One line: against what."""
        return f"{self.server or 'unknown server'} at {self.address}, model {self.model or 'none'}"

    def tail(self) -> list[str]:
        """What is wrong, and the verdict."""
        lines: list[str] = []
        for outcome in self.outcomes:
            if outcome.verdict is Verdict.FAILED:
                lines += [f"FAILED {outcome.name}: {outcome.title}", f"    seen      {outcome.seen}"]
                lines += [f"    where     {outcome.where}"] if outcome.where else []
                lines += [f"    contract  {outcome.contract}", ""]
        counts = ", ".join(
            f"{self.count(verdict)} {verdict.value.replace('_', ' ')}" for verdict in Verdict if self.count(verdict)
        )
        said = "conforms" if self.passed else "does NOT conform"
        return [*lines, f"{self.model or self.address} {said}: {counts} in {self.seconds:.1f} s"]


def line(outcome: Outcome) -> str:
    """One line about a case."""
    name = outcome.feature or outcome.name
    note = outcome.seen if outcome.good else f"{outcome.where}: {outcome.seen}" if outcome.where else outcome.seen
    mark = _mark(outcome)
    return f"  {mark:<12} {name:<22} {_short(note or ('not declared' if mark == '-' else outcome.title))}"


def matrix(reports: Sequence[Report]) -> str:
    """Feature by adapter, one column per report; core cases are one row."""
    heads = [report.model or report.address for report in reports]
    names = [outcome.feature for outcome in reports[0].outcomes if outcome.feature] if reports else []
    rows = [["", *heads], ["core", *(_core(report) for report in reports)]]
    for name in names:
        found = [next(outcome for outcome in report.outcomes if outcome.feature == name) for report in reports]
        rows.append([name, *(_mark(outcome) for outcome in found)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads) + 1)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def _core(report: Report) -> str:
    cases = [outcome for outcome in report.outcomes if not outcome.feature]
    good = sum(outcome.good for outcome in cases)
    return f"{good}/{len(cases)} proven" if good == len(cases) else f"{good}/{len(cases)} FAILED"


def _mark(outcome: Outcome) -> str:
    if outcome.verdict is Verdict.PROVEN and outcome.support == "polyfilled":
        return "polyfilled"
    return _MARKS[outcome.verdict]


def _short(text: str) -> str:
    flat = " ".join(text.split())
    return flat if len(flat) <= 110 else f"{flat[:109]}…"


def _suite_version() -> str:
    try:
        return version("maestro-sdk")
    except PackageNotFoundError:
        return "0"
