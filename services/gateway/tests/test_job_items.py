"""Items of jobs in the shapes of REST, of OpenAI's batches and of the contract: what is good, and what is wrong."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import orjson
import pytest
from google.protobuf.json_format import MessageToDict

from maestro.llm.v1.batch_pb2 import AnswerShape, BatchItem
from maestro_gateway.jobs.items import read_item, read_items
from maestro_gateway.json_codec.chat_request import decode_chat
from maestro_gateway.json_codec.document import parse_object
from maestro_gateway.openai.embeddings import decode_embedding
from maestro_gateway.openai.request import decode_completion
from maestro_sdk.errors import InvalidRequest, TooLarge

from .full_bodies import OPENAI
from .spoiling import spoil_bytes, tally

SAID = {"role": "user", "content": "hello"}
CHAT: dict[str, Any] = {
    "model": "p/m",
    "system": "Be brief.",
    "messages": [
        {"role": "developer", "content": "Very."},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image", "url": "https://a.b/c.png"}]},
        {"role": "assistant", "content": [{"type": "tool_call", "call_id": "c1", "name": "f", "arguments": {"a": 1}}]},
        {"role": "tool", "content": [{"type": "tool_result", "call_id": "c1", "content": "4"}]},
    ],
    "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}, "strict": True}],
    "tool_choice": "auto",
    "temperature": 0.5,
    "max_tokens": 100,
    "stop": ["a"],
    "seed": 7,
    "response_format": {"type": "json_schema", "schema": {"type": "object"}, "name": "n"},
    "reasoning": {"effort": "low"},
    "logprobs": {"top": 2},
    "cache": {"points": [{"system": True}], "ttl": "5m"},
    "routing": {"persona": "p", "required": ["vision"], "max_cost_usd": "0.05"},
    "metadata": {"team": "maps"},
    "provider_options": {"openai": {"a": [1]}},
}
VECTORS: dict[str, Any] = {
    "input": ["a", [1, 2]],
    "model": "p/e",
    "dimensions": 8,
    "encoding_format": "base64",
    "purpose": "similarity",
    "truncate": True,
    "metadata": {"team": "maps"},
    "user": "u",
}
COMPLETION = {name: value for name, value in OPENAI.items() if name != "stream"}
PLACE = "items[3]"


def line(url: str, body: Any) -> dict[str, Any]:
    return {"custom_id": "a-1", "method": "POST", "url": url, "body": body}


SHAPES: dict[str, dict[str, Any]] = {
    "a chat": {"item_id": "a", "chat": CHAT},
    "embeddings": {"item_id": "a", "embeddings": VECTORS},
    "a completion": line("/v1/chat/completions", COMPLETION),
    "embeddings of a batch": line("/v1/embeddings", VECTORS),
}


def test_the_same_body_is_the_same_request():
    chat, vectors, completion, batched = [read_item(item, PLACE) for item in SHAPES.values()]
    assert chat.chat == decode_chat(orjson.dumps(CHAT)).request
    assert vectors.embed == batched.embed == decode_embedding(orjson.dumps(VECTORS)).request
    assert completion.chat == decode_completion(orjson.dumps(COMPLETION)).request
    assert (vectors.base64_vectors, batched.base64_vectors, chat.base64_vectors) == (True, True, False)
    assert {chat.answer_shape, vectors.answer_shape} == {AnswerShape.ANSWER_SHAPE_MAESTRO}
    assert {completion.answer_shape, batched.answer_shape} == {AnswerShape.ANSWER_SHAPE_OPENAI}
    assert (chat.item_id, completion.item_id) == ("a", "a-1")
    assert read_item({"embed": VECTORS}, PLACE).embed == vectors.embed


def test_what_an_openai_body_says_beyond_is_told_in_its_answer():
    item = read_item(line("/v1/chat/completions", {"messages": [{**SAID, "name": "ann"}], "top_k": 1}), PLACE)
    assert [each.field for each in item.warnings] == ["messages[0].name", "top_k"]
    item = read_item(line("/v1/embeddings", {"input": "a", "shout": 1}), PLACE)
    assert [(each.code, each.field) for each in item.warnings] == [("unknown_field", "shout")]


@pytest.mark.parametrize("own_names", [True, False])
def test_protobufs_own_json_is_read_as_ever(own_names: bool):
    chat, vectors = [read_item(SHAPES[name], PLACE) for name in ("a chat", "embeddings")]
    for item in (chat, vectors):
        bare = BatchItem(item_id=item.item_id)
        bare.MergeFrom(BatchItem(chat=item.chat) if item.HasField("chat") else BatchItem(embed=item.embed))
        assert read_item(MessageToDict(bare, preserving_proto_field_name=own_names), PLACE) == bare


@pytest.mark.parametrize("name", SHAPES)
def test_every_wrong_value_has_its_place(name: str):
    places: set[str] = set()

    def read(raw: bytes) -> BatchItem:
        try:
            return read_item(parse_object(raw), PLACE)
        except InvalidRequest as error:
            places.update(found.field for found in error.violations)
            raise

    tried, refused, faults = tally(read, SHAPES[name])
    assert faults == []
    assert refused > tried / 2 > 150
    assert {place[: len(PLACE)] for place in places if place != "body"} == {PLACE}
    assert any(place.endswith("no_such") for place in places)


@pytest.mark.parametrize(
    ("value", "field"),
    [
        pytest.param(5, "", id="a number"),
        pytest.param({}, ".request", id="nothing"),
        pytest.param({"chat": {"messages": [SAID]}, "chats": 1}, ".chats", id="an unknown field"),
        pytest.param({"chat": {"mesages": [SAID]}}, ".chat.mesages", id="one of a chat"),
        pytest.param({"chat": {"messages": [{**SAID, "nam": 1}]}}, ".chat.messages[0].nam", id="one of a message"),
        pytest.param({"chat": {"messages": [{"role": "user"}]}}, ".chat.messages[0].parts", id="no content"),
        pytest.param({"embeddings": {"input": "a", "inputt": 1}}, ".embeddings.inputt", id="one of embeddings"),
        pytest.param(line("/v1/chat/completions", {"messages": [SAID], "n": 2}), ".body.n", id="of a line"),
        pytest.param({**line("/v1/embeddings", {"input": "a"}), "id": "x"}, ".id", id="beside a line"),
        pytest.param({"url": "/v1/embeddings"}, ".custom_id", id="a line without a name"),
        pytest.param({"chat": {"messages": [{"parts": [{"txt": {}}]}]}}, ".chat.messages[0].parts[0].txt", id="a part"),
        pytest.param({"item_id": "x" * 65, "chat": {"messages": [SAID]}}, ".item_id", id="a long name"),
    ],
)
def test_what_is_wrong_is_named(value: Any, field: str):
    with pytest.raises(InvalidRequest) as caught:
        read_item(value, PLACE)
    assert caught.value.violations[0].field == PLACE + field
    assert caught.value.message.startswith(PLACE + field)


def test_bytes_that_are_no_item_are_refused():
    for raw in spoil_bytes(SHAPES["a chat"]):
        with pytest.raises(InvalidRequest):
            read_item(parse_object(raw), PLACE)


async def test_a_list_gives_way_to_others_and_is_bounded():
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            turns += 1
            await asyncio.sleep(0)

    counting = asyncio.create_task(count())
    items = await read_items(json.loads(json.dumps([{"chat": {"messages": [SAID]}}] * 500)), 500)
    counting.cancel()
    assert len(items) == 500
    assert turns >= 9
    with pytest.raises(TooLarge) as caught:
        await read_items([5] * 501, 500)
    assert caught.value.violations[0].field == "items"
    with pytest.raises(InvalidRequest) as wrong:
        await read_items({"0": {}}, 500)
    assert wrong.value.violations[0].field == "items"
