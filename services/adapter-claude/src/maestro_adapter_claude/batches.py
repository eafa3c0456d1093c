"""Message batches: many requests at half the price, answered within 24 hours."""

from __future__ import annotations

import re
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Collection, Generator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from typing import IO, TYPE_CHECKING, Any, cast

import orjson
from google.protobuf.struct_pb2 import Struct

from maestro.llm.v1.batch_pb2 import (
    Batch,
    BatchCounts,
    BatchHeader,
    BatchItem,
    BatchItemResult,
    BatchState,
    ListBatchesRequest,
    ListBatchesResponse,
)
from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.error_pb2 import ErrorDetail
from maestro_adapter_claude.models import PROVIDER
from maestro_adapter_claude.sdk import Sdk
from maestro_adapter_claude.translate import Outgoing, to_error, to_events
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import (
    Cancelled,
    Conflict,
    InvalidRequest,
    MaestroError,
    NotFound,
    StreamBroken,
    Timeout,
    TooLarge,
    UnsupportedParameter,
    UpstreamError,
    Violation,
)

if TYPE_CHECKING:
    from anthropic.types.messages import MessageBatch

PATH = "/v1/messages/batches"
WINDOW = 24 * 3600
"""Seconds within which the provider ends every batch."""
MAX_ITEMS = 100_000
MAX_BYTES = 256 * 2**20
MAX_WARNINGS = 100
"""How many warnings the answer to a new batch tells; the results of a batch have none."""

_IN_MEMORY = 4 * 2**20
_PIECE = 2**18
_PAGE = 100
_LONGEST_ID = 64
_DATED = re.compile(r"-\d{8}$")
_ESCAPED = re.compile(r"_x(2e|5f)")

Translate = Callable[[ChatRequest], Outgoing]


class Batches:
    """Starts batches, follows them and reads what came of them."""

    def __init__(self, sdk: Sdk, translate: Translate, models: Collection[str]) -> None:
        """`translate` makes a request's body; `models` are the known names, without the provider."""
        self._sdk = sdk
        self._translate = translate
        self._models = models

    async def create(self, header: BatchHeader, items: AsyncIterator[BatchItem]) -> Batch:
        """Starts a batch. What the items' translation could not carry stands in `provider_metadata`.

        Raises what a chat with the same request would, with `items[n].chat.` before its paths.
        """
        betas = _check_header(header)
        with tempfile.SpooledTemporaryFile(max_size=_IN_MEMORY) as body:
            warnings = await self._write(items, body, betas)
            size = body.tell()
            body.seek(0)
            # The text as it was translated, not the SDK's own reading of it: JSON from callers keeps its digits.
            headers = {"content-type": "application/json", "content-length": str(size)}
            if betas:
                headers["anthropic-beta"] = ",".join(dict.fromkeys(betas))
            async with self._sdk.open() as client, aclosing(_pieces(body)) as pieces:
                started: MessageBatch = await client.post(
                    PATH, content=pieces, cast_to=_message_batch(), options={"headers": headers}
                )
        batch = to_batch(started)
        # The provider keeps neither; whoever starts a batch hears what it started.
        batch.model = header.model.partition("/")[2]
        if warnings:
            facts = Struct()
            facts.update({"warnings": warnings})
            batch.provider_metadata[PROVIDER].CopyFrom(facts)
        return batch

    async def get(self, batch_id: str) -> Batch:
        """A batch."""
        return to_batch(await self._retrieve(batch_id))

    async def list(self, request: ListBatchesRequest) -> ListBatchesResponse:
        """Batches, newest first."""
        cursor: Any = {"after_id": request.page_token} if request.page_token else {}
        async with self._sdk.open() as client:
            page = await client.messages.batches.list(limit=request.page_size or _PAGE, **cursor)
        token = page.last_id or "" if page.has_more else ""
        return ListBatchesResponse(batches=[to_batch(found) for found in page.data], next_page_token=token)

    async def cancel(self, batch_id: str) -> Batch:
        """Asks to stop a batch; one that is over stays as it is."""
        found = await self._retrieve(batch_id)
        if found.processing_status == "in_progress":
            try:
                async with self._sdk.open() as client:
                    found = await client.messages.batches.cancel(batch_id)
            except InvalidRequest:
                # It may have ended between the two calls.
                found = await self._retrieve(batch_id)
                if found.processing_status == "in_progress":
                    raise
        return to_batch(found)

    async def results(self, batch_id: str) -> AsyncIterator[Sequence[BatchItemResult]]:
        """The results, as many at once as one read brought."""
        found = await self._retrieve(batch_id)
        if found.processing_status != "ended":
            raise Conflict(f"batch {batch_id} is {found.processing_status}: there are no results yet")
        if not found.results_url:
            raise NotFound(f"the results of batch {batch_id} are gone: the provider has archived it")
        async with (
            self._sdk.open() as client,
            client.messages.batches.with_streaming_response.results(batch_id) as response,
        ):
            rest = b""
            async for piece in response.iter_bytes():
                # Not `iter_lines`: it takes U+2028 within a text for an end of the line.
                *lines, rest = (rest + piece).split(b"\n")
                if some := [to_result(line, self._models) for line in lines if line.strip()]:
                    yield some
            if rest.strip():
                yield [to_result(rest, self._models)]

    async def _retrieve(self, batch_id: str) -> MessageBatch:
        async with self._sdk.open() as client:
            return await client.messages.batches.retrieve(batch_id)

    async def _write(
        self, items: AsyncIterator[BatchItem], body: IO[bytes], betas: list[str]
    ) -> list[Mapping[str, str]]:
        """Writes the body that starts the batch; returns the warnings, and adds to `betas` what the items need."""
        warnings: list[Mapping[str, str]] = []
        body.write(b'{"requests":[')
        number = 0
        async for item in items:
            place = f"items[{number}]"
            if number == MAX_ITEMS:
                raise TooLarge(f"the provider takes {MAX_ITEMS} items in a batch")
            with _within(place):
                outgoing = self._outgoing(item)
                name = to_custom_id(item.item_id)
            body.write(b"," if number else b"")
            body.write(orjson.dumps({"custom_id": name, "params": outgoing.body}))
            if body.tell() > MAX_BYTES:
                raise TooLarge(f"the provider takes {MAX_BYTES} bytes in a batch; {place} is beyond them")
            betas += outgoing.betas
            warnings += [
                {"item_id": item.item_id, "code": found.code, "field": found.field, "message": found.message}
                for found in outgoing.warnings[: MAX_WARNINGS - len(warnings)]
            ]
            number += 1
        body.write(b"]}")
        return warnings

    def _outgoing(self, item: BatchItem) -> Outgoing:
        match item.WhichOneof("request"):
            case "chat":
                with _within("chat"):
                    outgoing = self._translate(item.chat)
                    if outgoing.tool_names:
                        # Results come days later, maybe to another process, and nobody could turn the names back.
                        for tool in item.chat.tools:
                            if tool.name in outgoing.tool_names.values():
                                message = f"{tool.name!r} has a dot, which a batch's answers would not bring back"
                                raise _unsupported("tools", message)
                    return outgoing
            case "embed":
                raise _unsupported("embed", "Anthropic has no embeddings")
            case _:
                raise InvalidRequest.at("request", "is neither chat nor embed")


def to_batch(found: MessageBatch) -> Batch:
    """A batch of the provider as the contract has it."""
    counts = found.request_counts
    total = counts.processing + counts.succeeded + counts.errored + counts.canceled + counts.expired
    batch = Batch(
        batch_id=found.id,
        provider=PROVIDER,
        state=_state(found),
        raw_state=found.processing_status,
        counts=BatchCounts(
            total=total,
            pending=counts.processing,
            succeeded=counts.succeeded,
            failed=counts.errored,
            cancelled=counts.canceled,
            expired=counts.expired,
        ),
    )
    batch.create_time.FromDatetime(found.created_at)
    if found.ended_at is not None:
        batch.end_time.FromDatetime(found.ended_at)
    else:
        batch.expire_time.FromDatetime(found.expires_at)
    return batch


def _state(found: MessageBatch) -> BatchState.ValueType:
    counts = found.request_counts
    match found.processing_status:
        case "in_progress":
            return BatchState.BATCH_STATE_RUNNING
        case "canceling":
            return BatchState.BATCH_STATE_CANCELLING
        case "ended" if counts.canceled:
            return BatchState.BATCH_STATE_CANCELLED
        case "ended" if counts.expired:
            return BatchState.BATCH_STATE_EXPIRED
        case "ended":
            return BatchState.BATCH_STATE_COMPLETED
        case _:
            # The SDK lets words through that are newer than itself; `raw_state` tells them.
            return BatchState.BATCH_STATE_UNSPECIFIED


def to_result(line: bytes, models: Collection[str]) -> BatchItemResult:
    """One line of the results. An answer that can't be read is its item's error, not that of the others."""
    try:
        document: Any = orjson.loads(line)
        name, result = str(document["custom_id"]), document["result"]
    except (LookupError, TypeError, ValueError) as error:
        raise StreamBroken(f"a line of the results can't be read: {type(error).__name__}: {error}") from error
    found = BatchItemResult(item_id=from_custom_id(name))
    try:
        match result.get("type"):
            case "succeeded":
                message = result["message"]
                outgoing = Outgoing({}, model_name(str(message.get("model", "")), models))
                found.chat.CopyFrom(fold(to_events(orjson.dumps(message), outgoing)))
            case "errored":
                error = to_error(200, orjson.dumps(result["error"]), {})
                # An item has no status of its own.
                error.metadata.pop("upstream_status", None)
                raise error
            case "canceled":
                raise Cancelled("the batch was cancelled before this item was answered")
            case "expired":
                raise Timeout("the provider did not reach this item within 24 hours", counts_against_health=False)
            case other:
                raise UpstreamError(f"the provider tells a result of the unknown kind {other!r}")
    except MaestroError as error:
        error.metadata.setdefault("provider", PROVIDER)
        found.error.CopyFrom(_detail(error))
    return found


def model_name(name: str, models: Collection[str]) -> str:
    """The contract's name of a model: answers may tell a dated one (`claude-haiku-4-5-20251001`)."""
    plain = _DATED.sub("", name)
    return plain if name not in models and plain in models else name


def to_custom_id(item_id: str) -> str:
    """The name of an item on the wire, which takes no dots: `.` becomes `_x2e`, and `_x` itself `_x5fx`."""
    name = item_id.replace("_x", "_x5fx").replace(".", "_x2e")
    if len(name) > _LONGEST_ID:
        raise InvalidRequest.at("item_id", f"{item_id!r} is too long for the provider: dots count as four characters")
    return name


def from_custom_id(name: str) -> str:
    """The name of an item as it was given."""
    return _ESCAPED.sub(lambda found: "." if found.group(1) == "2e" else "_", name)


def _check_header(header: BatchHeader) -> list[str]:
    """The betas that the batch asks for. Raises `UnsupportedParameter` for what the provider can't be told."""
    if header.HasField("completion_window") and header.completion_window.ToTimedelta().total_seconds() != WINDOW:
        raise _unsupported("header.completion_window", "the provider works for 24 hours on a batch, no other time")
    options = header.provider_options.get(PROVIDER)
    if options is None:
        return []
    for name in options.fields:
        if name != "betas":
            path = f"header.provider_options.{PROVIDER}.{name}"
            raise _unsupported(path, "is nothing of a batch; the parameters of an answer belong to its item")
    return [str(beta) for beta in cast("Sequence[Any]", options["betas"])]


async def _pieces(body: IO[bytes]) -> AsyncGenerator[bytes]:
    while piece := body.read(_PIECE):
        yield piece


def _message_batch() -> type[MessageBatch]:
    from anthropic.types.messages import MessageBatch  # loaded by the client, which is there by now

    return MessageBatch


@contextmanager
def _within(place: str) -> Generator[None]:
    """Sets the place before the paths of an error."""
    try:
        yield
    except InvalidRequest as error:
        violations = [Violation(f"{place}.{found.field}", found.message) for found in error.violations]
        message = "; ".join(f"{found.field}: {found.message}" for found in violations) or f"{place}: {error.message}"
        raise type(error)(message, violations=violations, metadata=error.metadata) from error


def _unsupported(field: str, why: str) -> UnsupportedParameter:
    return UnsupportedParameter(f"{field}: {why}", violations=[Violation(field, why)])


def _detail(error: MaestroError) -> ErrorDetail:
    detail = ErrorDetail(
        reason=error.reason_value,
        message=error.message,
        retryable=error.retryable,
        failover=error.failover,
        http_status=error.http_status,
        metadata=error.metadata,
    )
    if error.retry_after is not None:
        detail.retry_after.FromNanoseconds(round(error.retry_after * 1e9))
    return detail
