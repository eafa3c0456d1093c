"""One generation: the answer of a resumable stream at the gateway that owns it.

It runs in a task of its own. What it gives is written to the journal and shown to readers once it stands there, so that
no reader ever has more than the journal. Its end, too, counts only when it stands there: whoever can't write it is not
the owner any more, and accounts for nothing.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from contextlib import aclosing, suppress
from typing import TYPE_CHECKING, Protocol

from maestro.gateway.v1.journal_pb2 import StreamBegun, StreamEnd, StreamRecord
from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, StreamChatResponse
from maestro_gateway.chats import Chat
from maestro_gateway.resume.estate import Estate, Failures
from maestro_gateway.resume.journal import Journal, JournalAway
from maestro_gateway.resume.known import Known, marks_of
from maestro_gateway.resume.superseded import Superseded
from maestro_gateway.resume.tail import Tail
from maestro_gateway.resume.unkept import warning_of
from maestro_sdk.adapter.standing import TAKEN
from maestro_sdk.errors import Cancelled, Internal, MaestroError, StreamBroken, UpstreamError, to_status
from maestro_sdk.service.resume import ResumeConfig
from maestro_sdk.tracing import Call, enter_call

if TYPE_CHECKING:
    from maestro_gateway.account import Account
    from maestro_gateway.limits import Ticket
    from maestro_gateway.mesh import Mesh
    from maestro_sdk.mesh.trail import Trail

log = logging.getLogger(__name__)

_AHEAD = 256 * 1024
"""Bytes that may wait to be written before the provider has to."""
_OVERHEAD = 16
OVER = "over"
"""The fact `stream` of an error that ended a stream, and not only the connection of a reader."""
AWAY = "the journal of streams can't be reached"


class Host(Protocol):
    """The streams of a gateway, as each of them sees it."""

    config: ResumeConfig
    journal: Journal
    owner: str


class Generation:
    """Answers one request, and keeps the journal of it; to its `Chat` it is the `Scribe`."""

    def __init__(
        self,
        host: Host,
        mesh: Mesh,
        subject: str,
        tenant: str,
        begun: StreamBegun,
        *,
        known: Known | None = None,
        estate: Estate | None = None,
        refusal: MaestroError | None = None,
        unkept: str = "",
    ) -> None:
        """`known` is what the journal has, where this gateway takes over; `estate` what is left of its answer then.

        With a `refusal` it only ends. `unkept` is why nothing of it is written to the journal; empty when it is.
        """
        self.adopted = known is not None
        self._estate = estate or Estate()
        self.inherited = self._estate.begun
        self.ticket: Ticket | None = None
        """What it takes of the limits of its caller, once that is known."""
        self.subject = subject
        self.begun = begun
        self.tail = Tail(known.count if known is not None else 0)
        self._host = host
        self._mesh = mesh
        self._journal = host.journal
        self._refusal = refusal
        self._call = Call(begun.request_id, tenant, begun.traceparent, "" if unkept else begun.call_key)
        deadline = time.monotonic() + (begun.deadline_ns - time.time_ns()) / 1e9 if begun.deadline_ns else None
        request = ChatRequest()
        request.CopyFrom(begun.request)
        self.route = ""
        """The route that was taken, known from the first event on."""
        # Gone once it is over: each of them holds the other.
        self._chat: Chat | None = Chat(mesh, request, deadline, scribe=self)
        # Where the answer is read again, what the journal has of it.
        self._skip = list(known.marks) if known is not None and not self._estate.told else []
        self._sequence = known.sequence if known is not None else 0
        self._written = self.tail.end
        # Events with the backend that gave them, and their bytes.
        self._pending: list[tuple[str, ChatEvent]] = []
        self._waiting = 0
        self._failures = Failures()
        self._last: list[ChatEvent] = []
        self._end: StreamEnd | None = None
        self._wake = asyncio.Event()
        self._room = asyncio.Event()
        self._wish: MaestroError | None = None
        self._failure: MaestroError | None = None
        self._task: asyncio.Task[None] | None = None
        self._writer: asyncio.Task[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._readers = 0
        self.unkept = bool(unkept)
        """Whether it ends with its connection, since it is not in the journal."""
        self._warning = warning_of(unkept) if unkept else None
        self.tail.held = self.unkept

    def start(self, forget: Callable[[Generation], None]) -> asyncio.Task[None]:
        """Begins; `forget` is called at the end. The caller keeps the task."""
        self._task = asyncio.create_task(self._run(), name=f"stream {self.begun.request_id}")
        self._task.add_done_callback(lambda _: forget(self))
        self.touch()
        return self._task

    def attach(self) -> None:
        """A reader came."""
        self._readers += 1
        self._stop_timer()

    def detach(self) -> None:
        """A reader left."""
        self._readers -= 1
        self.touch()

    def touch(self) -> None:
        """Somebody is interested: the time without a reader begins anew."""
        self._stop_timer()
        if not self._readers and not self.tail.over:
            loop = asyncio.get_running_loop()
            self._timer = loop.call_later(0.05 if self.unkept else self._host.config.window, self._expire)

    def cancel(self, wish: MaestroError) -> None:
        """Ends it at once, down to the provider, unless its end is being written."""
        if self._task is not None and self._end is None and self._wish is None and not self._task.done():
            self._wish = wish
            self._task.cancel()

    def hand_over(self) -> None:
        """Lets go of it: another gateway may go on at once."""
        self._mesh.backends.standing.let_stand(self._call.key)
        self.cancel(Superseded())

    async def begin(self, account: Account) -> None:
        """Its request was admitted. Raises `Superseded` when another gateway answers the same request."""
        self.ticket = account.ticket
        self._estate.enter(account.trail)
        if self._refusal is not None:
            raise self._refusal
        if self.unkept:
            return
        account.trail.on_failure = lambda: self._note(account.trail)
        if self.adopted:
            return
        record = StreamRecord(owner=self._host.owner, begun=self.begun)
        if record.ByteSize() > self._journal.largest:
            self._leave_journal("the request is too large for the journal")
            return
        try:
            self._sequence = await self._journal.append(self.subject, record, 0)
        except JournalAway as error:
            log.warning("%s: %s", self.begun.request_id, error)
            self._leave_journal(AWAY)

    async def add(self, batch: StreamChatResponse, account: Account) -> None:
        """Takes events; returns when there is room for more, and with the last ones when they are written."""
        if self._failure is not None:
            raise self._failure
        trail, backend = account.trail, account.trail.backend
        if not self.route and self._chat is not None:
            self.route = self._chat.route
        events = self._shown(batch.events)
        self._note(trail)
        if trail.finish is not None:
            if self.unkept:
                self._last = events
                return
            self._put(backend.id if backend is not None else "", events)
            await self._close(StreamEnd(event=account.seal(None)))
            return
        if self.unkept:
            self.tail.add(events)
            await self.tail.wait_for_readers()
            return
        self._put(backend.id if backend is not None else "", events)
        while self._waiting > _AHEAD and self._failure is None:
            self._room.clear()
            await self._room.wait()

    async def fail(self, error: BaseException, account: Account) -> BaseException:
        """Writes how it ended without an answer; gives what has to be raised."""
        task = asyncio.current_task()
        if self._wish is not None and isinstance(error, asyncio.CancelledError) and task is not None:
            task.uncancel()
            error = self._wish
        if isinstance(error, MaestroError) and error.metadata.get("standing") == TAKEN:
            error = Superseded()
        if isinstance(error, asyncio.CancelledError | GeneratorExit):
            if self.unkept:
                return error
            # This process ends, and that is no end of the stream.
            self._mesh.backends.standing.let_stand(self._call.key)
            return Superseded()
        if isinstance(error, Superseded):
            self._mesh.backends.standing.let_stand(self._call.key)
            # It is another one's: a cancellation that comes now must not make it a failure that is accounted here.
            with suppress(asyncio.CancelledError):
                await self._let_go()
            return error
        known = error if isinstance(error, MaestroError) else Internal(type(error).__name__)
        known.metadata["stream"] = OVER
        if self.unkept or not self._sequence:
            return error
        status = to_status(known).SerializeToString()
        try:
            await self._close(StreamEnd(error=status, event=account.seal(known)))
        except Superseded as overtaken:
            return overtaken
        return error

    async def _run(self) -> None:
        enter_call(self._call)
        if not self.unkept:
            self._writer = asyncio.create_task(self._write())
        tail, chat = self.tail, self._chat
        try:
            if chat is not None:
                async with aclosing(chat.stream()) as batches:
                    async for _ in batches:
                        pass
        except MaestroError as error:
            _shed(error)
            tail.close(error, moved=isinstance(error, Superseded))
        except asyncio.CancelledError:
            tail.close(UpstreamError("the gateway is shutting down; take up the stream at another one"))
            raise
        except Exception as error:
            log.exception("unexpected error while serving %s", self.begun.request_id)
            tail.close(Internal(f"internal error; the log of the gateway tells more ({type(error).__name__})"))
            _shed(error)
        else:
            tail.add(self._last)
            tail.close()
        finally:
            self._chat = None
            self._stop_timer()
            await self._stop_writer()
            self._mesh.backends.standing.forget(self._call.key)

    def _shown(self, events: Iterable[ChatEvent]) -> list[ChatEvent]:
        """The events as readers see them, without those that the journal has."""
        shown: list[ChatEvent] = []
        for event in events:
            shown.append(event)
            if event.WhichOneof("kind") == "started":
                event.started.stream = "" if self.unkept else self.begun.request_id
                shown += [ChatEvent(warning=warning) for warning in self.begun.warnings]
                if self._warning is not None:
                    shown.append(self._warning)
                    self._warning = None
        if not self._skip:
            return shown
        count = min(len(self._skip), len(shown))
        if marks_of(shown[:count]) != self._skip[:count]:
            raise StreamBroken("the gateway of this stream died, and its answer can't be read again")
        del self._skip[:count]
        return shown[count:]

    def _note(self, trail: Trail) -> None:
        """Has the attempts that failed written."""
        if self._failures.note(trail, again=bool(self._skip)):
            self._wake.set()

    def _put(self, backend_id: str, events: list[ChatEvent]) -> None:
        for event in events:
            self._pending.append((backend_id, event))
            self._waiting += event.ByteSize() + _OVERHEAD
        self._wake.set()

    async def _close(self, end: StreamEnd) -> None:
        """Writes all that waits, and the end. Raises `Superseded`; without a journal the end is nobody else's."""
        self._end = end
        self._wake.set()
        if self._writer is not None:
            # Not as a child of this task: a cancellation must not leave open whether the end is written.
            await asyncio.shield(self._writer)
        if self._failure is not None:
            raise self._failure

    async def _write(self) -> None:
        try:
            while True:
                while not self._pending and not self._failures.waiting and self._end is None:
                    self._wake.clear()
                    await self._wake.wait()
                record, size = self._next()
                if record.ByteSize() > self._journal.largest:
                    self._leave_journal("an event is too large for the journal")
                    return
                self._sequence = await self._journal.append(self.subject, record, self._sequence)
                self._written += len(record.events)
                del self._failures.waiting[: len(record.attempts)]
                del self._pending[: len(record.events)]
                self._waiting -= size
                self._room.set()
                if record.HasField("end"):
                    self._last = list(record.events)
                    return
                if record.events:
                    self.tail.add(record.events)
        except JournalAway as error:
            log.warning("%s: %s", self.begun.request_id, error)
            self._leave_journal(AWAY)
        except Superseded as error:
            self._lose(error)

    def _next(self) -> tuple[StreamRecord, int]:
        """The next record, of events of one backend, and the bytes that it takes from those that wait."""
        record = StreamRecord(owner=self._host.owner, before=self._written, route=self.route)
        size, most = 0, self._journal.largest - 65536
        for backend_id, event in self._pending:
            length = event.ByteSize() + _OVERHEAD
            if record.events and (size + length > most or backend_id != record.backend_id):
                break
            record.events.append(event)
            record.backend_id = backend_id
            size += length
        if not self._pending or record.backend_id == self._pending[-1][0]:
            # Not before what an heir says: alone, the last events would be charged to their backend once more.
            record.attempts.extend(self._failures.waiting)
        if self._end is not None and len(record.events) == len(self._pending):
            record.end.CopyFrom(self._end)
        return record, size

    def _leave_journal(self, why: str) -> None:
        """Goes on as a stream that ends with its connection."""
        log.warning("%s can't be taken up any more: %s", self.begun.request_id, why)
        self.unkept = self.tail.held = True
        waiting = [event for _, event in self._pending]
        self._pending.clear()
        self._waiting = 0
        if waiting or self.tail.end:
            begins = bool(waiting) and waiting[0].WhichOneof("kind") == "started"
            waiting.insert(1 if begins else 0, warning_of(why))
        else:
            self._warning = warning_of(why)
        if self._end is not None:
            self._last = waiting
        elif waiting:
            self.tail.add(waiting)
        self._room.set()
        self.touch()

    def _lose(self, error: Superseded) -> None:
        """Another gateway has it: what stands at the adapter is that one's."""
        self._mesh.backends.standing.let_stand(self._call.key)
        self._failure = error
        self._room.set()
        if self._end is None:
            self.cancel(error)

    async def _let_go(self) -> None:
        """Tells the others that nobody owns it, where it still is ours."""
        await self._stop_writer()
        if self.unkept or self._failure is not None or not self._sequence:
            return
        try:
            await self._journal.append(self.subject, StreamRecord(before=self._written), self._sequence)
        except (JournalAway, Superseded) as error:
            log.debug("%s was not let go of: %r", self.begun.request_id, error)

    async def _stop_writer(self) -> None:
        writer, self._writer = self._writer, None
        if writer is not None and not writer.done():
            writer.cancel()
            await asyncio.wait((writer,))

    def _expire(self) -> None:
        self.cancel(Cancelled("nobody read the stream"))

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None


def _shed(error: BaseException) -> None:
    """Lets go of the frames that an error went through: these hold it, and the whole stream with it."""
    error.__traceback__ = error.__context__ = None
