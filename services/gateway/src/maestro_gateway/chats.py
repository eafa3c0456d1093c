"""The path of every chat, whichever door it came in by: admit, plan, dispatch, account."""

from __future__ import annotations

from collections.abc import AsyncGenerator
from contextlib import aclosing
from typing import TYPE_CHECKING

from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse, StreamChatResponse
from maestro_gateway.mesh import calling
from maestro_sdk.mesh.needs import needs_of

if TYPE_CHECKING:
    from maestro_gateway.account import Account
    from maestro_gateway.mesh import Mesh


class Chat:
    """One chat, to be answered once: as a whole or as a stream. The call that is served has to be the current one."""

    __slots__ = ("_account", "_deadline", "_job_id", "_mesh", "_request")

    def __init__(self, mesh: Mesh, request: ChatRequest, deadline: float | None = None, job_id: str = "") -> None:
        """`deadline` is of the monotonic clock; `job_id` names the job that the chat is an item of."""
        self._mesh = mesh
        self._request = request
        self._deadline = deadline
        self._job_id = job_id
        self._account: Account | None = None

    @property
    def route(self) -> str:
        """The route that was taken, known from the first event on; empty when the model was named directly."""
        plan = self._account.trail.plan if self._account is not None else None
        return plan.route.name if plan is not None else ""

    @property
    def finished(self) -> bool:
        """Whether the last events that were handed on hold the end of the answer."""
        return self._account is not None and self._account.trail.finish is not None

    async def complete(self) -> ChatResponse:
        """The whole answer. Raises what refused it, or the last error of its attempts."""
        with await self._admit(streamed=False) as account:
            needs = needs_of(self._request, calling().tenant)
            return await self._mesh.dispatcher.complete(self._request, needs, account.trail, self._deadline)

    async def stream(self) -> AsyncGenerator[StreamChatResponse]:
        """The answer piece by piece; closing the iterator ends the attempt that runs. Raises as `complete`."""
        with await self._admit(streamed=True) as account:
            needs = needs_of(self._request, calling().tenant, streaming=True)
            stream = self._mesh.dispatcher.stream(self._request, needs, account.trail, self._deadline)
            async with aclosing(stream) as batches:
                async for batch in batches:
                    account.note_attempts()
                    yield batch

    async def _admit(self, *, streamed: bool) -> Account:
        account = self._account = self._mesh.accountant.open(
            self._request, calling(), streamed=streamed, job_id=self._job_id
        )
        if account.counted:
            await account.admit()
        return account
