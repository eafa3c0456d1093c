"""Kills processes of a mesh under load, and measures what callers noticed of it."""

from __future__ import annotations

import itertools
import time
from collections.abc import Sequence
from dataclasses import dataclass

from maestro_sdk.testing.chaos.load import Load, Shown
from maestro_sdk.testing.mesh import MeshProcess

SETTLED = 60
"""Good answers before and after a strike."""


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What a strike did. Times in seconds after it; `last_failure` is 0 when nobody noticed anything."""

    victim: str
    at: float
    """Unix time of it."""
    ready: float
    """Until the process was there again."""
    silence: float
    """Longest time in which nobody was answered."""
    last_failure: float
    failures: Sequence[Shown]

    def row(self) -> str:
        """A line of a table."""
        return (
            f"{self.victim:16} ready again after {self.ready:5.2f} s, longest time without an answer "
            f"{self.silence:5.2f} s, last failure after {self.last_failure:5.2f} s, failures {len(self.failures)}"
        )


async def strike(mesh: MeshProcess, load: Load, victim: str) -> Aftermath:
    """Kills `victim` (SIGKILL) while `load` runs, and waits until it is there again and answers flow."""
    await load.answers(SETTLED)
    known = len(load.shown)
    begun = time.time()
    before = mesh.kill(victim)
    await mesh.wait_restarted(before)
    ready = time.time() - begun
    await load.answers(SETTLED)
    since = load.shown[known:]
    ends = [begun, *(each.ended for each in since if each.answered)]
    failures = [each for each in since if not each.answered and not each.refusable]
    return Aftermath(
        victim=victim,
        at=begun,
        ready=ready,
        silence=max(later - earlier for earlier, later in itertools.pairwise(ends)),
        last_failure=max((each.ended - begun for each in failures), default=0.0),
        failures=failures,
    )
