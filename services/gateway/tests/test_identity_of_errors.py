"""An adapter's error at every door: who it is, whether to come back and when, before any content and after some."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import grpc
import pytest

from maestro_sdk.errors import (
    ContentPolicy,
    ContextTooLong,
    Internal,
    InvalidRequest,
    MaestroError,
    NotFound,
    OutputInvalid,
    Overloaded,
    ProviderAuth,
    ProviderQuota,
    RateLimited,
    StreamBroken,
    Timeout,
    TooLarge,
    UnsupportedParameter,
    UpstreamError,
    from_rpc_error,
)
from maestro_sdk.testing.scripted import Fault, ScriptedProvider, answer

from .conftest import KEY, Gateway, Start, metadata, question
from .test_grpc import request
from .test_rest import frames
from .test_websocket import chat, until_over

FACTS = {"upstream_status": "418", "upstream_code": "short_and_stout", "request_id": "req_of_the_provider"}
CLASSES: list[type[MaestroError]] = [
    *(InvalidRequest, ContextTooLong, UnsupportedParameter, NotFound, TooLarge, ContentPolicy, OutputInvalid),
    *(ProviderAuth, RateLimited, ProviderQuota, Overloaded, UpstreamError, Timeout, StreamBroken, Internal),
]


@dataclass(frozen=True)
class Told:
    """An error as a caller got it; `status` is that of HTTP, None where the answer had begun."""

    reason: str
    retryable: bool
    retry_after: float | None
    facts: dict[str, str]
    status: int | None = None
    header: str | None = None


def of(error: dict[str, Any], status: int | None = None, header: str | None = None) -> Told:
    assert status is None or error["code"] == status
    facts = {name: error["metadata"][name] for name in FACTS}
    return Told(error["reason"], error["retryable"], error.get("retry_after"), facts, status, header)


async def rest(gateway: Gateway) -> Told:
    reply = await gateway.post(question())
    return of(reply.json["error"], reply.status, reply.headers.get("retry-after"))


async def events(gateway: Gateway) -> Told:
    reply = await gateway.post(question(stream=True))
    if reply.status != 200:
        return of(reply.json["error"], reply.status, reply.headers.get("retry-after"))
    kinds = [kind for kind, _ in frames(reply.data)]
    assert (kinds[-1], kinds.count("error"), "finish" in kinds, b"[DONE]" in reply.data) == ("error", 1, False, False)
    return of(frames(reply.data)[-1][1]["error"])


async def socket(gateway: Gateway) -> Told:
    async with gateway.socket() as opened:
        await opened.send_json(chat("c1"))
        found = (await until_over(opened, "c1"))["c1"]
    assert [frame["type"] for frame in found].count("error") == 1
    return of(found[-1]["error"])


async def unary(gateway: Gateway) -> Told:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await gateway.chats.Chat(request(), metadata=metadata(KEY))
    return from_status(caught.value)


async def streamed(gateway: Gateway) -> Told:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        async for _ in gateway.chats.StreamChat(request(), metadata=metadata(KEY)):
            pass
    return from_status(caught.value)


def from_status(failed: grpc.aio.AioRpcError) -> Told:
    error = from_rpc_error(failed)
    facts = {name: error.metadata[name] for name in FACTS}
    return Told(error.reason, error.retryable, error.retry_after, facts)


DOORS: list[Callable[[Gateway], Awaitable[Told]]] = [rest, events, socket, unary, streamed]


@pytest.mark.parametrize("kind", CLASSES)
@pytest.mark.parametrize("fault", [Fault.ERROR_BEFORE_CONTENT, Fault.ERROR_AFTER_CONTENT])
async def test_an_error_is_the_same_at_every_door(start: Start, kind: type[MaestroError], fault: Fault) -> None:
    for retry_after in (None, 7.2):
        error = kind("the provider says no", retry_after=retry_after, metadata=dict(FACTS))
        provider = ScriptedProvider(answer("Hello", " there"), fault=fault, error=error)
        gateway = await start(provider, max_attempts=1)
        for door in DOORS:
            gateway.source.local.breaker("adapter-p0:p0/model").succeed(0.0)
            async with asyncio.timeout(10):
                told = await door(gateway)
            where = f"{kind.__name__} at {door.__name__}"
            # What the caller has seen the beginning of can't be begun again.
            cut = fault is Fault.ERROR_AFTER_CONTENT and door in (events, socket, streamed)
            assert (told.reason, told.facts) == (kind.reason, FACTS), where
            assert told.retryable == (error.retryable and not cut), where
            assert told.retry_after == (None if retry_after is None else pytest.approx(retry_after, abs=0.01)), where
            if told.status is not None:
                assert told.status == kind.http_status, where
                assert told.header == (None if retry_after is None else str(math.ceil(retry_after))), where
