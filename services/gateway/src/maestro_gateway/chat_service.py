"""`maestro.llm.v1.ChatService` for programs with generated stubs: the contract in, the contract out."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import Any

import grpc

from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse, CountTokensRequest, CountTokensResponse
from maestro.llm.v1.chat_pb2_grpc import ChatServiceServicer, ChatServiceStub
from maestro_gateway.identity import permit
from maestro_gateway.limits import Ticket, openai_headers
from maestro_gateway.mesh import Mesh, calling, deadline_of
from maestro_sdk.errors import MaestroError, Unimplemented, from_rpc_error
from maestro_sdk.mesh.needs import needs_of
from maestro_sdk.mesh.plan import refusal
from maestro_sdk.tracing import outgoing_metadata


class ChatService(ChatServiceServicer):
    """Answers from the mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def Chat(self, request: ChatRequest, context: Any) -> ChatResponse:
        call = calling()
        opened = self._mesh.accountant.open(request, call, streamed=False)
        if opened.ticket is not None:
            await _admit(opened.ticket, context)
        with opened as account:
            needs = needs_of(request, call.tenant)
            return await self._mesh.dispatcher.complete(request, needs, account.trail, deadline_of(context))

    async def StreamChat(self, request: ChatRequest, context: Any) -> None:
        call = calling()
        opened = self._mesh.accountant.open(request, call, streamed=True)
        if opened.ticket is not None:
            await _admit(opened.ticket, context)
        with opened as account:
            needs = needs_of(request, call.tenant, streaming=True)
            stream = self._mesh.dispatcher.stream(request, needs, account.trail, deadline_of(context))
            # Writing instead of yielding: when the call is cancelled, the attempt is closed here and now.
            async with aclosing(stream) as batches:
                async for batch in batches:
                    account.note_attempts()
                    await context.write(batch)

    async def CountTokens(self, request: CountTokensRequest, context: Any) -> CountTokensResponse:
        """Asks the backends of the plan in order; when none of them can count, the answer is marked as an estimate."""
        chat = request.request
        permit(chat)
        needs = needs_of(chat, calling().tenant)
        plan = self._mesh.plan(needs)
        if not plan.kept:
            raise refusal(plan, needs, time.time())
        last: MaestroError = Unimplemented("no backend can count tokens")
        for backend in [ranked.choice.backend for ranked in plan.kept]:
            chat.model = backend.model
            stub = ChatServiceStub(self._mesh.backends.channel(backend.address))
            try:
                return await stub.CountTokens(request, metadata=outgoing_metadata(), timeout=context.time_remaining())
            except grpc.aio.AioRpcError as error:
                last = from_rpc_error(error)
                if not (last.failover or isinstance(last, Unimplemented)):
                    raise last from None
        if not isinstance(last, Unimplemented):
            raise last
        model = plan.kept[0].choice.backend.message.model
        return CountTokensResponse(
            input_tokens=max(1, needs.input_tokens), estimated=True, provider=model.provider, model=model.name
        )


async def _admit(ticket: Ticket, context: Any) -> None:
    """Takes what the limits of the caller allow, and tells what is left of them behind the answer."""
    try:
        await ticket.take()
    finally:
        context.set_trailing_metadata(openai_headers(ticket))
