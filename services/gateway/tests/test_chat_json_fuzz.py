"""Any JSON, and any bytes, as a chat request: a valid request comes of it, or an error with a path."""

from __future__ import annotations

import json
from typing import Any

import orjson
from hypothesis import example, given, settings
from hypothesis import strategies as st

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_gateway.json_codec.chat_request import decode_chat
from maestro_sdk.errors import InvalidRequest

USER = {"role": "user", "content": "hello"}


def decode(**fields: Any) -> ChatRequest:
    return decode_chat(orjson.dumps({"messages": [USER], **fields})).request


_FIELDS = [field.name for field in ChatRequest.DESCRIPTOR.fields]
_NAMES = (
    "stream role content parts type text data url mime_type call_id name arguments index origin provider "
    "provider_state mode names schema points message top"
)
_KEYS = st.sampled_from([*_FIELDS, *_NAMES.split()])
_WORDS = st.sampled_from(
    ["user", "system", "text", "image", "tool_call", "tool_result", "opaque", "json_schema", "auto"]
)
_VALUES = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | _WORDS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS | st.text(max_size=4), inner, max_size=6),
    max_leaves=25,
)
_PART = st.dictionaries(_KEYS, _VALUES, max_size=6)
_BODIES = st.dictionaries(_KEYS, _VALUES, max_size=6) | st.fixed_dictionaries(
    {
        "messages": st.lists(
            st.fixed_dictionaries({"role": _WORDS, "content": st.text() | st.lists(_PART, max_size=3)}), max_size=3
        )
    }
)


@settings(max_examples=400, deadline=None)
@given(_BODIES)
@example({"messages": [{"role": ["system"], "content": [{"type": {}}]}]})
@example({"provider_options": {"": {"": None}}, "messages": [USER]})
def test_any_json_is_a_valid_request_or_an_invalid_request(body: dict[str, Any]) -> None:
    found = outcome(json.dumps(body).encode())
    if isinstance(found, InvalidRequest):
        assert found.violations
        assert all(violation.field for violation in found.violations)
    else:
        assert ChatRequest.FromString(found.SerializeToString()) == found


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(lambda text: ('{"messages":' + text).encode(errors="replace")))
def test_any_bytes_are_refused_or_read(raw: bytes) -> None:
    found = outcome(raw)
    assert isinstance(found, ChatRequest) or found.violations


def outcome(raw: bytes) -> ChatRequest | InvalidRequest:
    try:
        return decode_chat(raw).request
    except InvalidRequest as error:
        return error


def test_the_deepest_options_reach_the_other_side() -> None:
    def nested(depth: int) -> Any:
        value: Any = {}
        for level in range(depth - 1):
            value = {"k": value} if level % 2 else {"k": [value]}
        return value

    deepest = 0
    for depth in range(1, 40):
        try:
            request = decode(provider_options={"p": nested(depth)})
        except InvalidRequest:
            break
        assert ChatRequest.FromString(request.SerializeToString()) == request
        deepest = depth
    assert deepest >= 12
