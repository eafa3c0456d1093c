"""Proves announced adapters against the core of the conformance suite, and remembers which ones passed."""

from __future__ import annotations

import asyncio
import json
import logging
from pathlib import Path
from typing import Any

from maestro_router.announced import cheapest, digest
from maestro_router.compile import Adapter
from maestro_sdk.conformance.outcome import Outcome, Verdict
from maestro_sdk.service.peer import NOBODY, Peer

log = logging.getLogger(__name__)

PER_ANSWER = 30.0
"""Seconds that one answer of an adapter under proof may take."""
_LONGEST = 240.0
"""Seconds that a whole proof may take."""
_MOST_CASES = 4
"""Failed cases that are told with what was seen."""
_MOST_KEPT = 200


async def prove_core(adapter: Adapter, timeout: float = PER_ANSWER, peer: Peer = NOBODY) -> str:
    """Runs the core cases against an adapter, on its cheapest model that chats; tells what fails, "" for nothing.

    `timeout` in seconds is for one answer; `peer` is what the adapter is shown.
    """
    # A router that verifies nobody does not load the suite.
    from maestro_sdk.conformance.suite import CORE, prove

    try:
        async with asyncio.timeout(_LONGEST):
            report = await prove(adapter.address, model=cheapest(adapter), timeout=timeout, cases=CORE, peer=peer)
    except TimeoutError:
        return f"the core of the conformance suite did not end within {_LONGEST:g} s"
    return summary([outcome for outcome in report.outcomes if not outcome.feature])


def summary(outcomes: list[Outcome]) -> str:
    """Which cases failed and what was seen, in one line; "" when none did."""
    failed = [outcome for outcome in outcomes if outcome.verdict is Verdict.FAILED]
    blocked = sum(outcome.verdict is Verdict.BLOCKED for outcome in outcomes)
    if not failed:
        return f"it could not be proven: {outcomes[0].seen}" if blocked else ""
    told = [f"{outcome.name} ({_short(outcome)})" for outcome in failed[:_MOST_CASES]]
    told += [outcome.name for outcome in failed[_MOST_CASES:]]
    waiting = f", and {blocked} more wait for these" if blocked else ""
    return f"fails {len(failed)} of {len(outcomes)} core cases: {', '.join(told)}{waiting}"


def _short(outcome: Outcome) -> str:
    seen = " ".join("".join(letter if letter.isprintable() else " " for letter in outcome.seen).split())
    return seen if len(seen) <= 120 else f"{seen[:119]}…"


class Verdicts:
    """The adapters that passed, by name and address, in a file that outlives the router.

    A verdict holds for the version and the models that an adapter tells.
    """

    def __init__(self, file: Path) -> None:
        self._file = file
        self._passed = _read(file)

    def instance(self, adapter: Adapter) -> str | None:
        """The process that passed with this version and these models; None when none did."""
        passed, instance = self._passed.get(_key(adapter), ("", ""))
        return instance if passed == digest(adapter) else None

    def keep(self, adapter: Adapter, instance: str) -> None:
        """It passed."""
        self._passed.pop(_key(adapter), None)
        self._passed[_key(adapter)] = digest(adapter), instance
        for key in list(self._passed)[:-_MOST_KEPT]:
            del self._passed[key]
        self._write()

    def drop(self, adapter: Adapter) -> None:
        """It failed."""
        if self._passed.pop(_key(adapter), None) is not None:
            self._write()

    def _write(self) -> None:
        fresh = self._file.with_suffix(".new")
        try:
            self._file.parent.mkdir(parents=True, exist_ok=True)
            fresh.write_text(json.dumps(self._passed, indent=1) + "\n", encoding="utf-8")
            fresh.replace(self._file)
        except OSError as error:
            # All that is lost is that they are proven again after a restart.
            log.warning("%s can't be written: %s", self._file, error)


def _key(adapter: Adapter) -> str:
    return f"{adapter.name} {adapter.address}"


def _read(file: Path) -> dict[str, tuple[str, str]]:
    try:
        found: Any = json.loads(file.read_text(encoding="utf-8"))
        return {str(key): (str(passed), str(instance)) for key, (passed, instance) in found.items()}
    except (OSError, ValueError, TypeError, AttributeError):
        # A file that is spoiled tells of nobody.
        return {}
