"""Remarks of providers as Structs: all of them arrive, or the answer is refused."""

from __future__ import annotations

from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict

from maestro.llm.v1.chat_pb2 import ChatEvent, StreamChatResponse
from maestro_sdk.adapter.facts import MAX_DEPTH, to_struct
from maestro_sdk.errors import StreamBroken


def nest(depth: int, kind: type = dict) -> Any:
    value: Any = kind()
    for _ in range(depth - 1):
        value = {"a": value} if kind is dict else [value]
    return value


@pytest.mark.parametrize("kind", [dict, list])
def test_the_deepest_arrives(kind: type) -> None:
    facts = {"a": nest(MAX_DEPTH - 1, kind), "b": [1, None, "x", {"c": True}]}
    event = ChatEvent()
    event.finish.provider_metadata["p"].CopyFrom(to_struct(facts))
    sent = StreamChatResponse(events=[event]).SerializeToString()
    arrived = StreamChatResponse.FromString(sent).events[0].finish.provider_metadata["p"]
    assert MessageToDict(arrived) == facts


@pytest.mark.parametrize("depth", [MAX_DEPTH, 40, 1000, 100_000])
@pytest.mark.parametrize("kind", [dict, list])
def test_what_would_not_arrive_is_refused(depth: int, kind: type) -> None:
    with pytest.raises(StreamBroken, match="nested"):
        to_struct({"a": nest(depth, kind)})
