"""The JSON of chat requests: what is taken, what is refused and how the error reads."""

from __future__ import annotations

import base64
from typing import Any

import orjson
import pytest

from maestro.llm.v1.chat_pb2 import CacheTtl, ChatRequest, ReasoningEffort, ToolChoiceMode
from maestro.llm.v1.message_pb2 import ImageDetail, Role
from maestro.llm.v1.model_pb2 import Feature
from maestro_gateway.json_codec.answer import part_data
from maestro_gateway.json_codec.chat_request import decode_chat
from maestro_sdk.errors import InvalidRequest

USER = {"role": "user", "content": "hello"}


def decode(**fields: Any) -> ChatRequest:
    return decode_chat(orjson.dumps({"messages": [USER], **fields})).request


def refusal(body: Any) -> InvalidRequest:
    with pytest.raises(InvalidRequest) as caught:
        decode_chat(body if isinstance(body, bytes) else orjson.dumps(body))
    return caught.value


def test_every_scalar() -> None:
    request = decode(
        model="local/offline",
        system="be brief",
        temperature=0,
        top_p=0.5,
        max_tokens=8.0,
        seed=-(2**63),
        stop="END",
        strict=True,
        metadata={"team": "blue"},
    )
    assert (request.model, request.system, request.strict) == ("local/offline", "be brief", True)
    assert request.HasField("temperature")
    assert (request.temperature, request.top_p, request.max_tokens, request.seed) == (0.0, 0.5, 8, -(2**63))
    assert list(request.stop) == ["END"]
    assert dict(request.metadata) == {"team": "blue"}
    assert list(decode(stop=["a", "b"]).stop) == ["a", "b"]


def test_null_means_unset() -> None:
    request = decode(temperature=None, tools=None, system=None, stop=None, response_format=None, tool_choice=None)
    assert request == decode()


def test_messages() -> None:
    body = {
        "messages": [
            {"role": "system", "content": "first"},
            USER,
            {
                "role": "assistant",
                "parts": [{"type": "text", "text": "", "provider_state": "AQI=", "origin": {"provider": "p"}}],
            },
            {"role": "developer", "content": [{"type": "text", "text": "second"}, {"type": "text", "text": "third"}]},
            {"role": "ROLE_USER", "content": [{"type": "text", "text": "again"}]},
        ],
        "system": "zeroth",
    }
    request = decode_chat(orjson.dumps(body)).request
    assert request.system == "zeroth\n\nfirst\n\nsecond\n\nthird"
    assert [message.role for message in request.messages] == [Role.ROLE_USER, Role.ROLE_ASSISTANT, Role.ROLE_USER]
    assert request.messages[1].parts[0].provider_state == b"\x01\x02"
    assert request.messages[1].parts[0].HasField("text")


def test_parts() -> None:
    parts = [
        {"type": "image", "url": "https://example.com/a.png", "detail": "low"},
        {"type": "image", "data": base64.b64encode(b"\xff\xfe\xfd").decode(), "mime_type": "image/png"},
        {"type": "image", "url": "data:image/gif;base64,R0lG"},
        {"type": "document", "data": "_-8", "mime_type": "application/pdf", "title": "t"},
        {"type": "audio", "file_id": "f1"},
        {"type": "tool_call", "call_id": "c", "name": "f", "arguments": {"b": 1, "a": [1.0, None]}},
        {"type": "tool_call", "call_id": "d", "name": "f", "arguments": '{"b": 1}'},
        {"type": "reasoning", "text": "hm", "summary": True},
        {"type": "refusal", "text": ""},
        {"type": "opaque", "json": {"k": 1}},
        {"type": "opaque", "json": '{ "k": 1 }'},
    ]
    found = decode(messages=[{"role": "user", "content": parts}]).messages[0].parts
    assert (found[0].image.url, found[0].image.detail) == ("https://example.com/a.png", ImageDetail.IMAGE_DETAIL_LOW)
    assert found[1].image.data == b"\xff\xfe\xfd"
    assert (found[2].image.data, found[2].image.mime_type) == (b"GIF", "image/gif")
    assert found[3].document.data == b"\xff\xef"
    assert found[4].audio.file_id == "f1"
    assert found[5].tool_call.arguments_json == '{"b":1,"a":[1.0,null]}'
    assert found[6].tool_call.arguments_json == '{"b": 1}'
    assert found[7].reasoning.summary
    assert found[8].WhichOneof("kind") == "refusal"
    assert [part.opaque.json for part in found[9:]] == ['{"k":1}', '{ "k": 1 }']


def test_tool_results() -> None:
    content = [
        {"type": "tool_result", "call_id": "c", "content": "42"},
        {"type": "tool_result", "call_id": "d", "content": [{"type": "text", "text": "no"}], "is_error": True},
    ]
    found = decode(messages=[{"role": "tool", "content": content}]).messages[0].parts
    assert found[0].tool_result.parts[0].text.text == "42"
    assert found[1].tool_result.is_error


def test_the_parts_of_an_answer_come_back_unchanged() -> None:
    parts = [
        {
            "type": "reasoning",
            "text": "hm",
            "origin": {"provider": "anthropic", "api": "messages"},
            "provider_state": "c2ln",
        },
        {"type": "text", "text": "see", "citations": [{"title": "t", "url": "u", "start": 0}]},
        {"type": "tool_call", "call_id": "c", "name": "f", "arguments": {"x": 1}},
        {"type": "image", "data": "AQID", "mime_type": "image/png", "detail": "high"},
        {"type": "tool_result", "call_id": "c", "content": [{"type": "text", "text": "1"}]},
        {"type": "opaque", "json": '{"a": 1}', "origin": {"provider": "p"}},
    ]
    first = decode(messages=[{"role": "assistant", "content": parts}]).messages[0]
    again = decode(messages=[{"role": "assistant", "parts": [part_data(part) for part in first.parts]}]).messages[0]
    assert again == first


def test_tools_keep_order_and_digits() -> None:
    schema = '{"type":"object","z":1,"a":9007199254740993,"minimum":1.50}'
    request = decode_chat(
        b'{"messages":[{"role":"user","content":"x"}],"tools":[{"name":"f","input_schema":%b,"strict":false}]}'
        % schema.encode()
    ).request
    assert request.tools[0].input_schema == '{"type":"object","z":1,"a":9007199254740993,"minimum":1.5}'
    assert request.tools[0].HasField("strict")


@pytest.mark.parametrize(
    ("choice", "mode", "names"),
    [
        ("auto", ToolChoiceMode.TOOL_CHOICE_MODE_AUTO, []),
        ("none", ToolChoiceMode.TOOL_CHOICE_MODE_NONE, []),
        ("required", ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED, []),
        ({"name": "f"}, ToolChoiceMode.TOOL_CHOICE_MODE_NAMED, ["f"]),
        (
            {"mode": "required", "names": ["f", "g"], "parallel": False},
            ToolChoiceMode.TOOL_CHOICE_MODE_REQUIRED,
            ["f", "g"],
        ),
    ],
)
def test_tool_choice(choice: Any, mode: Any, names: list[str]) -> None:
    found = decode(tools=[{"name": "f"}, {"name": "g"}], tool_choice=choice).tool_choice
    assert (found.mode, list(found.names)) == (mode, names)


def test_the_other_shapes() -> None:
    request = decode(
        response_format={
            "type": "json_schema",
            "name": "n",
            "schema": {"type": "object"},
            "strict": True,
            "max_repairs": 0,
        },
        reasoning={"effort": "high", "budget_tokens": 512},
        logprobs=True,
        cache={"points": [{"tools": True}, {"message": 0}], "ttl": "5m"},
        routing={"required": ["vision"], "prefer_providers": ["a"], "deterministic": True, "max_cost_usd": "0.05"},
        provider_options={"anthropic": {"list": [1, {"deep": None}], "n": 1.5, "b": True}},
    )
    form = request.response_format.json_schema
    assert (form.schema, form.strict, form.max_repairs) == ('{"type":"object"}', True, 0)
    assert form.HasField("max_repairs")
    assert request.reasoning.effort == ReasoningEffort.REASONING_EFFORT_HIGH
    assert request.HasField("logprobs")
    assert request.cache.ttl == CacheTtl.CACHE_TTL_5M
    assert [point.WhichOneof("after") for point in request.cache.points] == ["tools", "message"]
    assert list(request.routing.required) == [Feature.FEATURE_VISION]
    assert request.provider_options["anthropic"]["n"] == 1.5
    assert decode(response_format={"type": "json"}).response_format.HasField("json")
    assert decode(logprobs={"top": 3}).logprobs.top == 3
    assert not decode(logprobs=False).HasField("logprobs")


def test_stream_is_no_field_of_the_contract() -> None:
    assert decode_chat(orjson.dumps({"messages": [USER], "stream": True})).stream
    assert not decode_chat(orjson.dumps({"messages": [USER]})).stream


def part(**fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "system", "content": "s"}, {"role": "user", "content": [fields]}]}


@pytest.mark.parametrize(
    ("body", "field", "message"),
    [
        ({"messages": "x"}, "messages", "must be a list, not a string"),
        ({"messages": []}, "messages", "at least 1 item"),
        ({}, "messages", "at least 1 item"),
        ({"messages": ["x"]}, "messages[0]", "must be an object"),
        ({"messages": [{"content": "x"}]}, "messages[0].role", "is required"),
        ({"messages": [{"role": "user"}]}, "messages[0].parts", "at least 1 item"),
        ({"messages": [{"role": 1, "content": "x"}]}, "messages[0].role", "one of user, assistant, tool"),
        ({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", "a string or a list"),
        ({"messages": [{"role": "user", "content": "x", "parts": []}]}, "messages[0].parts", "either content or parts"),
        ({"messages": [{"role": "system", "content": 7}, USER]}, "messages[0].content", "a string or a list"),
        (part(text="x"), "messages[1].content[0].type", "must be one of text, image"),
        (part(type=["text"]), "messages[1].content[0].type", "must be one of text, image"),
        (part(type="text"), "messages[1].content[0].text", "is required"),
        (part(type="text", text=7), "messages[1].content[0].text", "must be a string, not a number"),
        (part(type="image"), "messages[1].content[0]", "give one of data, url, file_id"),
        (part(type="image", url=""), "messages[1].content[0].url", "at least 1 char"),
        (part(type="image", url="u", data="AQ=="), "messages[1].content[0]", "only one of"),
        (part(type="image", data="AQ==", url="u"), "messages[1].content[0]", "only one of"),
        (part(type="image", data="***", mime_type="x"), "messages[1].content[0].data", "is not base64"),
        (part(type="image", data="AQ=="), "messages[1].content[0].mime_type", "is required with data"),
        (part(type="image", url="data:image/png,abc"), "messages[1].content[0].url", "data: URL"),
        (part(type="image", url="u", detail="best"), "messages[1].content[0].detail", "one of auto, low, high"),
        (part(type="tool_call", name="f"), "messages[1].content[0].call_id", "at least 1 char"),
        (
            part(type="tool_call", call_id="c", name="f", arguments="{"),
            "messages[1].content[0].arguments",
            "JSON object",
        ),
        (part(type="tool_call", call_id="c", name="f", arguments=[]), "messages[1].content[0].arguments", "an object"),
        (
            part(type="tool_result", call_id="c", content=[{"type": "tool_result"}]),
            "messages[1].content[0].content[0].type",
            "can't",
        ),
        (part(type="text", text="x", provider_state="="), "messages[1].content[0].provider_state", "is not base64"),
        (
            part(type="text", text="x", origin={"provider": ""}),
            "messages[1].content[0].origin.provider",
            "at least 1 char",
        ),
        ({"messages": [USER], "temperature": True}, "temperature", "must be a number, not true or false"),
        ({"messages": [USER], "temperature": 3}, "temperature", "less than or equal to 2"),
        ({"messages": [USER], "max_tokens": True}, "max_tokens", "whole number, not true or false"),
        ({"messages": [USER], "max_tokens": 1.5}, "max_tokens", "without a fraction"),
        ({"messages": [USER], "max_tokens": 2**31}, "max_tokens", "between -2147483648 and 2147483647"),
        ({"messages": [USER], "seed": 2**63}, "seed", "between"),
        ({"messages": [USER], "stream": 1}, "stream", "true or false"),
        ({"messages": [USER], "stop": [1]}, "stop[0]", "must be a string"),
        ({"messages": [USER], "stop": [""]}, "stop[0]", "at least 1 char"),
        ({"messages": [USER], "tools": [{"name": "a b"}]}, "tools[0].name", "pattern"),
        ({"messages": [USER], "tools": [{"name": "f", "input_schema": "{}"}]}, "tools[0].input_schema", "JSON Schema"),
        ({"messages": [USER], "tool_choice": "any"}, "tool_choice", "one of auto, none, required"),
        ({"messages": [USER], "tool_choice": {"mode": "named"}}, "tool_choice.names", "exactly one"),
        ({"messages": [USER], "response_format": {"type": "xml"}}, "response_format.type", "text, json, json_schema"),
        ({"messages": [USER], "response_format": {"type": "json_schema"}}, "response_format.schema", "is required"),
        (
            {"messages": [USER], "response_format": {"type": "json_schema", "schema": {}, "max_repairs": 9}},
            "response_format.max_repairs",
            "less than or equal to 5",
        ),
        ({"messages": [USER], "reasoning": {"effort": "HIGH"}}, "reasoning.effort", "one of off, minimal, low"),
        ({"messages": [USER], "routing": {"required": ["sight"]}}, "routing.required[0]", "vision"),
        ({"messages": [USER], "cache": {"points": [{}]}}, "cache.points[0]", "give one of tools, system, message"),
        ({"messages": [USER], "logprobs": 3}, "logprobs", "true, false or an object"),
        ({"messages": [USER], "metadata": {"a": 1}}, "metadata.a", "must be a string"),
        ({"messages": [USER], "provider_options": {"p": []}}, "provider_options.p", "must be an object"),
        ({"messages": [USER], "provider_options": {"p": {"n": 2**53 + 1}}}, "provider_options.p.n", "loses digits"),
        # Beyond 64 bits the parser gives floats.
        ({"messages": [USER], "provider_options": {"p": {"n": 1e30}}}, "provider_options.p.n", "loses digits"),
    ],
)
def test_a_wrong_field_is_named_by_its_path(body: Any, field: str, message: str) -> None:
    error = refusal(body)
    assert [found.field for found in error.violations] == [field]
    assert message in error.violations[0].message
    assert field in error.message


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is empty"),
        (b"  \n", "is empty"),
        (b"[]", "must be a JSON object"),
        (b'"x"', "must be a JSON object"),
        (b'{"messages":\n [}', "line 2, column 3"),
        (b'{"temperature": NaN}', "is not JSON"),
        (b'{"temperature": 1e999}', "is not JSON"),
        (b'{"system": "\xff\xfe"}', "is not JSON"),
        (b'{"system": "\\ud800"}', "is not JSON"),
        (b"\xef\xbb\xbf{}", "is not JSON"),
        (b"[" * 100_000, "is not JSON"),
        (b'{"a":' * 70 + b"1" + b"}" * 70, "more than 64 levels"),
        (b'{"a":' * 500 + b"1" + b"}" * 500, "more than 64 levels"),
        (b'{"stream":true,"stream":false}', "'stream' stands twice"),
        (b'{"stream" : true, "str\\u0065am" : false}', "'stream' stands twice"),
        (b'{"messages":[{"role":"user","content":"x","role":"tool"}]}', "'role' stands twice"),
    ],
)
def test_what_is_no_good_json(raw: bytes, message: str) -> None:
    error = refusal(raw)
    assert [found.field for found in error.violations] == ["body"]
    assert message in error.message


def test_text_that_looks_like_keys_is_no_doubled_key() -> None:
    text = '{"role": "user", "role": "user"} "a":1,"a":2'
    assert decode(messages=[{"role": "user", "content": text}]).messages[0].parts[0].text.text == text


def test_a_large_body_is_decoded() -> None:
    data = base64.b64encode(b"\x89" * 2_200_000).decode()
    request = decode(
        messages=[{"role": "user", "content": [{"type": "image", "data": data, "mime_type": "image/png"}]}]
    )
    assert len(request.messages[0].parts[0].image.data) == 2_200_000


def test_unknown_fields_are_warnings() -> None:
    body = {
        "messages": [{"role": "user", "content": [{"type": "text", "text": "x", "bold": True}], "name": "me"}],
        "max_token": 3,
        "max_completion_tokens": 3,
        "routing": {"persone": "x"},
    }
    warnings = decode_chat(orjson.dumps(body)).warnings
    assert {warning.code for warning in warnings} == {"unknown_field"}
    assert [warning.field for warning in warnings] == [
        "messages[0].content[0].bold",
        "messages[0].name",
        "max_token",
        "max_completion_tokens",
        "routing.persone",
    ]
    assert "did you mean max_tokens?" in warnings[2].message
    assert "it is max_tokens here" in warnings[3].message
    assert len(decode_chat(orjson.dumps({"messages": [USER]} | {f"x{n}": n for n in range(99)})).warnings) == 32


def test_unknown_fields_are_errors_under_strict() -> None:
    error = refusal({"messages": [USER], "strict": True, "max_token": 3, "tools": [{"name": "f", "parameters": {}}]})
    assert [found.field for found in error.violations] == ["max_token", "tools[0].parameters"]


def test_errors_never_quote_the_prompt() -> None:
    secret = "my-password-is-swordfish"
    for body in (
        {"messages": [{"role": secret, "content": "x"}]},
        {"messages": secret},
        {"messages": [USER], "temperature": secret},
        {"messages": [USER], "tool_choice": secret},
        part(type="image", data=secret + "*"),
        {"messages": [USER], "provider_options": {"p": secret}},
    ):
        assert secret not in refusal(body).message
    assert secret not in refusal(b'{"messages": "' + secret.encode() + b'" x').message
