"""`GET /v1/events/stream`: the lifecycle events of the caller's own tenant, resumable by sequence."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass

from aiohttp import ClientConnectionError, WSMsgType, web

from maestro.event.v1.event_pb2 import Event, SubscribeRequest
from maestro_gateway.json_codec.event import encode_event, encode_notice
from maestro_sdk.errors import InvalidRequest, Violation
from maestro_sdk.service.events import Subscription
from maestro_sdk.service.interceptors import validate

log = logging.getLogger(__name__)

PATIENCE = 20.0
"""Seconds that a reader may take nothing before it is dropped."""
_PARAMETERS = ("kinds", "job", "after", "access_token")
_NUMBER = re.compile(r"[0-9]{1,19}")
_KINDS = tuple(field.name.replace("_", ".", 1) for field in Event.DESCRIPTOR.oneofs_by_name["payload"].fields)
_FAMILIES = frozenset(kind.partition(".")[0] + ".*" for kind in _KINDS)


@dataclass(frozen=True, slots=True)
class Query:
    """What of the events is wanted; `after` is None for those from now on."""

    kinds: tuple[str, ...] = ()
    job: str = ""
    after: int | None = None


def read_query(items: Iterable[tuple[str, str]]) -> Query:
    """The query of a request: `kinds=request.*,job.completed`, `job=ID`, `after=SEQUENCE`. Raises `InvalidRequest`."""
    kinds: list[str] = []
    job, after = "", None
    for name, value in items:
        match name:
            case "kinds":
                kinds += [kind.strip() for kind in value.split(",") if kind.strip()]
            case "job":
                job = value
            case "after":
                if not _NUMBER.fullmatch(value):
                    raise InvalidRequest.at("after", "must be a sequence, a whole number of at least 0")
                after = int(value)
            case "access_token":
                pass
            case _:
                raise InvalidRequest.at(name[:64], f"is no parameter here; there are {', '.join(_PARAMETERS)}")
    for index, kind in enumerate(kinds):
        if kind not in _KINDS and kind not in _FAMILIES:
            # Nothing would ever come, and nobody would know why.
            raise InvalidRequest.at(
                f"kinds[{index}]", f"is no kind of event; there are {', '.join(_KINDS)}, and NAME.*"
            )
    try:
        validate(SubscribeRequest(kinds=kinds, job_id=job, after_sequence=after))
    except InvalidRequest as error:
        names = [Violation(found.field.replace("job_id", "job"), found.message) for found in error.violations]
        raise InvalidRequest("; ".join(f"{n.field}: {n.message}" for n in names), violations=names) from None
    return Query(tuple(kinds), job, after)


class EventSocket:
    """One socket that follows one subscription."""

    def __init__(self, socket: web.WebSocketResponse, subscription: Subscription, patience: float = PATIENCE) -> None:
        self._socket = socket
        self._subscription = subscription
        self._patience = patience
        self._sent = 0

    async def run(self) -> None:
        """Sends until the peer leaves or is too slow."""
        async with asyncio.TaskGroup() as group:
            sending = group.create_task(self._send())
            try:
                async for message in self._socket:
                    if message.type not in (WSMsgType.TEXT, WSMsgType.BINARY):
                        break
            finally:
                sending.cancel()

    async def finish(self, grace: float) -> None:
        """Says goodbye with the sequence to go on after."""
        await self._close(1001, "draining", "the gateway is shutting down; connect again with ?after=")

    async def dismiss(self) -> None:
        """Closes: the key is not in force any more."""
        with suppress(TimeoutError, ClientConnectionError):
            async with asyncio.timeout(1.0):
                await self._socket.close(code=1008, message=b"the key is not in force any more")

    async def _send(self) -> None:
        subscription = self._subscription
        try:
            await self._put(encode_notice("ready", subscription.newest, "every later event will be sent"))
            if subscription.lost:
                await self._put(
                    encode_notice("gap", subscription.lost, "events up to this sequence are no longer kept")
                )
            async for batch in subscription.batches():
                async with asyncio.timeout(self._patience):
                    for sequence, event in batch:
                        await self._put(encode_event(event))
                        self._sent = sequence
        except TimeoutError:
            await self._close(1013, "slow_consumer", "events were not taken in time; connect again with ?after=")
        except ClientConnectionError:
            log.debug("the reader of an event stream left")

    async def _put(self, frame: bytes) -> None:
        await self._socket.send_frame(frame, WSMsgType.TEXT)

    async def _close(self, code: int, kind: str, message: str) -> None:
        """Leaves a notice and closes; a reader that takes nothing finds both when it reads again."""
        at = self._sent or self._subscription.newest
        try:
            async with asyncio.timeout(1.0):
                await self._put(encode_notice(kind, at, f"{message}{at}"))
                await self._socket.close(code=code, message=f"{kind}; go on with ?after={at}".encode())
        except (TimeoutError, ClientConnectionError):
            log.debug("an event stream was closed without a goodbye")
