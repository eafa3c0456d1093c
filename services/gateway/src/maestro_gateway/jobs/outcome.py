"""What comes of an item: one run of it, what to do after an error, and what earlier runs came to."""

from __future__ import annotations

import base64
import random
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import orjson

from maestro.job.v1 import job_pb2 as pb
from maestro.llm.v1.batch_pb2 import AnswerShape, BatchItem, BatchItemResult
from maestro.llm.v1.chat_pb2 import ChatResponse
from maestro.llm.v1.embedding_pb2 import EmbedResponse
from maestro.llm.v1.error_pb2 import ErrorDetail, ErrorReason
from maestro.usage.v1.usage_pb2 import UsageTotals
from maestro_gateway.dialect import foreign_to
from maestro_gateway.jobs.record import JobRecord
from maestro_gateway.jobs.totals import add, totals_of
from maestro_gateway.openai.request import OWN
from maestro_sdk.errors import (
    BY_REASON,
    Cancelled,
    Conflict,
    Internal,
    MaestroError,
    NoBackend,
    RateLimited,
    TenantConcurrency,
    TenantRateLimited,
    Timeout,
    to_detail,
)
from maestro_sdk.mesh.spend import sum_costs, sum_usages
from maestro_sdk.mesh.trail import Trail
from maestro_sdk.service.interceptors import hushed

SUCCEEDED = pb.JobItemState.JOB_ITEM_STATE_SUCCEEDED
FAILED = pb.JobItemState.JOB_ITEM_STATE_FAILED
CANCELLED = pb.JobItemState.JOB_ITEM_STATE_CANCELLED
_FIRST_WAIT, _LONGEST_WAIT = 1.0, 120.0
_LONGEST_WAIT_FOR_ROOM = 15.0


@dataclass(frozen=True, slots=True)
class Again:
    """The item waits `delay` seconds and goes on. `counted` says that a run of it is used up."""

    delay: float
    counted: bool


def next_step(
    error: MaestroError,
    *,
    reached: bool,
    runs: int,
    max_runs: int,
    waits: int = 0,
    dice: Callable[[], float] = random.random,
) -> Again | None:
    """What follows an error of run number `runs`; None when the item has failed.

    It `reached` a backend, or did not; `waits` are those so far that used up no run.
    """
    # Each refusal is told and recorded: who waits for long asks more seldom.
    patience = max(error.retry_after or 0.0, min(_FIRST_WAIT * 2**waits, _LONGEST_WAIT_FOR_ROOM))
    match error:
        case TenantRateLimited() if error.retry_after is None:
            return None  # more than is ever allowed
        case TenantRateLimited() | TenantConcurrency():
            return Again(patience, counted=False)
        case NoBackend() if not reached:
            return Again(patience, counted=False)
        case RateLimited() if not reached and error.retryable:
            return Again(patience, counted=False)  # the mesh's own limit at a provider
        case Conflict() if reached and runs < max_runs:
            # What stands under the key of this run can't be taken up. The next run has another key.
            return Again(_FIRST_WAIT, counted=True)
        case _ if error.retryable and runs < max_runs:
            wait = min(_FIRST_WAIT * 2 ** (runs - 1), _LONGEST_WAIT) * (0.75 + dice() / 2)
            return Again(max(error.retry_after or 0.0, wait), counted=True)
        case _:
            return None


def keeps_place(error: MaestroError) -> bool:
    """Whether an item that waits after an error keeps its place.

    What throttles a tenant throttles each of its items: the next one in that place would only be refused as well.
    """
    return isinstance(error, TenantRateLimited | TenantConcurrency)


@dataclass(slots=True)
class Note:
    """What earlier runs of an item came to. `handed` is the number of times that it had been handed out by then.

    `waits` are those since its last run; until `due`, in Unix time, the item lies aside.
    """

    runs: int = 0
    handed: int = 0
    waits: int = 0
    due: float = 0.0
    spent: BatchItemResult = field(default_factory=BatchItemResult)
    totals: UsageTotals = field(default_factory=UsageTotals)

    def count(self, trail: Trail | None, *, failed: bool) -> None:
        """Adds what a run used."""
        add(self.totals, totals_of(trail, failed=failed))
        if trail is None or (usage := trail.usage) is None:
            return
        first = not self.spent.HasField("usage")
        earlier = None if first else self.spent.usage
        total = sum_usages((earlier, usage))
        known = (
            trail.cost if first else sum_costs((self.spent.cost if self.spent.HasField("cost") else None, trail.cost))
        )
        if total is not None:
            self.spent.usage.CopyFrom(total)
        self.spent.ClearField("cost")
        if known is not None:
            self.spent.cost.CopyFrom(known)

    def encode(self) -> bytes:
        """As it is stored."""
        return orjson.dumps(
            {
                "runs": self.runs,
                "handed": self.handed,
                "waits": self.waits,
                "due": self.due,
                "spent": base64.b64encode(self.spent.SerializeToString()).decode(),
                "totals": totals_text(self.totals),
            }
        )

    @classmethod
    def decode(cls, data: bytes) -> Note:
        """What was stored."""
        found: Any = orjson.loads(data)
        spent = BatchItemResult.FromString(base64.b64decode(found["spent"]))
        totals, due = totals_from(found["totals"]), found.get("due", 0.0)
        return cls(found["runs"], found["handed"], found["waits"], due, spent, totals)


def result_of(
    index: int, item: BatchItem, note: Note, state: pb.JobItemState.ValueType, error: MaestroError | None
) -> pb.JobResult:
    """The result of an item that ended now, still without its answer."""
    result = pb.JobResult(index=index, state=state, runs=note.runs, item=note.spent)
    result.item.item_id = item.item_id
    result.answer_shape, result.base64_vectors = item.answer_shape, item.base64_vectors
    if error is not None:
        result.item.error.CopyFrom(detail_of(error))
    result.end_time.FromNanoseconds(time.time_ns())
    return result


def put_answer(result: pb.JobResult, item: BatchItem, answer: ChatResponse | EmbedResponse, route: str) -> None:
    """Puts its answer into the result of an item; `route` is empty when the model was named directly."""
    result.route = route
    match answer:
        case ChatResponse():
            result.item.chat.CopyFrom(answer)
            if not result.item.HasField("cost") and answer.HasField("cost") and not result.item.HasField("usage"):
                result.item.cost.CopyFrom(answer.cost)
            options, told = item.chat.provider_options, result.item.chat.warnings
        case EmbedResponse():
            result.item.embed.CopyFrom(answer)
            options, told = item.embed.provider_options, result.item.embed.warnings
    told.extend(item.warnings)
    if item.answer_shape == AnswerShape.ANSWER_SHAPE_OPENAI and OWN[0] in options:
        # What only OpenAI understands came in its body, and went nowhere else.
        for name in foreign_to(answer.provider, OWN, tuple(options[OWN[0]])):
            told.add(code="unsupported_parameter", message=f"{name} means nothing to {answer.provider}", field=name)


def error_from(detail: ErrorDetail) -> MaestroError:
    """The error that a result holds; `Internal` where its reason is not known here, as the contract has it."""
    known = detail.reason in ErrorReason.values()
    name = ErrorReason.Name(detail.reason).removeprefix("ERROR_REASON_") if known else ""
    return BY_REASON.get(name, Internal)(
        detail.message,
        retryable=detail.retryable,
        failover=detail.failover,
        retry_after=detail.retry_after.ToNanoseconds() / 1e9 if detail.HasField("retry_after") else None,
        metadata=dict(detail.metadata),
    )


def detail_of(error: MaestroError) -> ErrorDetail:
    """An error as a result holds it."""
    return to_detail(hushed(error))


def incomplete(error: LookupError) -> MaestroError:
    """The error of an item of which JetStream lost a piece."""
    return Internal(f"the item can't be read any more: {error}; start it again")


def cancelled() -> MaestroError:
    """The error of an item whose job was cancelled."""
    return Cancelled("the job was cancelled")


def out_of_time(record: JobRecord) -> MaestroError:
    """The error of items that were not reached in time."""
    span = record.deadline - record.job.create_time.ToNanoseconds() / 1e9
    return Timeout(f"the job's timeout of {span:g} s is over", counts_against_health=False)


def totals_text(totals: UsageTotals) -> str:
    """Sums as the header of a result holds them."""
    return base64.b64encode(totals.SerializeToString()).decode()


def totals_from(text: str) -> UsageTotals:
    """Sums that a header held."""
    return UsageTotals.FromString(base64.b64decode(text))
