"""One status per call whatever happens: an error arrives as it was raised."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import grpc
import pytest
from google.rpc import error_details_pb2, status_pb2

from maestro.llm.v1.error_pb2 import ErrorReason
from maestro_sdk import errors
from maestro_sdk.errors import InvalidRequest, MaestroError, RateLimited, Violation

from .servicers import DELTA, REQUEST, Chats, ChatStub, failure, served


def every_error() -> list[MaestroError]:
    return [
        cls(
            f"{reason} happened",
            retry_after=1.25,
            violations=[Violation("messages[0].role", "is wrong"), Violation("stop", "too long")],
            metadata={"provider": "p", "upstream_status": "418"},
        )
        for reason, cls in errors.BY_REASON.items()
    ]


def facts(error: MaestroError) -> tuple[Any, ...]:
    verdicts = (error.retryable, error.failover, error.counts_against_health)
    return (type(error), error.message, error.retry_after, error.violations, error.metadata, verdicts)


def test_every_reason_of_the_contract_has_an_error() -> None:
    names = {value.name.removeprefix("ERROR_REASON_") for value in ErrorReason.DESCRIPTOR.values} - {"UNSPECIFIED"}
    assert names == set(errors.BY_REASON)


@pytest.mark.parametrize("error", every_error(), ids=lambda error: error.reason)
async def test_an_error_arrives_as_it_was_raised(error: MaestroError) -> None:
    chats = Chats()

    def fail(context: Any) -> None:
        raise error

    async def fail_midway(context: Any) -> None:
        await context.write(DELTA)
        await context.write(DELTA)
        raise error

    chats.unary, chats.stream = fail, fail_midway
    async with served(chats) as (channel, _):
        stub = ChatStub(channel)
        call = stub.Chat(REQUEST)
        assert facts(await failure(call)) == facts(error)
        assert await call.code() == error.code

        stream = stub.StreamChat(REQUEST)
        assert [await stream.read(), await stream.read()] == [DELTA, DELTA]
        assert facts(await failure(stream.read())) == facts(error)


async def test_a_status_has_the_standard_details() -> None:
    chats = Chats()

    def fail(context: Any) -> None:
        context.set_trailing_metadata((("x-kept", "yes"),))
        raise RateLimited("later", retry_after=2.5, violations=[Violation("a", "b")])

    chats.unary = fail
    async with served(chats) as (channel, _):
        call = ChatStub(channel).Chat(REQUEST)
        await failure(call)
        trailing: dict[str, Any] = dict(await call.trailing_metadata())
    assert (trailing["x-kept"], trailing["retry-after"]) == ("yes", "3")
    status = status_pb2.Status.FromString(trailing["grpc-status-details-bin"])
    assert (status.code, status.message) == (8, "later")
    kinds: dict[str, Any] = {
        kind.DESCRIPTOR.full_name: kind
        for kind in (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo, error_details_pb2.BadRequest)
    }
    details = {detail.TypeName(): kinds[detail.TypeName()].FromString(detail.value) for detail in status.details}
    assert details["google.rpc.ErrorInfo"].reason == "RATE_LIMITED"
    assert details["google.rpc.RetryInfo"].retry_delay.ToMilliseconds() == 2500
    assert details["google.rpc.BadRequest"].field_violations[0].field == "a"


async def test_an_unexpected_error_is_logged_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    chats = Chats()

    def fail(context: Any) -> None:
        raise ValueError("the password is swordfish")

    chats.unary = fail
    async with served(chats) as (channel, _):
        metadata = (("x-request-id", "req_abc"),)
        error = await failure(ChatStub(channel).Chat(REQUEST, metadata=metadata))
    assert isinstance(error, errors.Internal)
    assert error.message == "internal error; the log of the service tells more under req_abc"
    assert "swordfish" in caplog.text
    assert [record.levelno for record in caplog.records if record.name.startswith("maestro")] == [logging.ERROR]


async def test_an_error_inside_a_task_group_keeps_its_meaning() -> None:
    chats = Chats()

    async def fail(context: Any) -> None:
        async def limited() -> None:
            raise RateLimited("later", retry_after=3)

        async with asyncio.TaskGroup() as group:
            group.create_task(limited())
            group.create_task(asyncio.sleep(60))

    chats.unary = fail
    async with served(chats) as (channel, _):
        error = await failure(ChatStub(channel).Chat(REQUEST))
    assert (type(error), error.retry_after) == (RateLimited, 3)


async def test_the_error_of_a_call_further_on_is_passed_on() -> None:
    behind, front = Chats(), Chats()

    def fail(context: Any) -> None:
        raise RateLimited("later", retry_after=3, metadata={"provider": "p"})

    behind.unary = fail
    async with served(behind) as (inner, _), served(front) as (outer, _):
        front.unary = lambda context: forward(inner)
        error = await failure(ChatStub(outer).Chat(REQUEST))
    assert (type(error), error.retry_after, error.metadata) == (RateLimited, 3, {"provider": "p"})


async def forward(channel: grpc.aio.Channel) -> None:
    await ChatStub(channel).Chat(REQUEST)


async def test_a_huge_error_still_fits_into_a_status() -> None:
    chats = Chats()

    def fail(context: Any) -> None:
        violations = [Violation("f" * 500, "äöü" * 300) for _ in range(200)]
        raise InvalidRequest("ß" * 20_000, violations=violations, metadata={f"k{i}": "v" * 999 for i in range(50)})

    chats.unary = fail
    async with served(chats) as (channel, _):
        error = await failure(ChatStub(channel).Chat(REQUEST))
    assert isinstance(error, InvalidRequest)
    assert error.message == "ß" * len(error.message)
    assert error.violations


async def test_a_handlers_own_abort_passes() -> None:
    chats = Chats()

    async def fail(context: Any) -> None:
        await context.abort(grpc.StatusCode.ALREADY_EXISTS, "twice")

    chats.unary = fail
    async with served(chats) as (channel, _):
        call = ChatStub(channel).Chat(REQUEST)
        await failure(call)
        assert (await call.code(), await call.details()) == (grpc.StatusCode.ALREADY_EXISTS, "twice")
