"""`maestro.llm.v1.ChatService` for programs with generated stubs: the contract in, the contract out."""

from __future__ import annotations

import time
from contextlib import aclosing
from typing import Any

import grpc

from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse, CountTokensRequest, CountTokensResponse
from maestro.llm.v1.chat_pb2_grpc import ChatServiceServicer, ChatServiceStub
from maestro_gateway.budgets import CHEAPER, sent_cheaper
from maestro_gateway.chats import Chat
from maestro_gateway.files.attachments import MEDIA, attach
from maestro_gateway.identity import permit
from maestro_gateway.limits import current_ticket, openai_headers
from maestro_gateway.mesh import Mesh, calling, deadline_of
from maestro_gateway.resume.service import send_pieces
from maestro_sdk.errors import MaestroError, Unimplemented, from_rpc_error
from maestro_sdk.mesh.breach import passed_on
from maestro_sdk.mesh.needs import needs_of
from maestro_sdk.mesh.plan import refusal
from maestro_sdk.service.validation import VALIDATED
from maestro_sdk.tracing import outgoing_metadata


class ChatService(ChatServiceServicer):
    """Answers from the mesh."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    async def Chat(self, request: ChatRequest, context: Any) -> ChatResponse:
        try:
            return await Chat(self._mesh, request, deadline_of(context)).complete()
        finally:
            tell_limits(context)

    async def StreamChat(self, request: ChatRequest, context: Any) -> None:
        try:
            if request.resumable and (streams := self._mesh.streams) is not None:
                reading = await streams.begin(request, calling(), deadline_of(context))
                await send_pieces(reading, context)
                return
            # Writing instead of yielding: when the call is cancelled, the attempt is closed here and now.
            async with aclosing(Chat(self._mesh, request, deadline_of(context)).stream()) as batches:
                async for batch in batches:
                    await context.write(batch)
        finally:
            tell_limits(context)

    async def CountTokens(self, request: CountTokensRequest, context: Any) -> CountTokensResponse:
        """Asks the backends of the plan in order; when none of them can count, the answer is marked as an estimate."""
        chat = request.request
        permit(chat)
        needs = needs_of(chat, calling().tenant)
        if self._mesh.files is not None and needs.required & MEDIA:
            chat = await attach(self._mesh.files, calling().tenant, chat)
            request = CountTokensRequest(request=chat)
            chat = request.request
        plan = self._mesh.plan(needs)
        if not plan.kept:
            raise refusal(plan, needs, time.time())
        last: MaestroError = Unimplemented("no backend can count tokens")
        for backend in [ranked.choice.backend for ranked in plan.kept]:
            chat.model = backend.model
            stub = ChatServiceStub(self._mesh.backends.channel(backend.address))
            try:
                return await stub.CountTokens(
                    request, metadata=(*outgoing_metadata(), VALIDATED), timeout=context.time_remaining()
                )
            except grpc.aio.AioRpcError as error:
                last = passed_on(from_rpc_error(error))
                if not (last.failover or isinstance(last, Unimplemented)):
                    raise last from None
        if not isinstance(last, Unimplemented):
            raise last
        model = plan.kept[0].choice.backend.message.model
        return CountTokensResponse(
            input_tokens=max(1, needs.input_tokens), estimated=True, provider=model.provider, model=model.name
        )


def tell_limits(context: Any) -> None:
    """Tells behind the answer what is left of the caller's limits, where there are any, and of a cheaper route."""
    ticket = current_ticket()
    told = openai_headers(ticket) if ticket is not None else []
    if sent_cheaper():
        told.append(CHEAPER)
    if told:
        context.set_trailing_metadata(told)
