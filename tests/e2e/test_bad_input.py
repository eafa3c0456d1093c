"""Bad input gets the right status, the shape of our errors, and the place that is wrong; it never costs a call."""

import json
from typing import Any

import pytest

from maestro_sdk.testing import anthropic_messages, openai_chat
from maestro_sdk.testing.callers import Caller, question
from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.mesh import MeshProcess

CHAT = "/v1/chat"
TOOL = {"name": "add", "input_schema": {"type": "object"}}


async def test_without_a_key(nobody: Caller):
    answer = await nobody.chat(question())
    assert (answer.status, answer.error["reason"]) == (401, "UNAUTHENTICATED")
    assert answer.headers["www-authenticate"] == "Bearer"


async def test_with_a_wrong_key(mesh: MeshProcess):
    async with Caller(mesh.url, "mk-wrong") as stranger:
        for path in ("/v1/models", "/v1/router/backends", "/v1/health/providers"):
            answer = await stranger.get(path)
            assert (answer.status, answer.error["reason"]) == (401, "UNAUTHENTICATED"), path
        assert (await stranger.chat(question(stream=True))).status == 401
        assert "mk-wrong" not in (await stranger.chat(question())).body.decode()


@pytest.mark.parametrize("stream", [True, False])
async def test_unknown_model_names_the_known_ones(alpha: Caller, stream: bool):
    answer = await alpha.chat(question(model="no-such-model", stream=stream))
    assert (answer.status, answer.error["reason"]) == (404, "NOT_FOUND")
    told = json.dumps(answer.error)
    assert "no-such-model" in told
    assert "fast" in told
    assert "openai-first" in told


@pytest.mark.parametrize(
    "path", ["/v1/nowhere", "/", "/v2/chat", "/v1/chat/more", "/maestro.router.v1.RouterService/Route"]
)
async def test_unknown_paths(alpha: Caller, path: str):
    answer = await alpha.get(path)
    assert answer.headers["content-type"].startswith("application/json")
    assert (answer.status, answer.error["code"], answer.error["reason"]) == (404, 404, "NOT_FOUND")


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param(b"hello", "", id="not-json"),
        pytest.param(b"", "", id="empty"),
        pytest.param(b"[1]", "", id="no-object"),
        pytest.param(b'{"messages": [', "", id="cut-json"),
        pytest.param(b'{"messages": "\xff"}', "", id="not-utf-8"),
        pytest.param({}, "messages", id="no-messages"),
        pytest.param({"messages": []}, "messages", id="empty-messages"),
        pytest.param({"messages": "hello"}, "messages", id="messages-of-wrong-type"),
        pytest.param({"messages": [{"content": "x"}]}, "messages[0].role", id="no-role"),
        pytest.param({"messages": [{"role": "robot", "content": "x"}]}, "messages[0].role", id="unknown-role"),
        pytest.param({"messages": [{"role": "user", "content": 7}]}, "messages[0].content", id="content-number"),
        pytest.param(
            {"messages": [{"role": "user", "content": [{"type": "smell"}]}]}, "messages[0].content[0].type", id="part"
        ),
        pytest.param(question(temperature="hot"), "temperature", id="temperature-text"),
        pytest.param(question(temperature=9), "temperature", id="temperature-range"),
        pytest.param(question(max_tokens=0), "max_tokens", id="max-tokens-range"),
        pytest.param(question(max_tokens=1.5), "max_tokens", id="max-tokens-fraction"),
        pytest.param(question(stream="yes"), "stream", id="stream-text"),
        pytest.param(question(reasoning={"effort": "heroic"}), "reasoning.effort", id="unknown-enum"),
        pytest.param(question(tools=[{"name": "not a name"}]), "tools[0].name", id="tool-name"),
        pytest.param(question(tools=[TOOL], tool_choice="perhaps"), "tool_choice", id="tool-choice"),
        pytest.param(question(response_format={"type": "poem"}), "response_format.type", id="format"),
        pytest.param(question(tempratur=1, strict=True), "tempratur", id="unknown-field-strict"),
    ],
)
async def test_wrong_bodies_name_their_field(alpha: Caller, provider: FaultServer, body: Any, field: str):
    answer = await alpha.post(CHAT, body)
    assert (answer.status, answer.error["reason"]) == (400, "INVALID_REQUEST"), answer.body
    assert answer.error["message"]
    if field:
        assert field in [detail["field"] for detail in answer.error["details"]]
    assert provider.requests == []


@pytest.mark.parametrize(
    "model",
    [
        "local/offline",
        "local/llama",
        "openai/gpt-6.1-terra",
        "anthropic/claude-sonnet-5-5",
        "vertex/gemini-2.5-flash",
        "bedrock/amazon.nova-pro-v1:0",
    ],
)
async def test_a_schema_that_is_none_is_refused_with_its_pointer(alpha: Caller, provider: FaultServer, model: str):
    tool = {"name": "find", "input_schema": {"type": "object", "properties": {"x": {"type": "strnig"}}}}
    answer = await alpha.chat(question("hello", model=model, tools=[tool]))
    assert (answer.status, answer.error["reason"]) == (400, "INVALID_REQUEST")
    [detail] = answer.error["details"]
    assert detail["field"] == "tools[0].input_schema#/properties/x/type"
    assert provider.requests == []


async def test_unknown_field_is_a_warning_otherwise(alpha: Caller):
    answer = (await alpha.chat(question(tempratur=1))).json()
    assert [(warning["code"], warning["field"]) for warning in answer["warnings"]] == [("unknown_field", "tempratur")]
    events = await alpha.collect(question(tempratur=1))
    warnings = [event.json() for event in events if event.name == "warning"]
    assert [warning["field"] for warning in warnings] == ["tempratur"]


async def test_body_over_the_limit(alpha: Caller, provider: FaultServer):
    answer = await alpha.chat(question("x" * 70_000))
    assert (answer.status, answer.error["reason"]) == (413, "TOO_LARGE")
    assert provider.requests == []


async def test_unsupported_parameter_is_a_warning(alpha: Caller, provider: FaultServer):
    provider.on("POST", anthropic_messages.PATH, anthropic_messages.text("Hi"))
    answer = await alpha.chat(question(model="anthropic/claude-sonnet-5-5", seed=7))
    assert answer.status == 200
    warnings = answer.json()["warnings"]
    assert [(warning["code"], warning["field"]) for warning in warnings] == [("unsupported_parameter", "seed")]
    assert "seed" not in provider.requests[0].json()


@pytest.mark.parametrize("stream", [True, False])
async def test_unsupported_parameter_under_strict(alpha: Caller, provider: FaultServer, stream: bool):
    body = question(model="anthropic/claude-sonnet-5-5", seed=7, strict=True, stream=stream)
    answer = await alpha.chat(body)
    assert (answer.status, answer.error["reason"]) == (400, "UNSUPPORTED_PARAMETER"), answer.body
    assert [detail["field"] for detail in answer.error["details"]] == ["seed"]
    assert provider.requests == []


async def test_a_feature_that_no_backend_has(alpha: Caller, provider: FaultServer):
    body = question(model="local/offline", routing={"required": ["vision"]})
    answer = await alpha.chat(body)
    assert (answer.status, answer.error["reason"]) == (412, "CAPABILITY_UNAVAILABLE"), answer.body
    assert "vision" in answer.error["message"].lower()


@pytest.mark.parametrize("stream", [True, False])
async def test_the_callers_fault_is_not_tried_elsewhere(alpha: Caller, provider: FaultServer, stream: bool):
    provider.on("POST", openai_chat.PATH, openai_chat.error(400, message="bad image"))
    answer = await alpha.chat(question(model="openai-first", stream=stream))
    assert (answer.status, answer.error["reason"]) == (400, "INVALID_REQUEST")
    assert [seen.path for seen in provider.requests] == [openai_chat.PATH]


async def test_errors_of_explain_have_the_same_shape(alpha: Caller):
    answer = await alpha.post("/v1/router:explain", question(temperature="hot"))
    assert (answer.status, answer.error["reason"]) == (400, "INVALID_REQUEST")


async def test_wrong_method(alpha: Caller):
    answer = await alpha.get(CHAT)
    assert answer.status in (404, 405)
    assert answer.error["code"] == answer.status
