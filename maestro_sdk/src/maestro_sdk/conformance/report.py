"""What a run found out, for people and for machines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    Verdict.NOT_DECLARED: "none",
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
    scenarios: Sequence[Outcome] = ()
    """What `driving.drive` found at the provider's side; empty when that was not driven."""

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
        """Whether every core case, every claimed feature that has a case and every scenario is proven."""
        return bool(self.outcomes) and all(outcome.good for outcome in (*self.outcomes, *self.scenarios))

    def count(self, verdict: Verdict) -> int:
        """How many cases ended so."""
        return _count(self.outcomes, verdict)

    def of_case(self, name: str) -> Outcome:
        """The outcome of a case."""
        return next(outcome for outcome in self.outcomes if outcome.name == name)

    def of_feature(self, name: str) -> Outcome:
        """The outcome of a feature: that of its first case that is bad, else of its first one."""
        found = [outcome for outcome in self.outcomes if outcome.feature == name]
        return next((outcome for outcome in found if not outcome.good), found[0])

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
            "summary": _summary(self.outcomes),
            "scenario_summary": _summary(self.scenarios),
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
            "scenarios": [
                {
                    "name": outcome.name.rpartition(" ")[0],
                    "call": outcome.name.rpartition(" ")[2],
                    "title": outcome.title,
                    "verdict": outcome.verdict.value,
                    "seen": outcome.seen,
                    "expected": outcome.contract,
                    "where": outcome.where,
                    "seconds": round(outcome.seconds, 4),
                }
                for outcome in self.scenarios
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
        for outcome in (*self.outcomes, *self.scenarios):
            if outcome.verdict is Verdict.FAILED:
                lines += [f"FAILED {outcome.name}: {outcome.title}", f"    seen      {outcome.seen}"]
                lines += [f"    where     {outcome.where}"] if outcome.where else []
                lines += [f"    contract  {outcome.contract}", ""]
        counts = told(_summary(self.outcomes))
        more = f"; scenarios: {told(_summary(self.scenarios))}" if self.scenarios else ""
        said = "conforms" if self.passed else "does NOT conform"
        return [*lines, f"{self.model or self.address} {said}: {counts}{more} in {self.seconds:.1f} s"]


def line(outcome: Outcome) -> str:
    """One line about a case."""
    name = _label(outcome)
    note = outcome.seen if outcome.good else f"{outcome.where}: {outcome.seen}" if outcome.where else outcome.seen
    mark = _mark(outcome)
    return f"  {mark:<12} {name:<31} {_short(note or ('not declared' if mark == 'none' else outcome.title))}"


def matrix(reports: Sequence[Report]) -> str:
    """Feature by model, one column per report; core cases are one row, and scenarios where they were driven."""
    heads = [report.model or report.address for report in reports]
    names = list(dict.fromkeys(outcome.feature for report in reports for outcome in report.outcomes if outcome.feature))
    rows = [["", *heads], ["core", *(_share(_core(report)) for report in reports)]]
    rows += [[name, *(_mark(report.of_feature(name)) for report in reports)] for name in names]
    if any(report.scenarios for report in reports):
        rows.append(["scenarios", *(_share(report.scenarios) for report in reports)])
    widths = [max(len(row[column]) for row in rows) for column in range(len(heads) + 1)]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows
    )


def totals(reports: Sequence[Report]) -> dict[str, dict[str, int]]:
    """How cases, features of models and scenarios ended in all reports together."""
    marks = [_mark(report.of_feature(name)) for report in reports for name in _features(report)]
    return {
        "cases": _summary([outcome for report in reports for outcome in report.outcomes]),
        "features": {mark: marks.count(mark) for mark in sorted(set(marks))},
        "scenarios": _summary([outcome for report in reports for outcome in report.scenarios]),
    }


def told(summary: Mapping[str, int]) -> str:
    """A summary in words, without what there is none of."""
    return ", ".join(f"{number} {name.replace('_', ' ')}" for name, number in summary.items() if number)


def _features(report: Report) -> list[str]:
    return list(dict.fromkeys(outcome.feature for outcome in report.outcomes if outcome.feature))


def _core(report: Report) -> Sequence[Outcome]:
    return [outcome for outcome in report.outcomes if not outcome.feature]


def _share(outcomes: Sequence[Outcome]) -> str:
    asked = [outcome for outcome in outcomes if outcome.verdict is not Verdict.NOT_DECLARED]
    good = sum(outcome.good for outcome in asked)
    if not asked:
        return "none"
    return f"{good}/{len(asked)} proven" if good == len(asked) else f"{good}/{len(asked)} FAILED"


def _count(outcomes: Sequence[Outcome], verdict: Verdict) -> int:
    return sum(outcome.verdict is verdict for outcome in outcomes)


def _summary(outcomes: Sequence[Outcome]) -> dict[str, int]:
    return {verdict.value: _count(outcomes, verdict) for verdict in Verdict}


def _label(outcome: Outcome) -> str:
    """The feature, and its case where it has several."""
    if not outcome.feature or outcome.name.upper() in {outcome.feature, f"{outcome.feature}S"}:
        return outcome.feature or outcome.name
    return f"{outcome.feature} {outcome.name}"


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
