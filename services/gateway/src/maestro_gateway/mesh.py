"""What all front doors share: the table, the dispatcher, the accountant, and a few facts of the configuration."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass
from typing import Any

from maestro_gateway.account import Accountant
from maestro_sdk.mesh.backends import Backends
from maestro_sdk.mesh.dispatch import Dispatcher, TableSource
from maestro_sdk.mesh.needs import Needs
from maestro_sdk.mesh.plan import Plan, plan
from maestro_sdk.tracing import Call, current_call


@dataclass(frozen=True, slots=True)
class Mesh:
    """The mesh as a front door sees it. `switched_off` are configured adapters that take no part, with the reason."""

    source: TableSource
    backends: Backends
    dispatcher: Dispatcher
    accountant: Accountant
    switched_off: tuple[tuple[str, str], ...] = ()

    def plan(self, needs: Needs) -> Plan:
        """The decision that a request with these needs would meet now. Raises `NotFound` for an unknown model."""
        return plan(needs, self.source.table, self.source.local, time.time(), random.random)


def calling() -> Call:
    """The call being served. Every front door sets one before it gets here."""
    call = current_call()
    if call is None:
        raise RuntimeError("no call is being served")
    return call


def deadline_of(context: Any) -> float | None:
    """The caller's deadline on the monotonic clock; None when it set none."""
    left = context.time_remaining()
    return None if left is None else time.monotonic() + left
