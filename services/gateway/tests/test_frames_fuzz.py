"""Whatever a client sends on a WebSocket, or asks of the events, is answered or refused with its place."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from maestro_gateway.events.query import read_parameters
from maestro_sdk.errors import InvalidRequest
from maestro_sdk.testing.scripted import ScriptedProvider

from .conftest import Start, question
from .spoiling import spoil, spoil_bytes

FRAMES: list[Any] = [
    {"type": "chat", "id": "c1", "request": question("hello", model="default", max_tokens=9)},
    {"type": "cancel", "id": "c1"},
    {"type": "ping"},
]


async def test_every_spoiled_frame_is_answered_and_the_socket_goes_on(start: Start) -> None:
    provider = ScriptedProvider()
    gateway = await start(provider)
    kinds: Counter[str] = Counter()
    sent = 0
    async with asyncio.timeout(50), gateway.socket() as socket:
        for frame in FRAMES:
            for data in (*(json.dumps(spoiled).encode() for _, spoiled in spoil(frame)), *spoil_bytes(frame)):
                sent += 1
                await socket.send_bytes(data)
                # The refusal of this one comes when everything before it was taken.
                await socket.send_json({"type": "chat", "id": f"mark {sent}", "request": 7})
                while (answer := await socket.receive_json()).get("id") != f"mark {sent}":
                    kinds[answer["type"]] += 1
                    if answer["type"] == "error":
                        assert answer["error"]["reason"] in {"INVALID_REQUEST", "NOT_FOUND", "CANCELLED"}, (
                            data,
                            answer,
                        )
        assert not socket.closed
    assert sent > 250
    # Nothing that was wrong was asked of the provider: what it got was good, though not what was meant.
    assert kinds["error"] > sent / 2
    assert len(provider.requests) < sent / 2


_NAMES = st.sampled_from(("kinds", "job", "after", "tenant", "access_token")) | st.text(max_size=8)
_VALUES = st.sampled_from(("request.*", "job.completed", "0", "-1", "9" * 30, "x,,y", "\x00", "é" * 200)) | st.text(
    max_size=30
)


@given(st.lists(st.tuples(_NAMES, _VALUES), max_size=4), st.sampled_from(("", "7")) | st.text(max_size=30))
def test_any_query_of_events_is_read_or_refused_with_its_place(items: list[tuple[str, str]], last: str) -> None:
    try:
        found, refused = read_parameters(items, last), None
    except InvalidRequest as error:
        found, refused = None, error
    assert refused is None or all(each.message for each in refused.violations)
    assert found is None or found.after is None or found.after >= 0


def test_a_good_query_is_read() -> None:
    found = read_parameters([("kinds", "request.*,job.completed"), ("after", "7")])
    assert (found.kinds, found.after) == (("request.*", "job.completed"), 7)
    with pytest.raises(InvalidRequest):
        read_parameters([("after", "x")])
