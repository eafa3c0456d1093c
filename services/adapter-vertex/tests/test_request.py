"""Requests of the contract on Gemini's wire: golden conversations, and tables for what depends on the model."""

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
TOOL = {"name": "weather", "input_schema": '{"type":"object","properties":{"city":{"type":"string"}}}'}
OTHER = {"name": "clock"}


@pytest.mark.parametrize("path", REQUESTS, ids=lambda path: path.name.removesuffix(".request.json"))
def test_golden_request(path: Path, translate: Any) -> None:
    request = ParseDict(json.loads(path.read_text(encoding="utf-8")), ChatRequest())
    before = request.SerializeToString(deterministic=True)
    outgoing = translate(request)
    got = {"body": plain(outgoing.body), "warnings": plain(outgoing.warnings)}
    check(path.with_name(path.name.replace(".request.", ".wire.")), got)
    assert request.SerializeToString(deterministic=True) == before, "the request was changed"


def test_json_text_is_sent_byte_for_byte(ask: Any, translate: Any) -> None:
    schema = '{"type": "object", "title": "z", "description": "1.0", "maximum": 12345678901234567890123}'
    arguments = '{ "big": 98765432109876543210987, "float": 1.0 }'
    opaque = '{"codeExecutionResult": { "outcome" : "OUTCOME_OK" } }'
    parts = [
        {"tool_call": {"call_id": "c", "name": "t", "arguments_json": arguments}},
        {"opaque": {"json": opaque}, "origin": {"provider": "vertex"}},
    ]
    messages = [
        {"role": "ROLE_USER", "parts": [{"text": {"text": "hi"}}]},
        {"role": "ROLE_ASSISTANT", "parts": parts},
    ]
    form = {"json_schema": {"name": "z", "schema": schema}}
    body = orjson.dumps(translate(ask(messages=messages, response_format=form)).body).decode()
    assert schema in body
    assert arguments in body
    assert opaque in body


def test_unset_is_not_sent(ask: Any, translate: Any) -> None:
    assert translate(ask()).body == {"contents": [{"role": "user", "parts": [{"text": "hi"}]}]}


@pytest.mark.parametrize(
    ("choice", "wire", "tools", "warned"),
    [
        (None, None, ["weather", "clock"], []),
        ({}, {"mode": "AUTO"}, ["weather", "clock"], []),
        ({"mode": "TOOL_CHOICE_MODE_AUTO", "parallel": True}, {"mode": "AUTO"}, ["weather", "clock"], []),
        ({"mode": "TOOL_CHOICE_MODE_NONE", "parallel": False}, {"mode": "NONE"}, ["weather", "clock"], []),
        ({"mode": "TOOL_CHOICE_MODE_REQUIRED"}, {"mode": "ANY"}, ["weather", "clock"], []),
        (
            {"mode": "TOOL_CHOICE_MODE_NAMED", "names": ["clock"]},
            {"mode": "ANY", "allowedFunctionNames": ["clock"]},
            ["weather", "clock"],
            [],
        ),
        # The wire has subsets for forced calls only.
        ({"names": ["clock"]}, {"mode": "AUTO"}, ["clock"], []),
        (
            {"mode": "TOOL_CHOICE_MODE_REQUIRED", "names": ["clock"]},
            {"mode": "ANY", "allowedFunctionNames": ["clock"]},
            ["weather", "clock"],
            [],
        ),
        ({"parallel": False}, {"mode": "AUTO"}, ["weather", "clock"], ["tool_choice.parallel"]),
    ],
)
def test_tool_choice(ask: Any, translate: Any, choice: Any, wire: Any, tools: list[str], warned: list[str]) -> None:
    fields = {} if choice is None else {"tool_choice": choice}
    outgoing = translate(ask(tools=[TOOL, OTHER], **fields))
    assert outgoing.body.get("toolConfig", {}).get("functionCallingConfig") == wire
    assert [tool["name"] for tool in outgoing.body["tools"][0]["functionDeclarations"]] == tools
    assert [warning.field for warning in outgoing.warnings] == warned


def effort(name: str, **fields: Any) -> dict[str, Any]:
    return {"effort": f"REASONING_EFFORT_{name}", **fields}


BUDGET, EFFORT = "reasoning.budget_tokens", "reasoning.effort"


@pytest.mark.parametrize(
    ("model", "reasoning", "wire", "warned"),
    [
        ("gemini-2.5-flash", {}, {"includeThoughts": True}, []),
        ("gemini-2.5-flash", effort("OFF"), {"thinkingBudget": 0}, []),
        ("gemini-2.5-flash", effort("MINIMAL"), {"includeThoughts": True, "thinkingBudget": 512}, []),
        ("gemini-2.5-flash", effort("HIGH"), {"includeThoughts": True, "thinkingBudget": 16384}, []),
        ("gemini-2.5-flash", effort("MAX"), {"includeThoughts": True, "thinkingBudget": 24576}, []),
        ("gemini-2.5-flash", {"budget_tokens": 99}, {"includeThoughts": True, "thinkingBudget": 99}, []),
        ("gemini-2.5-flash", {"budget_tokens": 99999}, {"includeThoughts": True, "thinkingBudget": 24576}, [BUDGET]),
        ("gemini-2.5-flash-lite", {"budget_tokens": 9}, {"includeThoughts": True, "thinkingBudget": 512}, [BUDGET]),
        ("gemini-2.5-pro", effort("OFF"), {"thinkingBudget": 128}, [EFFORT]),
        ("gemini-2.5-pro", effort("MAX"), {"includeThoughts": True, "thinkingBudget": 32768}, []),
        ("gemini-3.5-flash", {}, {"includeThoughts": True}, []),
        ("gemini-3.5-flash", effort("MINIMAL"), {"includeThoughts": True, "thinkingLevel": "MINIMAL"}, []),
        ("gemini-3.5-flash", effort("MEDIUM"), {"includeThoughts": True, "thinkingLevel": "MEDIUM"}, []),
        ("gemini-3.5-flash", effort("MAX"), {"includeThoughts": True, "thinkingLevel": "HIGH"}, []),
        ("gemini-3.5-flash", effort("OFF"), {"thinkingLevel": "MINIMAL"}, [EFFORT]),
        (
            "gemini-3.5-flash",
            effort("LOW", budget_tokens=9),
            {"includeThoughts": True, "thinkingLevel": "LOW"},
            [BUDGET],
        ),
        ("gemini-3-pro-preview", effort("MEDIUM"), {"includeThoughts": True, "thinkingLevel": "HIGH"}, []),
        ("gemini-3-pro-preview", effort("MINIMAL"), {"includeThoughts": True, "thinkingLevel": "LOW"}, []),
        ("gemini-3.1-pro-preview", effort("OFF"), {"thinkingLevel": "LOW"}, [EFFORT]),
    ],
)
def test_reasoning(ask: Any, translate: Any, model: str, reasoning: Any, wire: Any, warned: list[str]) -> None:
    outgoing = translate(ask(model=f"vertex/{model}", reasoning=reasoning))
    assert outgoing.body["generationConfig"] == {"thinkingConfig": wire}
    assert [warning.field for warning in outgoing.warnings] == warned


PNG = {"data": "iVBO", "mime_type": "image/png"}
PDF = {"data": "JVBE", "mime_type": "application/pdf"}


@pytest.mark.parametrize(
    ("fields", "path", "error"),
    [
        ({"parts": [{"image": {"data": "AAAA", "mime_type": "text/plain"}}]}, "image.mime_type", UnsupportedParameter),
        ({"parts": [{"image": {"data": "AAAA"}}]}, "image.mime_type", UnsupportedParameter),
        ({"parts": [{"image": {"url": "ftp://h/x.png"}}]}, "image.url", UnsupportedParameter),
        ({"parts": [{"image": {"url": "https://h/x"}}]}, "image.mime_type", InvalidRequest),
        ({"parts": [{"image": {"file_id": "f"}}]}, "image.file_id", UnsupportedParameter),
        (
            {"parts": [{"document": {"data": "AA==", "mime_type": "application/zip"}}]},
            "document.mime_type",
            UnsupportedParameter,
        ),
        ({"parts": [{"tool_call": {"call_id": "c", "name": "n"}}]}, "tool_call", UnsupportedParameter),
        ({"role": "ROLE_ASSISTANT", "parts": [{"document": PDF}]}, "document", UnsupportedParameter),
        (
            {"role": "ROLE_ASSISTANT", "parts": [{"tool_call": {"call_id": "c", "name": "n", "arguments_json": "[]"}}]},
            "tool_call.arguments_json",
            InvalidRequest,
        ),
        ({"role": "ROLE_TOOL", "parts": [{"tool_result": {"call_id": "c"}}]}, "tool_result.call_id", InvalidRequest),
    ],
)
def test_parts_that_cannot_be_sent(ask: Any, translate: Any, fields: Any, path: str, error: type[MaestroError]) -> None:
    with pytest.raises(error) as caught:
        translate(ask(messages=[{"role": "ROLE_USER", **fields}]))
    assert type(caught.value) is error
    assert caught.value.violations[0].field == f"messages[0].parts[0].{path}"


def test_images_in_results_depend_on_the_model(ask: Any, translate: Any) -> None:
    messages = [
        {"role": "ROLE_USER", "parts": [{"text": {"text": "hi"}}]},
        {"role": "ROLE_ASSISTANT", "parts": [{"tool_call": {"call_id": "c", "name": "n"}}]},
        {"role": "ROLE_TOOL", "parts": [{"tool_result": {"call_id": "c", "parts": [{"image": PNG}]}}]},
    ]
    body = translate(ask(model="vertex/gemini-3.5-flash", messages=messages)).body
    response = body["contents"][2]["parts"][0]["functionResponse"]
    assert response["parts"] == [{"inlineData": {"mimeType": "image/png", "data": "iVBO"}}]
    with pytest.raises(UnsupportedParameter, match=r"messages\[2\].parts\[0\].tool_result.parts\[0\].image"):
        translate(ask(messages=messages))


@pytest.mark.parametrize(
    ("fields", "path"),
    [
        ({"tool_choice": {"mode": "TOOL_CHOICE_MODE_REQUIRED"}}, "tool_choice.mode"),
        ({"tools": [TOOL], "tool_choice": {"mode": "TOOL_CHOICE_MODE_NAMED"}}, "tool_choice.names"),
        ({"tools": [TOOL], "tool_choice": {"names": ["nope"]}}, "tool_choice.names[0]"),
        ({"tools": [{"name": "1a"}, {"name": "_1a"}]}, "tools[0].name"),
        ({"tools": [{"name": "a"}, {"name": "b"}, {"name": "a"}]}, "tools[2].name"),
        ({"tools": [{"name": "a", "input_schema": "[]"}]}, "tools[0].input_schema"),
        (
            {"tools": [TOOL, {"name": "a", "input_schema": '{"properties":{"a/b":{"type":"int"}}}'}]},
            "tools[1].input_schema#/properties/a~1b/type",
        ),
        (
            {"response_format": {"json_schema": {"schema": '{"items":3}'}}},
            "response_format.json_schema.schema#/items",
        ),
        ({"seed": 2**40}, "seed"),
        ({"provider_options": {"vertex": {"model": "x"}}}, "provider_options.vertex.model"),
        (
            {"provider_options": {"vertex": {"generationConfig": {"candidateCount": 2}}}},
            "provider_options.vertex.generationConfig.candidateCount",
        ),
        ({"messages": [{"role": "ROLE_USER", "parts": [{"text": {"text": ""}}]}]}, "messages"),
    ],
)
def test_wrong_requests_name_the_place(ask: Any, translate: Any, fields: Any, path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        translate(ask(**fields))
    assert caught.value.violations[0].field == path


def test_strict_tells_everything_at_once(ask: Any, translate: Any) -> None:
    schema = '{"type":"object","properties":{"a":{"type":"array","items":{"type":"string"},"uniqueItems":true}}}'
    request = ask(
        model="vertex/gemini-3.5-flash",
        logprobs={},
        cache={"points": [{"tools": True}]},
        tools=[{"name": "t", "input_schema": schema}],
        strict=True,
    )
    with pytest.raises(UnsupportedParameter) as caught:
        translate(request)
    assert {violation.field for violation in caught.value.violations} == {
        "logprobs",
        "cache.points",
        "tools[0].input_schema#/properties/a/uniqueItems",
    }


def test_a_model_of_which_nothing_is_known_gets_the_least(ask: Any) -> None:
    from maestro_adapter_vertex import models
    from maestro_adapter_vertex.translate import to_wire

    model = models.load([{"name": "gemini-9"}])["vertex/gemini-9"]
    request = ask(model="vertex/gemini-9", temperature=1.0, seed=1, stop=["x"], logprobs={}, reasoning={})
    outgoing = to_wire(request, model)
    assert set(outgoing.body) == {"contents"}
    assert {warning.field for warning in outgoing.warnings} == {"temperature", "seed", "stop", "logprobs", "reasoning"}
