"""What all front doors share: the table, the dispatcher, the accountant, and a few facts of the configuration."""

from __future__ import annotations

import random
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from maestro_gateway.account import Accountant
from maestro_gateway.cache.store import AnswerStore
from maestro_sdk.mesh.backends import Backends
from maestro_sdk.mesh.dispatch import Dispatcher, TableSource
from maestro_sdk.mesh.embed import EmbedDispatcher
from maestro_sdk.mesh.needs import Needs
from maestro_sdk.mesh.plan import Plan, plan
from maestro_sdk.tracing import Call, current_call

if TYPE_CHECKING:
    from maestro.router.v1.router_pb2_grpc import RouterServiceAsyncStub
    from maestro_gateway.audit.recorder import Recorder
    from maestro_gateway.files import Files
    from maestro_gateway.resume.streams import Streams


class Routers(Protocol):
    """Whom the table comes from: a `RouteWatcher`."""

    @property
    def router(self) -> RouterServiceAsyncStub | None:
        """The router that is followed; None while there is none."""
        ...

    @property
    def address(self) -> str:
        """Its address, or that of the one that was followed last."""
        ...

    @property
    def degraded(self) -> bool:
        """Whether no router renews the table."""
        ...

    @property
    def table_age(self) -> float:
        """Seconds since a router last stood behind the table."""
        ...


@dataclass(frozen=True, slots=True)
class Mesh:
    """The mesh as a front door sees it. `switched_off` are configured adapters that take no part, with the reason."""

    source: TableSource
    routers: Routers
    backends: Backends
    dispatcher: Dispatcher
    accountant: Accountant
    switched_off: tuple[tuple[str, str], ...] = ()
    cache: AnswerStore | None = None
    """Answers that are given again; None when none are."""
    recorder: Recorder | None = None
    """Records content of the tenants that chose so; None when none did."""
    files: Files | None = None
    """Files that requests may name; None when there are none."""
    streams: Streams | None = None
    """Streams that outlive the connections of their readers; None where there are none."""
    embedder: EmbedDispatcher = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "embedder", EmbedDispatcher(self.source, self.backends, gate=self.dispatcher.gate))

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
