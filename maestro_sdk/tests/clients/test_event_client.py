"""The client of readers of events: it goes on where it was, and raises what trying again does not heal."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from maestro.event.v1.event_pb2 import (
    SUBSCRIPTION_NOTICE_KIND_GAP,
    SUBSCRIPTION_NOTICE_KIND_READY,
    Event,
    SubscribeRequest,
    SubscribeResponse,
    SubscriptionNotice,
)
from maestro.event.v1.event_pb2_grpc import EventServiceServicer
from maestro_sdk import EventClient
from maestro_sdk.errors import (
    InvalidRequest,
    MaestroError,
    NoBackend,
    PermissionDenied,
    TenantConcurrency,
    Unauthenticated,
    UpstreamError,
)
from maestro_sdk.testing.servers import serve

Say = SubscribeResponse | MaestroError


class Scripted(EventServiceServicer):
    """Answers each subscription by the next script, which ends as it says, or cleanly."""

    def __init__(self, *scripts: list[Say]) -> None:
        self.scripts = list(scripts)
        self.requests: list[SubscribeRequest] = []

    async def Subscribe(  # noqa: N802 - the contract's name
        self, request: SubscribeRequest, context: Any
    ) -> AsyncIterator[SubscribeResponse]:
        self.requests.append(request)
        for said in self.scripts.pop(0):
            if isinstance(said, MaestroError):
                raise said
            yield said


def ready(sequence: int) -> SubscribeResponse:
    return SubscribeResponse(notice=SubscriptionNotice(kind=SUBSCRIPTION_NOTICE_KIND_READY, sequence=sequence))


def events(*sequences: int) -> SubscribeResponse:
    return SubscribeResponse(events=[Event(id=f"e{number}", sequence=number) for number in sequences])


async def follow(servicer: Scripted, count: int, **fields: Any) -> list[int]:
    """The sequences of the first events."""
    found: list[int] = []
    async with serve(servicer) as address, EventClient(address, key="") as client:
        following = client.follow(**fields)
        async for event in following:
            found.append(event.sequence)
            if len(found) == count:
                await following.aclose()
                return found
    raise AssertionError("it ended")


@pytest.mark.parametrize(
    "end", [UpstreamError("drain"), TenantConcurrency("too slow"), NoBackend("no NATS"), None], ids=str
)
async def test_it_goes_on_behind_what_it_has(end: MaestroError | None) -> None:
    servicer = Scripted(
        [ready(4), events(5, 6), *([end] if end is not None else [])], [ready(9), events(7, 8)], [ready(9), events(9)]
    )
    told: list[int] = []
    found = await follow(servicer, 5, kinds=["request.*"], job="j", tenant="_mesh", on_ready=told.append)
    assert (found, told) == ([5, 6, 7, 8, 9], [4, 9, 9])
    assert not servicer.requests[0].HasField("after_sequence")
    assert [request.after_sequence for request in servicer.requests[1:]] == [6, 8]
    assert {(*request.kinds, request.job_id, request.tenant) for request in servicer.requests} == {
        ("request.*", "j", "_mesh")
    }


async def test_what_comes_before_its_first_event_is_not_missed() -> None:
    servicer = Scripted([ready(4), UpstreamError("drain")], [ready(5), events(5)])
    assert await follow(servicer, 1) == [5]
    assert servicer.requests[1].after_sequence == 4


async def test_a_gap_is_told() -> None:
    gap = SubscribeResponse(notice=SubscriptionNotice(kind=SUBSCRIPTION_NOTICE_KIND_GAP, sequence=7))
    told: list[int] = []
    assert await follow(Scripted([ready(9), gap, events(8, 9)]), 2, after=0, on_gap=told.append) == [8, 9]
    assert told == [7]


@pytest.mark.parametrize("make", [Unauthenticated, PermissionDenied, InvalidRequest])
async def test_what_trying_again_does_not_heal_is_raised(make: Callable[[str], MaestroError]) -> None:
    servicer = Scripted([ready(1), events(2), make("no")])
    with pytest.raises(MaestroError) as caught:
        await follow(servicer, 2)
    assert type(caught.value) is make
    assert len(servicer.requests) == 1
