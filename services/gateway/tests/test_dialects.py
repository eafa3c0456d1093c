"""Wrong bodies through the gateway itself: no fault of ours, each dialect's own shape, and no call of a provider."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from itertools import islice
from typing import Any

import pytest
from google.api.httpbody_pb2 import HttpBody

from maestro_sdk.testing.scripted import ScriptedProvider

from .conftest import KEY, Gateway, Start, metadata
from .full_bodies import ANTHROPIC, OPENAI
from .spoiling import spoil, spoil_bytes

_AT_ONCE = 16


async def send(gateway: Gateway, dialect: str, raw: bytes, key: str = KEY) -> tuple[int, Any, str]:
    """The status, and the document or, of a stream, its last frame."""
    create = gateway.openai.CreateChatCompletion if dialect == "openai" else gateway.anthropic.CreateMessage
    call: Any = create(HttpBody(data=raw), metadata=metadata(key), timeout=10)
    data = b"".join([message.data async for message in call])
    headers = {name: str(value) for name, value in await call.initial_metadata()}
    status = int(headers.get("x-http-status", "200"))
    return status, json.loads(data) if status != 200 else None, headers.get("x-request-id", "")


def errors_in(dialect: str, document: Any) -> Sequence[str]:
    """What an error lacks to be one of its dialect."""
    error = document.get("error", {})
    wanted = {"message", "type"} | ({"param", "code"} if dialect == "openai" else set[str]())
    lacks = [name for name in wanted if name not in error or (name in ("message", "type") and not error[name])]
    if dialect == "anthropic":
        lacks += [name for name in ("type", "request_id") if not document.get(name)]
    return lacks


@pytest.mark.parametrize(("dialect", "body"), [("openai", OPENAI), ("anthropic", ANTHROPIC)])
async def test_wrong_bodies_are_no_fault_of_ours(start: Start, dialect: str, body: dict[str, Any]):
    provider = ScriptedProvider()
    gateway = await start(provider)
    asked = {**body, "model": "p0/model"}
    raws = [json.dumps(spoiled).encode() for _, spoiled in islice(spoil(asked), 0, None, 11)]
    raws += [*islice(spoil_bytes(asked), 14), json.dumps({**asked, "user": "x" * 200_000}).encode()]
    room = asyncio.Semaphore(_AT_ONCE)

    async def one(raw: bytes) -> tuple[int, Any, str]:
        async with room:
            return await send(gateway, dialect, raw)

    answers = await asyncio.gather(*(one(raw) for raw in raws))
    assert len(answers) > 250
    assert [status for status, _, _ in answers if status >= 500] == []
    faults = [lacks for status, document, _ in answers if status >= 400 and (lacks := errors_in(dialect, document))]
    assert faults == []
    assert all(request_id for status, _, request_id in answers if status >= 400)
    # What the model can't do (it sees no pictures) is refused as well: nothing of all this reached it.
    assert len([status for status, _, _ in answers if status == 200]) == len(provider.requests)
    assert len([status for status, _, _ in answers if status >= 400]) > 200
    assert answers[-1][0] == 413


@pytest.mark.parametrize("dialect", ["openai", "anthropic"])
@pytest.mark.parametrize("key", ["", "mk-wrong"])
async def test_without_a_key_the_body_is_not_looked_at(start: Start, dialect: str, key: str):
    provider = ScriptedProvider()
    gateway = await start(provider)
    status, document, _ = await send(gateway, dialect, b"{no json", key)
    assert status == 401
    assert document["error"]["type"] == "authentication_error"
    assert errors_in(dialect, document) == []
    assert provider.requests == []
