"""The path of every chat, whichever door it came in by: admit, plan, dispatch, account."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING, Protocol

from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse, Finish, StreamChatResponse
from maestro_gateway.cache import look_up, replay
from maestro_gateway.files.attachments import MEDIA, are_there, attach
from maestro_gateway.mesh import calling
from maestro_sdk.errors import MaestroError
from maestro_sdk.mesh.needs import needs_of

if TYPE_CHECKING:
    from maestro_gateway.account import Account
    from maestro_gateway.cache import Lookup
    from maestro_gateway.mesh import Mesh
    from maestro_sdk.mesh.handover import Begun
    from maestro_sdk.mesh.needs import Needs
    from maestro_sdk.mesh.trail import Trail


class Scribe(Protocol):
    """Writes down a streamed answer as it comes, so that another gateway can go on with it."""

    adopted: bool
    """Whether this gateway goes on with what another one began: then it is admitted already."""
    inherited: Begun | None
    """What another gateway began to answer; None when there is nothing of it."""

    async def begin(self, account: Account) -> None:
        """The request is admitted."""
        ...

    async def add(self, batch: StreamChatResponse, account: Account) -> None:
        """Takes events; once it returns with those of the end, these are written. Raises `Superseded`."""
        ...

    async def fail(self, error: BaseException, account: Account) -> BaseException:
        """Takes what ended it; gives what has to be raised."""
        ...


class Chat:
    """One chat, to be answered once: as a whole or as a stream. The call that is served has to be the current one."""

    __slots__ = ("_account", "_deadline", "_job_id", "_lookup", "_mesh", "_needs", "_request", "_scribe")

    def __init__(
        self,
        mesh: Mesh,
        request: ChatRequest,
        deadline: float | None = None,
        job_id: str = "",
        scribe: Scribe | None = None,
    ) -> None:
        """`deadline` is of the monotonic clock; `job_id` names the job that the chat is an item of.

        A `scribe` writes down what is streamed.
        """
        self._mesh = mesh
        self._request = request
        self._deadline = deadline
        self._job_id = job_id
        self._account: Account | None = None
        self._lookup: Lookup | None = None
        self._needs: Needs | None = None
        self._scribe = scribe

    @property
    def route(self) -> str:
        """The route that was taken, known from the first event on; empty when the model was named directly."""
        if self._lookup is not None:
            return self._lookup.route.name
        plan = self._account.trail.plan if self._account is not None else None
        return plan.route.name if plan is not None else ""

    @property
    def trail(self) -> Trail | None:
        """What happened so far; None before its account was opened."""
        return self._account.trail if self._account is not None else None

    def hand_over(self) -> None:
        """From now on a cancellation only means that another gateway goes on with it."""
        if self._account is not None:
            self._account.handed_over = True

    @property
    def finished(self) -> bool:
        """Whether the last events that were handed on hold the end of the answer."""
        return self._account is not None and self._account.trail.finish is not None

    async def complete(self) -> ChatResponse:
        """The whole answer. Raises what refused it, or the last error of its attempts."""
        try:
            with await self._admit(streamed=False) as account:
                lookup = self._lookup
                if lookup is not None and lookup.found is not None:
                    account.trail.finish = Finish(reason=lookup.found.finish_reason)
                    account.record(lookup.found)
                    return lookup.found
                needs = self._needs or needs_of(self._request, calling().tenant)
                request = await self._attached(needs)
                response = await self._mesh.dispatcher.complete(request, needs, account.trail, self._deadline)
                account.record(response)
                if lookup is not None:
                    await lookup.keep(response)
                return response
        finally:
            if self._lookup is not None:
                self._lookup.leave()

    async def stream(self) -> AsyncGenerator[StreamChatResponse]:
        """The answer piece by piece; closing the iterator ends the attempt that runs. Raises as `complete`."""
        with await self._admit(streamed=True) as account:
            lookup, scribe = self._lookup, self._scribe
            try:
                if scribe is not None:
                    await scribe.begin(account)
                if lookup is not None and lookup.found is not None:
                    account.trail.finish = Finish(reason=lookup.found.finish_reason)
                    batch = replay(lookup.found)
                    account.record(batch)
                    if scribe is not None:
                        await scribe.add(batch, account)
                    account.note_attempts()
                    yield batch
                    return
                needs = self._needs or needs_of(self._request, calling().tenant, streaming=True)
                begun = scribe.inherited if scribe is not None else None
                request = await self._attached(needs)
                stream = self._mesh.dispatcher.stream(request, needs, account.trail, self._deadline, begun)
                async with aclosing(stream) as batches:
                    async for batch in batches:
                        if account.recording is not None:
                            account.record(batch)
                        if scribe is not None:
                            # How it ends counts when that is written: before anything is charged or told.
                            await scribe.add(batch, account)
                        account.note_attempts()
                        if lookup is not None:
                            await lookup.note(batch.events, batch.ByteSize())
                        yield batch
            except BaseException as error:
                if scribe is None:
                    raise
                failure = await scribe.fail(error, account)
                if failure is error:
                    raise
                raise failure from None

    async def _attached(self, needs: Needs) -> ChatRequest:
        """The request with the bytes of the files that it names."""
        files = self._mesh.files
        if files is None or not needs.required & MEDIA:
            return self._request
        return await attach(files, calling().tenant, self._request)

    async def _admit(self, *, streamed: bool) -> Account:
        account = self._account = self._mesh.accountant.open(
            self._request, calling(), streamed=streamed, job_id=self._job_id
        )
        taken_over = self._scribe is not None and self._scribe.adopted
        if taken_over:
            account.take_over()
        elif self._mesh.source.table.caches:
            try:
                await self._look(account, streamed=streamed)
            except MaestroError as error:
                account.deny(error)
                raise
        if account.counted:
            await account.admit()
            if account.cheaper:
                # What a cheaper route says is no answer of the one that was asked for.
                if self._lookup is not None:
                    self._lookup.leave()
                self._lookup = self._needs = None
        if self._mesh.recorder is not None:
            account.recording = self._mesh.recorder.begin(calling(), self._request)
        return account

    async def _look(self, account: Account, *, streamed: bool) -> None:
        """Looks for an earlier answer: one that is there is free, so limits of tokens do not refuse it."""
        mesh, tenant, request = self._mesh, calling().tenant, self._request
        needs = self._needs = needs_of(request, tenant, streaming=streamed)
        lookup = self._lookup = await look_up(
            mesh.cache, request, needs, mesh.source.table, tenant, self._deadline, streamed=streamed
        )
        if lookup is None or lookup.found is None:
            return
        files = mesh.files
        if files is None or not needs.required & MEDIA or await are_there(files, tenant, request):
            account.give_again(lookup.found, lookup.route.name)
        else:
            # What was said about a file goes with it.
            lookup.discard()
