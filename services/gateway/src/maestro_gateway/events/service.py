"""`maestro.event.v1.EventService`: lifecycle events for programs with generated stubs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator
from contextlib import aclosing, asynccontextmanager, closing
from typing import Any

from maestro.event.v1.event_pb2 import (
    SUBSCRIPTION_NOTICE_KIND_GAP,
    SUBSCRIPTION_NOTICE_KIND_READY,
    SUBSCRIPTION_NOTICE_KIND_SLOW_CONSUMER,
    SubscribeRequest,
    SubscribeResponse,
    SubscriptionNotice,
    SubscriptionNoticeKind,
)
from maestro.event.v1.event_pb2_grpc import EventServiceServicer
from maestro_gateway.events.feed import Feeds, Gap
from maestro_gateway.events.query import read_request, sees_callers, tenant_of
from maestro_gateway.events.socket import FAREWELL, PATIENCE
from maestro_gateway.identity import admitted
from maestro_gateway.identity.keys import Keys
from maestro_gateway.identity.sittings import Sittings
from maestro_sdk.errors import MaestroError, TenantConcurrency, Unauthenticated
from maestro_sdk.service.event_reader import EventReader

log = logging.getLogger(__name__)

SUBSCRIBE = "/maestro.event.v1.EventService/Subscribe"


class EventService(EventServiceServicer):
    """Follows the feeds that the other doors share."""

    def __init__(self, feeds: Feeds, sittings: Sittings, *, patience: float = PATIENCE) -> None:
        """`patience` are the seconds that a reader may take nothing before it is dropped."""
        self._feeds = feeds
        self._sittings = sittings
        self._patience = patience

    async def Subscribe(self, request: SubscribeRequest, context: Any) -> None:
        principal = admitted()
        query = read_request(request)
        callers = sees_callers(principal)
        async with self._feeds.follow(tenant_of(query, principal), query) as follower:
            task, dismissed = asyncio.current_task(), False
            out = _Out(context, follower.start, self._patience)

            def dismiss() -> None:
                nonlocal dismissed
                dismissed = True
                if task is not None:
                    task.cancel()

            try:
                with self._sittings.hold(principal, dismiss), closing(out):
                    ready = _notice(SUBSCRIPTION_NOTICE_KIND_READY, follower.newest, "every later event will be sent")
                    await out.put(SubscribeResponse(notice=ready), follower.start)
                    async with aclosing(follower.steps()) as steps:
                        async for step in steps:
                            if isinstance(step, Gap):
                                lost = "events up to this sequence are no longer kept"
                                notice = _notice(SUBSCRIPTION_NOTICE_KIND_GAP, step.sequence, lost)
                                await out.put(SubscribeResponse(notice=notice), step.sequence)
                            elif step is not None:
                                events = [entry.told(callers=callers) for entry in step]
                                await out.put(SubscribeResponse(events=events), step[-1].sequence)
            except asyncio.CancelledError:
                if not dismissed or task is None:
                    raise
                task.uncancel()
                raise Unauthenticated("the key is not in force any more") from None


class _Out:
    """The way out to one reader; `sent` is the sequence that it has, or has in its buffers."""

    def __init__(self, context: Any, sent: int, patience: float) -> None:
        self._context = context
        self._patience = patience
        self._sent = sent
        self._writing: asyncio.Future[None] | None = None

    async def put(self, response: SubscribeResponse, sequence: int) -> None:
        """Sends a message. Raises what ends a stream whose reader is too slow."""
        if await self._written(response, self._patience):
            self._sent = sequence
            return
        # gRPC takes one message after the other: the notice has to wait for room, and for a while it does.
        if await self._done(FAREWELL):
            self._sent = sequence
            message = f"events were not taken in time; subscribe again with after_sequence={sequence}"
            notice = _notice(SUBSCRIPTION_NOTICE_KIND_SLOW_CONSUMER, sequence, message)
            await self._written(SubscribeResponse(notice=notice), 1.0)
        raise self._too_slow()

    async def _written(self, response: SubscribeResponse, patience: float) -> bool:
        self._writing = asyncio.ensure_future(self._context.write(response))
        return await self._done(patience)

    async def _done(self, patience: float) -> bool:
        """Whether the message that is being written is on its way within `patience` seconds."""
        writing = self._writing
        if writing is None:
            return True
        try:
            done, _ = await asyncio.wait((writing,), timeout=patience)
        except asyncio.CancelledError:
            _drop(writing)
            raise
        if done:
            self._writing = None
            writing.result()
        return bool(done)

    def close(self) -> None:
        """Forgets a message that nobody takes."""
        if self._writing is not None:
            _drop(self._writing)

    def _too_slow(self) -> MaestroError:
        return TenantConcurrency(
            f"events were not taken in time; subscribe again with after_sequence={self._sent}",
            metadata={"after_sequence": str(self._sent)},
        )


def _drop(writing: asyncio.Future[None]) -> None:
    """Ends a write that nobody waits for any more; that its reader has gone is no error of anybody."""
    writing.cancel()
    writing.add_done_callback(lambda done: done.cancelled() or done.exception())


def _notice(kind: SubscriptionNoticeKind.ValueType, sequence: int, message: str) -> SubscriptionNotice:
    return SubscriptionNotice(kind=kind, sequence=sequence, message=message)


@asynccontextmanager
async def subscriptions(reader: EventReader, keys: Keys) -> AsyncGenerator[tuple[Feeds, EventService]]:
    """The feeds of all doors, and the service, which ends streams with their keys while the block runs."""
    feeds = Feeds(reader)
    async with Sittings(keys) as sittings:
        yield feeds, EventService(feeds, sittings)
