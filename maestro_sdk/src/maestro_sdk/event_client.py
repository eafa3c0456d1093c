"""The client of readers of lifecycle events: what happens to the requests and jobs of a tenant, as it happens.

    async with EventClient() as client:
        async for event in client.follow(kinds=["request.*"]):
            print(event.kind, event.subject)

It goes on by itself, where it was, over restarts of gateways and lost connections. A program that restarts itself goes
on by giving `after` the sequence of the last event that it handled.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from types import TracebackType
from typing import Self

from maestro.event.v1.event_pb2 import (
    SUBSCRIPTION_NOTICE_KIND_GAP,
    SUBSCRIPTION_NOTICE_KIND_READY,
    Event,
    SubscribeRequest,
    SubscribeResponse,
)
from maestro_sdk.connection import Connection
from maestro_sdk.errors import (
    Cancelled,
    MaestroError,
    NoBackend,
    Overloaded,
    StreamBroken,
    TenantConcurrency,
    Timeout,
    UpstreamError,
)
from maestro_sdk.event_stream import EventStream

_SUBSCRIBE = "/maestro.event.v1.EventService/Subscribe"
_PASSING = (NoBackend, Overloaded, StreamBroken, TenantConcurrency, Timeout, UpstreamError)
"""Ends of a stream after which it goes on: the gateway went away, or this reader was too slow."""
_SHORTEST, _LONGEST = 0.05, 2.0
"""Seconds before the second try to come back, and at most."""


class _Subscription(EventStream[SubscribeResponse]):
    """One stream of messages, which never ends well."""

    def __init__(self, connection: Connection, request: SubscribeRequest, request_id: str) -> None:
        # It has no deadline: it is meant to last.
        super().__init__(
            connection, _SUBSCRIBE, request, SubscribeResponse, timeout=float("inf"), request_id=request_id
        )

    @property
    def complete(self) -> bool:
        """False: there is no last event."""
        return False

    def _take(self, message: SubscribeResponse) -> Sequence[SubscribeResponse]:
        return (message,)


class EventClient:
    """A client for one gateway; followers share its connection. Close it, or use it as a context manager."""

    def __init__(self, target: str | None = None, key: str | None = None, *, roots: bytes | None = None) -> None:
        """Parameters as those of `LLMClient`."""
        self._connection = Connection(target, key=key, timeout=None, roots=roots)

    async def follow(
        self,
        *,
        kinds: Sequence[str] = (),
        job: str = "",
        after: int | None = None,
        tenant: str = "",
        request_id: str = "",
        on_ready: Callable[[int], None] | None = None,
        on_gap: Callable[[int], None] | None = None,
    ) -> AsyncGenerator[Event]:
        """The events that pass all filters, in order, each once, for ever; close it to end it.

        `kinds` are "request.completed" or whole families "request.*"; `job` is a job's id. `after` is the sequence of
        the last event that was handled, 0 for all that are kept, None for those from now on. `tenant` is for
        operators; "_mesh" is the mesh as a whole. `on_ready` is told the newest sequence once no later event can be
        missed, again after each return; `on_gap` the last sequence of those that are no longer kept.

        Raises `MaestroError`s that trying again does not heal: `Unauthenticated`, `PermissionDenied`, `InvalidRequest`.
        """
        request = SubscribeRequest(kinds=kinds, job_id=job, after_sequence=after, tenant=tenant)
        tries = 0
        while True:
            try:
                async with aclosing(_Subscription(self._connection, request, request_id)) as stream:
                    async for message in stream:
                        tries = 0
                        for event in message.events:
                            request.after_sequence = event.sequence
                            yield event
                        notice = message.notice
                        if notice.kind == SUBSCRIPTION_NOTICE_KIND_READY:
                            if not request.HasField("after_sequence"):
                                # What happens while it is away after this is not missed either.
                                request.after_sequence = notice.sequence
                            if on_ready is not None:
                                on_ready(notice.sequence)
                        elif notice.kind == SUBSCRIPTION_NOTICE_KIND_GAP and on_gap is not None:
                            on_gap(notice.sequence)
            except MaestroError as error:
                if isinstance(error, Cancelled) or not isinstance(error, _PASSING):
                    raise
                pause = min(_LONGEST, _SHORTEST * 2**tries)
                tries += 1
                # So that the readers of a gateway that went away don't come back all at once.
                await asyncio.sleep(pause * (0.5 + random.random()))  # noqa: S311 - no secret

    async def close(self) -> None:
        """Closes the connection; followers end with `Cancelled`."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()
