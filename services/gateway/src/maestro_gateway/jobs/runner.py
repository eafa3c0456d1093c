"""Runs one item through the mesh, in the name of whoever made its job."""

from __future__ import annotations

import time
from dataclasses import dataclass

from maestro.llm.v1.batch_pb2 import BatchItem
from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro_gateway.account import Account
from maestro_gateway.chats import Chat
from maestro_gateway.embedding_service import embed
from maestro_gateway.identity import Caller, enter, enter_caller
from maestro_gateway.jobs.record import Creator, JobRecord
from maestro_gateway.mesh import Mesh
from maestro_sdk.adapter.standing import TAKEN
from maestro_sdk.errors import Conflict, Internal, MaestroError
from maestro_sdk.mesh.trail import Trail
from maestro_sdk.mesh.vectors import MOST_NUMBERS
from maestro_sdk.tracing import Call, enter_call, new_request_id, new_traceparent


@dataclass(slots=True)
class Run:
    """One run of an item: filled as it goes, so that a run that is stopped tells what it used."""

    answer: ChatResponse | EmbedResponse | None = None
    route: str = ""
    """The route that the answer took; empty when the model was named directly."""
    error: MaestroError | None = None
    trail: Trail | None = None
    chat: Chat | None = None
    account: Account | None = None
    key: str = ""

    @property
    def taken_over(self) -> bool:
        """Whether another gateway goes on with this run: the item seemed to be given up here."""
        return isinstance(self.error, Conflict) and self.error.metadata.get("standing") == TAKEN

    def hand_over(self, mesh: Mesh) -> None:
        """What is cancelled from now on goes on elsewhere, where it is accounted for: its call stays at the adapter."""
        mesh.backends.standing.let_stand(self.key)
        if self.chat is not None:
            self.chat.hand_over()
        if self.account is not None:
            self.account.handed_over = True

    @property
    def reached(self) -> bool:
        """Whether a backend was called."""
        return self.trail is not None and bool(self.trail.attempts)

    def see(self, account: Account) -> None:
        """Takes note of the account of a run that embeds."""
        self.account, self.trail = account, account.trail


async def run_item(mesh: Mesh, record: JobRecord, index: int, item: BatchItem, number: int, run: Run) -> None:
    """Runs an item for the `number`th time, in a task of its own; all but a cancellation is told in `run`.

    The key of its calls is that of this run: should this gateway die, whoever runs it again gets the same answer.
    """
    name = f"{record.job_id}.{index}"
    run.key = f"{name}.{number}"
    _enter(record.creator, Call(new_request_id(), record.tenant, new_traceparent(), run.key))
    deadline = time.monotonic() + record.deadline - time.time()
    try:
        match item.WhichOneof("request"):
            case "chat":
                request = item.chat
                _prepare(request, record, name)
                chat = run.chat = Chat(mesh, request, deadline, job_id=record.job_id)
                try:
                    run.answer = await chat.complete()
                    run.route = chat.route
                finally:
                    run.trail = chat.trail
            case "embed":
                request = item.embed
                _prepare(request, record, name)
                run.answer, run.route = await embed(
                    mesh, request, deadline, most=MOST_NUMBERS, job_id=record.job_id, show=run.see
                )
            case _:
                raise Internal("the item holds no request")
    except MaestroError as error:
        run.error = error


def enter_item(record: JobRecord, index: int, request: ChatRequest | EmbedRequest, number: int) -> Call:
    """Makes the `number`th run of an item the current call, in the name of whoever made its job."""
    name = f"{record.job_id}.{index}"
    call = Call(new_request_id(), record.tenant, new_traceparent(), f"{name}.{number}")
    _enter(record.creator, call)
    _prepare(request, record, name)
    return call


def _prepare(request: ChatRequest | EmbedRequest, record: JobRecord, name: str) -> None:
    """Gives a request the labels of its job, and a backend that stays the same when it is run again."""
    for label, value in record.job.metadata.items():
        if label not in request.metadata:
            request.metadata[label] = value
    if not request.routing.session_key:
        request.routing.session_key = name


def _enter(creator: Creator, call: Call) -> None:
    seen = creator.caller
    headers = {"x-envoy-external-address": seen.client_address, "user-agent": seen.user_agent}
    enter(creator.principal())
    enter_caller(Caller(headers, seen.method, seen.client_address))
    enter_call(call)
