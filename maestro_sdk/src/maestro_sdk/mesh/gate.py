"""What stands before every attempt where somebody counts what backends may be asked: limits of providers.

The dispatcher knows nothing of limits. It asks the gate, passes over whoever is refused, and says at the end of each
attempt what it used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.errors import MaestroError
from maestro_sdk.mesh.needs import Needs
from maestro_sdk.mesh.table import Backend


@dataclass(frozen=True, slots=True)
class Refusal:
    """There is no room: `error` is that of a request that has nobody else to ask.

    It is `exact` when there is room after its `retry_after` and not before. Else some may come at any moment.
    """

    error: MaestroError
    exact: bool = True


class Admission(Protocol):
    """What one attempt has to take before it begins, and gives back at its end."""

    async def take(self) -> Refusal | None:
        """Takes all of it, or nothing: then it tells why. Cancelled meanwhile, it has taken nothing."""
        ...

    def settle(self, usage: Usage | None) -> None:
        """The attempt is over and used `usage`, None for nothing. A second time does nothing."""
        ...

    def undo(self) -> None:
        """There is no attempt after all: nothing is counted."""
        ...


class Gate(Protocol):
    """Tells what an attempt has to take."""

    def find(self, backend: Backend, needs: Needs) -> Admission | None:
        """What an attempt at `backend` has to take; None where nothing is counted, which costs a look into a table."""
        ...
