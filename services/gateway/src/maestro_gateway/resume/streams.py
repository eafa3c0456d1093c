"""The resumable streams of a gateway: those that it owns, and how it takes over those of gateways that are gone.

Where the owner of a stream is gone, the gateway that is asked for it writes its own name behind the last record, takes
up the provider's answer at the adapter, from its first message, and goes on where the journal ends.
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import copy_context
from typing import TYPE_CHECKING

from maestro.event.v1.event_pb2 import Event
from maestro.gateway.v1.journal_pb2 import StreamBegun, StreamRecord
from maestro.llm.v1.chat_pb2 import (
    ChatRequest,
    Warning,  # noqa: A004 - the contract's name
)
from maestro_gateway.identity import Caller, Principal, current_caller, current_principal, enter, enter_caller
from maestro_gateway.resume.estate import GONE, take_stock
from maestro_gateway.resume.generation import AWAY, Generation
from maestro_gateway.resume.journal import Journal, JournalAway, subject_of
from maestro_gateway.resume.known import Known
from maestro_gateway.resume.orphans import Orphans
from maestro_gateway.resume.reading import CANCEL, RUNNING, UNKEPT, UNKNOWN, Reading, read_all
from maestro_gateway.resume.superseded import Superseded
from maestro_sdk.errors import Cancelled, Conflict, MaestroError, NoBackend, NotFound, StreamBroken, UpstreamError
from maestro_sdk.mesh.needs import needs_of
from maestro_sdk.service.resume import ResumeConfig
from maestro_sdk.service.settings import Config
from maestro_sdk.tracing import Call

if TYPE_CHECKING:
    from maestro_gateway.mesh import Mesh
    from maestro_sdk.mesh.table import Backend

log = logging.getLogger(__name__)

_FAREWELL = 2.0
"""Seconds that streams have to be let go of when a gateway ends."""
_LOOK = 10.0
"""Seconds between two looks for streams that nobody owns: so that two of them are over before an adapter gives up."""


class Streams:
    """What this gateway knows of resumable streams. It serves once it has a `mesh`."""

    def __init__(self, config: ResumeConfig, url: str, publish: Callable[[Event], None]) -> None:
        """`publish` takes events that tell how streams ended whose gateways died with the news."""
        self.config = config
        self.owner = f"{os.getpid():x}-{os.urandom(6).hex()}"
        """Names this gateway in this life."""
        self.publish = publish
        self.journal = Journal(url, self.owner, config.keep, config.room, self._reply)
        self.mesh: Mesh | None = None
        self.running: dict[str, Generation] = {}
        """The generations of this gateway by subject."""
        self._tasks: set[asyncio.Task[None]] = set()
        self._draining = False

    async def begin(
        self, request: ChatRequest, call: Call, deadline: float | None = None, warnings: Sequence[Warning] = ()
    ) -> Reading:
        """Begins to answer, or takes up the stream that the same request began before under the same id.

        `deadline` is of the monotonic clock. Raises `Conflict` when the id is that of another request.
        """
        tenant, stream = call.tenant, call.request_id
        subject = subject_of(tenant, stream)
        if (running := self.running.get(subject)) is not None:
            _compare(running.begun.request, request)
            return Reading(self, tenant, stream)
        # Without that, the request would be answered a second time where another gateway answers it already.
        await self.journal.settle()
        unkept = self._obstacle()
        if not unkept:
            try:
                newest = await self.journal.newest(subject)
                if newest is not None:
                    known = await read_all(self.journal, subject)
                    if known.begun is not None:
                        _compare(known.begun.request, request)
                    return Reading(self, tenant, stream)
            except JournalAway as error:
                log.warning("%s: %s", stream, error)
                unkept = AWAY
        begun = _begun(request, call, deadline, warnings)
        generation = Generation(self, self._served(), subject, tenant, begun, unkept=unkept)
        self._start(generation)
        return Reading(self, tenant, stream, generation=generation)

    def resume(self, tenant: str, stream: str, after: int) -> Reading:
        """What follows the first `after` events of a stream."""
        return Reading(self, tenant, stream, after)

    async def cancel(self, tenant: str, stream: str) -> None:
        """Ends a stream at once. Raises `NotFound`, and `NoBackend` while nobody can tell."""
        subject = subject_of(tenant, stream)
        if (generation := self.running.get(subject)) is not None:
            generation.cancel(_cancelled())
            return
        try:
            newest = await self.journal.newest(subject)
            if newest is None:
                raise NotFound(f"there is no stream {stream[:128]!r}, or it is no longer kept")
            if newest.record.HasField("end"):
                return
            if await self.journal.ask(newest.record.owner, CANCEL + subject.encode()) in (RUNNING, UNKEPT):
                return
            known = await read_all(self.journal, subject)
            if known.end is None:
                await self.adopt(subject, tenant, known, _cancelled())
        except JournalAway as error:
            log.warning("%s: %s", stream, error)
            raise NoBackend(AWAY, retry_after=1.0) from None
        except Superseded:
            raise NoBackend("another gateway has just taken the stream over; try again", retry_after=0.1) from None

    async def adopt(self, subject: str, tenant: str, known: Known, refusal: MaestroError | None = None) -> None:
        """Takes over a stream whose gateway is gone, to go on with it, or to end it with `refusal`.

        Raises `Superseded` when another gateway did, and `JournalAway`.
        """
        begun = known.begun
        if begun is None or subject in self.running:
            return
        if self._draining:
            raise UpstreamError("the gateway is shutting down; take up the stream at another one", retry_after=0.1)
        claim = StreamRecord(owner=self.owner, before=known.count)
        known.sequence = await self.journal.append(subject, claim, known.sequence)
        log.info("%s goes on here: its gateway is gone", begun.request_id)
        call = Call(begun.request_id, tenant, begun.traceparent, begun.call_key)
        mesh = self._served()
        standing = await self._standing(mesh, known, begun, call)
        if standing is not None and (refusal is not None or known.switched):
            # What an heir said can't be read again as the part of the answer that it is.
            await mesh.backends.standing.end(standing, call)
            standing = None
        if known.count and standing is None:
            known, place = await read_all(self.journal, subject, keep=True), known.sequence
            if known.sequence != place:
                raise Superseded
        needs, table = needs_of(begun.request, tenant, streaming=True), mesh.source.table
        cancelled = refusal is not None
        estate = take_stock(known, table, needs.input_tokens, standing=standing, cancelled=cancelled)
        if known.count and estate.begun is None:
            refusal = refusal or StreamBroken(GONE, metadata={"after_content": "true"}, retryable=False)
        generation = Generation(self, mesh, subject, tenant, begun, known=known, estate=estate, refusal=refusal)
        # Whoever asked first is accounted for, not whoever asks for the rest.
        copy_context().run(self._start_for, generation, tenant)

    async def drain(self, grace: float) -> None:
        """Gives streams `grace` seconds to end, and lets go of the others: other gateways may go on with them."""
        self._draining = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=grace)
        for generation in list(self.running.values()):
            generation.hand_over()
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=_FAREWELL)

    async def close(self) -> None:
        """Ends everything that still runs."""
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)

    async def _reply(self, question: bytes) -> bytes:
        """The answer to another gateway that asks for a stream of this one."""
        cancels = question.startswith(CANCEL)
        generation = self.running.get(question.partition(b" ")[2].decode(errors="replace"))
        if generation is None or generation.tail.over:
            return UNKNOWN
        if cancels:
            generation.cancel(_cancelled())
        elif generation.unkept:
            return UNKEPT
        generation.touch()
        return RUNNING

    async def _standing(self, mesh: Mesh, known: Known, begun: StreamBegun, call: Call) -> Backend | None:
        """The backend at which the answer stands that the gateway that died was reading; None when there is none."""
        if known.backend_id:
            found = mesh.source.table.backends.get(known.backend_id)
            candidates = [found] if found is not None else []
        else:
            try:
                plan = mesh.plan(needs_of(begun.request, call.tenant, streaming=True))
            except MaestroError:
                return None
            candidates = [ranked.choice.backend for ranked in plan.kept]
        for backend in candidates:
            if await mesh.backends.standing.stands(backend, call):
                return backend
        return None

    def _obstacle(self) -> str:
        """Why a new stream is not kept; empty when it is."""
        if len(self.running) >= self.config.most:
            return f"{self.config.most} streams are kept at this gateway already"
        return "" if self.journal.up else AWAY

    def _start(self, generation: Generation) -> None:
        self.running[generation.subject] = generation
        task = generation.start(self._forget)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    def _start_for(self, generation: Generation, tenant: str) -> None:
        begun = generation.begun
        enter(Principal(tenant, begun.key_id, frozenset({"chat"}), "key", begun.subject))
        headers = {"x-envoy-external-address": begun.caller.client_address, "user-agent": begun.caller.user_agent}
        enter_caller(Caller(headers, begun.caller.method))
        self._start(generation)

    def _forget(self, generation: Generation) -> None:
        if self.running.get(generation.subject) is generation:
            del self.running[generation.subject]

    def _served(self) -> Mesh:
        if self.mesh is None:
            raise RuntimeError("streams are asked for before they are served")
        return self.mesh


@asynccontextmanager
async def resuming(config: Config, publish: Callable[[Event], None]) -> AsyncGenerator[Streams]:
    """The resumable streams of a gateway while the block runs."""
    streams = Streams(config.resume, config.nats.url, publish)
    async with streams.journal:
        looking = asyncio.create_task(Orphans(streams).run(_LOOK), name="look for orphaned streams")
        try:
            yield streams
        finally:
            looking.cancel()
            await asyncio.wait((looking,))
            await streams.close()


def _begun(request: ChatRequest, call: Call, deadline: float | None, warnings: Sequence[Warning]) -> StreamBegun:
    principal = current_principal()
    now = time.time_ns()
    return StreamBegun(
        request=request,
        request_id=call.request_id,
        call_key=f"stream.{os.urandom(12).hex()}",
        traceparent=call.traceparent,
        key_id=principal.key_id if principal is not None else "",
        subject=principal.subject if principal is not None else "",
        caller=current_caller().message(),
        warnings=warnings,
        time_ns=now,
        deadline_ns=now + int((deadline - time.monotonic()) * 1e9) if deadline is not None else 0,
    )


def _compare(begun: ChatRequest, request: ChatRequest) -> None:
    if begun != request:
        raise Conflict("another request began a stream under this request id; give each request an id of its own")


def _cancelled() -> Cancelled:
    return Cancelled("the stream was cancelled")
