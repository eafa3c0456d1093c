"""Requests of the contract on Converse's wire: golden conversations, and tables for what depends on the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from google.protobuf.json_format import ParseDict

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro_sdk.errors import InvalidRequest, MaestroError, UnsupportedParameter
from maestro_sdk.testing.golden import check, plain

REQUESTS = sorted(Path(__file__).with_name("golden").glob("requests/*.request.json"))
NOVA, LLAMA = "bedrock/amazon.nova-lite-v1:0", "bedrock/us.meta.llama3-3-70b-instruct-v1:0"
LARGE = "bedrock/mistral.mistral-large-2407-v1:0"
TOOL = {"name": "weather", "input_schema": '{"type":"object"}'}
OTHER = {"name": "clock", "input_schema": '{"type":"object"}'}


@pytest.mark.parametrize("path", REQUESTS, ids=lambda path: path.name.removesuffix(".request.json"))
def test_golden_request(path: Path, translate: Any) -> None:
    request = ParseDict(json.loads(path.read_text(encoding="utf-8")), ChatRequest())
    before = request.SerializeToString(deterministic=True)
    outgoing = translate(request)
    got = {"path": outgoing.path, "body": plain(outgoing.body), "warnings": plain(outgoing.warnings)}
    check(path.with_name(path.name.replace(".request.", ".wire.")), got)
    assert request.SerializeToString(deterministic=True) == before, "the request was changed"


def test_json_text_is_sent_byte_for_byte(ask: Any, translate: Any) -> None:
    schema = '{"type": "object", "z": 1.0, "a": 12345678901234567890123, "b": [ ]}'
    arguments = '{ "big": 98765432109876543210987, "float": 1.0 }'
    messages = [
        {"role": "ROLE_USER", "parts": [{"text": {"text": "hi"}}]},
        {
            "role": "ROLE_ASSISTANT",
            "parts": [{"tool_call": {"call_id": "c", "name": "t", "arguments_json": arguments}}],
        },
    ]
    form = {"json_schema": {"schema": schema}}
    request = ask(messages=messages, tools=[{"name": "t", "input_schema": schema}], response_format=form)
    body = translate(request).body
    text = orjson.dumps(body).decode()
    assert schema in text
    assert arguments in text
    assert body["outputConfig"]["textFormat"]["structure"]["jsonSchema"]["schema"] == schema


def test_unset_is_not_sent(ask: Any, translate: Any) -> None:
    assert set(translate(ask()).body) == {"messages"}


@pytest.mark.parametrize(
    ("model", "choice", "wire", "tools", "warned"),
    [
        ("sonnet", None, None, ["weather", "clock"], []),
        ("sonnet", {}, {"auto": {}}, ["weather", "clock"], []),
        ("sonnet", {"mode": "TOOL_CHOICE_MODE_REQUIRED"}, {"any": {}}, ["weather", "clock"], []),
        (
            "sonnet",
            {"mode": "TOOL_CHOICE_MODE_NAMED", "names": ["clock"]},
            {"tool": {"name": "clock"}},
            ["weather", "clock"],
            [],
        ),
        ("sonnet", {"names": ["clock"]}, {"auto": {}}, ["clock"], []),
        ("sonnet", {"parallel": False}, {"auto": {}}, ["weather", "clock"], ["tool_choice.parallel"]),
        ("sonnet", {"parallel": True}, {"auto": {}}, ["weather", "clock"], []),
        (LARGE, {"mode": "TOOL_CHOICE_MODE_NAMED", "names": ["clock"]}, {"any": {}}, ["clock"], []),
        (LLAMA, {"mode": "TOOL_CHOICE_MODE_AUTO"}, None, ["weather", "clock"], []),
        (LLAMA, {"mode": "TOOL_CHOICE_MODE_REQUIRED"}, None, ["weather", "clock"], ["tool_choice.mode"]),
        (LLAMA, {"mode": "TOOL_CHOICE_MODE_NAMED", "names": ["clock"]}, None, ["clock"], ["tool_choice.mode"]),
    ],
)
def test_tool_choice(
    ask: Any, translate: Any, model: str, choice: Any, wire: Any, tools: list[str], warned: list[str]
) -> None:
    fields: dict[str, Any] = {} if choice is None else {"tool_choice": choice}
    if model != "sonnet":
        fields["model"] = model
    outgoing = translate(ask(tools=[TOOL, OTHER], **fields))
    config = outgoing.body["toolConfig"]
    assert config.get("toolChoice") == wire
    assert [tool["toolSpec"]["name"] for tool in config["tools"]] == tools
    assert [warning.field for warning in outgoing.warnings] == warned


def test_no_calls_means_no_tools(ask: Any, translate: Any) -> None:
    outgoing = translate(ask(tools=[TOOL], tool_choice={"mode": "TOOL_CHOICE_MODE_NONE"}))
    assert "toolConfig" not in outgoing.body
    assert not outgoing.warnings


def test_models_that_cannot_stream_tools(ask: Any, translate: Any) -> None:
    assert translate(ask(model=LLAMA)).streams
    assert not translate(ask(model=LLAMA, tools=[TOOL])).streams
    assert translate(ask(tools=[TOOL])).streams


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        ("[1]", ""),
        ("{", ""),
        ('{"type":"array"}', "#/type"),
        ('{"type":"object","properties":{"a/b":{"type":"strng"}}}', "#/properties/a~1b/type"),
        ('{"type":"object","properties":[]}', "#/properties"),
        ('{"type":"object","required":"a"}', "#/required"),
        ('{"type":"object","properties":{"a":{"anyOf":[{"type":"string"},7]}}}', "#/properties/a/anyOf/1"),
        ('{"type":"object","properties":{"a":{"items":{"enum":3}}}}', "#/properties/a/items/enum"),
        ('{"type":"object","$defs":{"x":{"not":[]}}}', "#/$defs/x/not"),
    ],
)
def test_a_wrong_schema_is_named_by_its_pointer(ask: Any, translate: Any, schema: str, pointer: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        translate(ask(tools=[TOOL, {"name": "x", "input_schema": schema}]))
    assert caught.value.violations[0].field == f"tools[1].input_schema{pointer}"
    assert type(caught.value) is InvalidRequest


def test_names_and_ids_that_the_wire_refuses(ask: Any, translate: Any) -> None:
    long = "a" * 100
    messages = [
        {"role": "ROLE_USER", "parts": [{"text": {"text": "hi"}}]},
        {
            "role": "ROLE_ASSISTANT",
            "parts": [
                {"tool_call": {"call_id": "x|y", "name": "time.now"}},
                {"tool_call": {"call_id": "i" * 80, "name": long}},
                {"tool_call": {"call_id": "fine_1", "name": "gone.tool"}},
            ],
        },
        {"role": "ROLE_TOOL", "parts": [{"tool_result": {"call_id": "x|y"}}, {"tool_result": {"call_id": "i" * 80}}]},
    ]
    outgoing = translate(ask(messages=messages, tools=[{"name": "time.now"}, {"name": long}]))
    offered = [tool["toolSpec"]["name"] for tool in outgoing.body["toolConfig"]["tools"]]
    calls = [block["toolUse"] for block in outgoing.body["messages"][1]["content"]]
    results = [block["toolResult"]["toolUseId"] for block in outgoing.body["messages"][2]["content"]]
    assert [call["name"] for call in calls] == [*offered, "gone_tool"]
    assert [outgoing.tool_names[name] for name in offered] == ["time.now", long]
    assert [call["toolUseId"] for call in calls[:2]] == results
    assert calls[2]["toolUseId"] == "fine_1"
    assert all(len(name) <= 64 for name in [*offered, *results])
    outgoing = translate(ask(tools=[{"name": "a_b"}, {"name": "a.b"}]))
    first, second = (tool["toolSpec"]["name"] for tool in outgoing.body["toolConfig"]["tools"])
    assert (first, outgoing.tool_names) == ("a_b", {second: "a.b"})


@pytest.mark.parametrize(
    ("part", "path"),
    [
        ({"audio": {"data": "AAAA", "mime_type": "audio/wav"}}, "audio"),
        ({"image": {"data": "AAAA", "mime_type": "image/bmp"}}, "image.mime_type"),
        ({"image": {"url": "https://example.com/a.png"}}, "image.url"),
        ({"image": {"url": "s3://bucket/picture"}}, "image.mime_type"),
        ({"document": {"data": "AAAA", "mime_type": "application/zip"}}, "document.mime_type"),
        ({"document": {"file_id": "file_1", "mime_type": "application/pdf"}}, "document.file_id"),
        ({"tool_call": {"call_id": "c", "name": "n"}}, "tool_call"),
    ],
)
@pytest.mark.parametrize("strict", [False, True])
def test_parts_that_cannot_be_sent(ask: Any, translate: Any, part: Any, path: str, strict: bool) -> None:
    messages = [{"role": "ROLE_USER", "parts": [{"text": {"text": "hi"}}, part]}]
    with pytest.raises(UnsupportedParameter) as caught:
        translate(ask(messages=messages, strict=strict))
    assert caught.value.violations[0].field == f"messages[0].parts[1].{path}"


@pytest.mark.parametrize(
    ("model", "part", "path"),
    [
        ("bedrock/mine", {"image": {"data": "AAAA", "mime_type": "image/png"}}, "messages[0].parts[0].image"),
        (
            "bedrock/amazon.nova-micro-v1:0",
            {"document": {"data": "AAAA", "mime_type": "text/plain"}},
            "messages[0].parts[0].document",
        ),
    ],
)
def test_what_a_model_does_not_claim_is_refused(ask: Any, translate: Any, model: str, part: Any, path: str) -> None:
    with pytest.raises(UnsupportedParameter) as caught:
        translate(ask(model=model, messages=[{"role": "ROLE_USER", "parts": [part]}]))
    assert caught.value.violations[0].field == path
    with pytest.raises(UnsupportedParameter, match="tools"):
        translate(ask(model="bedrock/mine", tools=[TOOL]))


@pytest.mark.parametrize(
    ("fields", "inference", "warned"),
    [
        ({"temperature": 0.5, "top_p": 0.5}, {"temperature": 0.5}, ["top_p"]),
        ({"temperature": 1.5}, {"temperature": 1}, ["temperature"]),
        ({"max_tokens": 100000}, {"maxTokens": 64000}, ["max_tokens"]),
        ({"temperature": 0.5, "reasoning": {"budget_tokens": 2000}}, None, ["temperature"]),
        ({"model": NOVA, "temperature": 0.5, "top_p": 0.5}, {"temperature": 0.5, "topP": 0.5}, []),
        ({"model": "bedrock/mine", "temperature": 0.5, "stop": ["x"]}, None, ["temperature", "stop"]),
        ({"model": LLAMA, "stop": ["x"]}, None, ["stop"]),
    ],
)
def test_sampling(ask: Any, translate: Any, fields: Any, inference: Any, warned: list[str]) -> None:
    outgoing = translate(ask(**fields))
    assert outgoing.body.get("inferenceConfig") == inference
    assert [warning.field for warning in outgoing.warnings] == warned
    if warned:
        with pytest.raises(UnsupportedParameter) as caught:
            translate(ask(**fields, strict=True))
        assert [violation.field for violation in caught.value.violations] == warned


@pytest.mark.parametrize(
    ("fields", "thinking", "warned"),
    [
        ({"reasoning": {"effort": "REASONING_EFFORT_LOW"}}, 2048, []),
        ({"reasoning": {"effort": "REASONING_EFFORT_HIGH"}, "max_tokens": 4000}, 2000, []),
        ({"reasoning": {"effort": "REASONING_EFFORT_HIGH"}, "max_tokens": 1000}, None, ["reasoning.effort"]),
        ({"reasoning": {"effort": "REASONING_EFFORT_OFF"}}, None, []),
        ({"reasoning": {"budget_tokens": 10}}, 1024, ["reasoning.budget_tokens"]),
        ({"reasoning": {}}, None, []),
        (
            {
                "reasoning": {"effort": "REASONING_EFFORT_LOW"},
                "tools": [TOOL],
                "tool_choice": {"mode": "TOOL_CHOICE_MODE_REQUIRED"},
            },
            None,
            ["reasoning"],
        ),
    ],
)
def test_budgets(ask: Any, translate: Any, fields: Any, thinking: int | None, warned: list[str]) -> None:
    outgoing = translate(ask(**fields))
    found = outgoing.body.get("additionalModelRequestFields", {}).get("thinking", {})
    assert found.get("budget_tokens") == thinking
    assert [warning.field for warning in outgoing.warnings] == warned


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"reasoning": {"budget_tokens": 3000}, "max_tokens": 2000}, "reasoning.budget_tokens"),
        ({"tool_choice": {"mode": "TOOL_CHOICE_MODE_REQUIRED"}}, "tool_choice.mode"),
        ({"tools": [TOOL], "tool_choice": {"names": ["nope"]}}, "tool_choice.names[0]"),
        ({"tools": [TOOL], "tool_choice": {"mode": "TOOL_CHOICE_MODE_NAMED"}}, "tool_choice.names"),
        ({"cache": {"points": [{"message": 5}]}}, "cache.points[0].message"),
        ({"tools": [{"name": "a"}, {"name": "b"}, {"name": "a"}]}, "tools[2].name"),
        ({"provider_options": {"bedrock": {"messages": []}}}, "provider_options.bedrock.messages"),
        ({"provider_options": {"bedrock": {"modelId": "x"}}}, "provider_options.bedrock.modelId"),
        ({"response_format": {"json_schema": {"schema": "[]"}}}, "response_format.json_schema.schema"),
        ({"messages": [{"role": "ROLE_USER", "parts": [{"text": {"text": " "}}]}]}, "messages"),
        (
            {"messages": [{"role": "ROLE_TOOL", "parts": [{"tool_result": {"call_id": "x"}}]}]},
            "messages[0].parts[0].tool_result.call_id",
        ),
    ],
)
def test_requests_that_are_wrong(ask: Any, translate: Any, fields: Any, path: str) -> None:
    with pytest.raises(MaestroError) as caught:
        translate(ask(**fields))
    assert type(caught.value) is InvalidRequest
    assert caught.value.violations[0].field == path


def test_state_goes_back_to_its_own_lineage_only(ask: Any, translate: Any) -> None:
    """A profile is the same model elsewhere; another model refuses what this one signed."""

    def thought(origin: dict[str, str]) -> dict[str, Any]:
        return {"reasoning": {"text": "hm"}, "origin": origin, "provider_state": "c2ln"}

    base = "anthropic.claude-sonnet-4-5-20250929-v1:0"
    parts = [
        thought({"provider": "bedrock", "api": "converse", "model": base}),
        thought({"provider": "anthropic", "api": "messages", "model": "claude-sonnet-4-5"}),
        {"opaque": {"json": '{"a":1}'}, "origin": {"provider": "google"}},
        {"text": {"text": "hello"}},
    ]
    messages = [
        {"role": "ROLE_USER", "parts": [{"text": {"text": "hi"}}]},
        {"role": "ROLE_ASSISTANT", "parts": parts},
        {"role": "ROLE_USER", "parts": [{"text": {"text": "go on"}}]},
    ]
    signed = {"reasoningContent": {"reasoningText": {"text": "hm", "signature": "sig"}}}
    for model in (base, f"us.{base}", f"global.{base}"):
        content = translate(ask(model=f"bedrock/{model}", messages=messages)).body["messages"][1]["content"]
        assert content == [signed, {"text": "hello"}]
    content = translate(ask(model=NOVA, messages=messages)).body["messages"][1]["content"]
    assert content == [{"text": "hello"}]
