"""No field that an official client can send is passed over in silence: it is obeyed, refused with its path, or told."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from anthropic.types.beta import message_count_tokens_params as beta_count
from anthropic.types.beta import message_create_params as beta_create
from anthropic.types.message_count_tokens_params import MessageCountTokensParams
from anthropic.types.message_create_params import MessageCreateParamsBase
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from openai.types.embedding_create_params import EmbeddingCreateParams

from maestro.llm.v1.chat_pb2 import CachePoint, CacheTtl
from maestro.llm.v1.message_pb2 import ImageDetail
from maestro_gateway.anthropic.request import decode_message
from maestro_gateway.openai.embeddings import decode_embedding
from maestro_gateway.openai.request import decode_completion
from maestro_sdk.errors import InvalidRequest

from .full_bodies import ANTHROPIC, OPENAI
from .sdk_fields import pairs

USER: Any = {"role": "user", "content": "Hello."}
MARK = {"mode": "explicit"}
HARMLESS = {
    # What is done anyway.
    *("n", "modalities", "encoding_format", "stream_options", "stream_options.include_obfuscation"),
    *("tools.type", "metadata", "output_config"),
    # What clients send back of an answer, and what says nothing new.
    "messages.content.citations",
}


def openai_body(body: Any) -> Any:
    """The body around a sample, with what it needs to be good."""
    messages: list[Any] = []
    for message in body.get("messages", ()):
        if message["role"] == "assistant":
            message.setdefault("content", "Hi.")
        if message["role"] == "tool":
            call = {"id": message["tool_call_id"], "type": "function", "function": {"name": "f", "arguments": "{}"}}
            messages += [USER, {"role": "assistant", "tool_calls": [call]}]
        for call in message.get("tool_calls", ()):
            call.get("function", {}).update(name="f", arguments="{}")
        for part in message["content"] if isinstance(message["content"], list) else ():
            file = part.get("file", {})
            if "file_data" in file:
                file["file_data"] = "data:application/pdf;base64,eA=="
            elif part["type"] == "file":
                file.setdefault("file_id", "f")
        messages.append(message)
    for tool in body.get("tools", ()):
        tool.get("function", {})["name"] = "f"
    if "json_schema" in body.get("response_format", {}):
        form = body["response_format"]["json_schema"]
        form["name"] = "f"
        form.setdefault("schema", {"type": "object"})
    if "top_logprobs" in body:
        body["logprobs"] = True
    return {**body, "messages": [*messages, USER]}


def anthropic_body(body: Any) -> Any:
    messages: list[Any] = []
    for message in body["messages"]:
        content = message.setdefault("content", "Hi.")
        blocks = content if isinstance(content, list) else []
        for block in blocks:
            if block["type"] == "tool_use":
                block["name"] = "f"
            if block["type"] == "tool_result":
                call = {"type": "tool_use", "id": block["tool_use_id"], "name": "f", "input": {}}
                messages += [USER, {"role": "assistant", "content": [call]}]
        messages.append(message)
    for tool in body.get("tools", ()):
        if tool.get("type") in (None, "custom"):
            tool["name"] = "f"
    return {**body, "messages": [*messages, USER]}


def counted_body(raw: bytes) -> Any:
    return decode_message(raw, counted=True)


def embedding_body(body: Any) -> Any:
    return body


@pytest.mark.parametrize(
    ("params", "complete", "decode", "least"),
    [
        (CompletionCreateParamsBase, openai_body, decode_completion, 100),
        (EmbeddingCreateParams, embedding_body, decode_embedding, 3),
        (MessageCreateParamsBase, anthropic_body, decode_message, 250),
        (MessageCountTokensParams, anthropic_body, counted_body, 250),
        (beta_create.MessageCreateParamsBase, anthropic_body, decode_message, 250),
        (beta_count.MessageCountTokensParams, anthropic_body, counted_body, 250),
    ],
)
def test_every_field_of_the_clients_is_obeyed_refused_or_told(
    params: Any, complete: Callable[[Any], Any], decode: Callable[[bytes], Any], least: int
):
    passed_over: set[str] = set()
    tried = 0

    nowhere: list[InvalidRequest] = []

    def read(body: Any) -> Any:
        try:
            return decode(json.dumps(complete(copy.deepcopy(body))).encode())
        except InvalidRequest as error:
            if not error.violations or not all(each.field for each in error.violations):
                nowhere.append(error)
            return None

    for name, body, without in pairs(params):
        tried += 1
        asked = read(body)
        if asked is not None and not asked.unknown and asked == read(without):
            passed_over.add(name)
    assert passed_over <= HARMLESS, sorted(passed_over - HARMLESS)
    assert nowhere == []
    assert tried > least


def test_so_many_unknown_fields_are_told_as_anybody_reads():
    much = {f"field_{number}": number for number in range(20_000)}
    for decode, body in ((decode_completion, OPENAI), (decode_message, ANTHROPIC)):
        assert len(decode(json.dumps({**body, **much}).encode()).unknown) == 32
    assert len(decode_embedding(json.dumps({"input": "a", **much}).encode()).unknown) == 32


def test_marks_of_the_prompt_cache_are_points_behind_their_messages():
    def text(words: str, **more: Any) -> list[Any]:
        return [{"type": "text", "text": words, "prompt_cache_breakpoint": {**MARK, **more}}]

    messages = [
        {"role": "system", "content": text("Be brief.", ttl="30m")},
        {"role": "developer", "content": text("Very.")},
        {"role": "user", "content": [*text("One."), *text("Two.")]},
        {"role": "assistant", "content": "Three."},
        {"role": "user", "content": text("Four.", ttl="12h")},
    ]
    asked = decode_completion(json.dumps({"messages": messages}).encode())
    cache = asked.request.cache
    assert list(cache.points) == [CachePoint(system=True), CachePoint(message=0), CachePoint(message=2)]
    assert cache.ttl == CacheTtl.CACHE_TTL_1H
    assert asked.unknown == ("messages[4].content[0].prompt_cache_breakpoint.ttl",)
    long = [message for turn in range(40) for message in ({"role": "user", "content": text(str(turn))}, messages[3])]
    points = decode_completion(json.dumps({"messages": long}).encode()).request.cache.points
    assert [point.message for point in points] == list(range(48, 80, 2))
    with pytest.raises(InvalidRequest, match=r"prompt_cache_breakpoint\.mode"):
        decode_completion(json.dumps({"messages": [{"role": "user", "content": text("x", mode="x")}]}).encode())


def test_a_mark_inside_the_result_of_a_tool_is_a_point_behind_it():
    inner = {"type": "text", "text": "21 degrees", "cache_control": {"type": "ephemeral", "ttl": "1h"}}
    call = {"type": "tool_use", "id": "t", "name": "f", "input": {}}
    body = {
        "model": "m",
        "max_tokens": 1,
        "messages": [
            USER,
            {"role": "assistant", "content": [call]},
            {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t", "content": [inner]}]},
        ],
    }
    cache = decode_message(json.dumps(body).encode()).request.cache
    assert list(cache.points) == [CachePoint(message=2)]
    assert cache.ttl == CacheTtl.CACHE_TTL_1H


def test_the_finest_detail_is_taken():
    image = {"url": "https://example.com/a.png", "detail": "original"}
    body = {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": image}]}]}
    [message] = decode_completion(json.dumps(body).encode()).request.messages
    assert message.parts[0].image.detail == ImageDetail.IMAGE_DETAIL_HIGH
