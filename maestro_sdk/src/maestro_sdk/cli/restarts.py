"""When a process that ended is started again. Pure: time and history in, a decision out."""

from __future__ import annotations

from dataclasses import dataclass

CONFIG_STATUS = 2
"""Exit status of a service whose configuration is wrong: trying again would not change it."""


@dataclass(slots=True)
class Restarts:
    """Counts crashes that follow each other fast and spaces the next starts; a long life forgives everything before it.

    Times are in seconds: a crash is fast when the process lived less than `settled`.
    """

    first: float = 0.2
    longest: float = 10.0
    settled: float = 10.0
    most: int = 5
    most_at_start: int = 3
    fast: int = 0
    total: int = 0

    def after(self, *, lived: float, status: int, was_up: bool) -> float | None:
        """The pause before the next start of a process that ended with `status`, or None to give up.

        A process that never `was_up` gets fewer tries: somebody is waiting for the mesh to start.
        """
        self.fast = self.fast + 1 if lived < self.settled else 0
        if status == CONFIG_STATUS or self.fast >= (self.most if was_up else self.most_at_start):
            return None
        self.total += 1
        return min(self.longest, self.first * 2 ** max(0, self.fast - 1))


def told(status: int) -> str:
    """How a process ended, in words; a negative status is a signal."""
    if status >= 0:
        return f"exited with status {status}"
    import signal

    try:
        return f"was ended by {signal.Signals(-status).name}"
    except ValueError:
        return f"was ended by signal {-status}"
