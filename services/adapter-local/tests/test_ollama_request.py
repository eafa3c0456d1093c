"""Requests of the contract on Ollama's wire: golden conversations, and tables for what depends on the model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import orjson
import pytest
from google.protobuf.json_format import ParseDict

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.embedding_pb2 import EmbedRequest
from maestro_adapter_local.models import Knowledge, Served
from maestro_adapter_local.ollama import Defaults, Outgoing, to_wire
from maestro_adapter_local.ollama.request import Facts, to_embed_wire
from maestro_adapter_local.settings import ServerSettings
from maestro_sdk.errors import InvalidRequest, MaestroError, UnsupportedParameter
from maestro_sdk.testing.golden import check, plain

REQUESTS = sorted(Path(__file__).with_name("golden").glob("requests/*.request.json"))
ALL = (
    *("CHAT", "STREAMING", "SYSTEM_PROMPT", "TEMPERATURE", "STOP_SEQUENCES", "SEED"),
    *("JSON_SCHEMA", "LOGPROBS", "TOOLS", "PARALLEL_TOOLS", "VISION", "REASONING"),
)
TOOL = {"name": "weather", "input_schema": '{"type": "object"}'}
PICTURE = {"image": {"data": "iVBORw0=", "mime_type": "image/png"}}


def facts(*without: str, levels: bool = False) -> Facts:
    settings = ServerSettings(name="box", base_url="http://x", api="ollama", without=without)
    return Facts(Knowledge(settings).describe(Served("qwen3:8b", None, ALL)), levels)


def ask(*parts: Any, **fields: Any) -> ChatRequest:
    turn = {"role": "ROLE_USER", "parts": list(parts) or [{"text": {"text": "hi"}}]}
    return ParseDict({"model": "local/qwen3:8b", "messages": [turn], **fields}, ChatRequest())


def translate(request: ChatRequest, *without: str, levels: bool = False, **defaults: Any) -> Outgoing:
    return to_wire(request, facts(*without, levels=levels), Defaults(**defaults))


@pytest.mark.parametrize("path", REQUESTS, ids=lambda path: path.name.removesuffix(".request.json"))
def test_golden_request(path: Path) -> None:
    request = ParseDict(json.loads(path.read_text(encoding="utf-8")), ChatRequest())
    before = request.SerializeToString(deterministic=True)
    outgoing = translate(request)
    got = {"body": plain(outgoing.body), "warnings": plain(outgoing.warnings)}
    check(path.with_name(path.name.replace(".request.", ".wire.")), got)
    assert request.SerializeToString(deterministic=True) == before, "the request was changed"


def test_unset_is_not_sent() -> None:
    assert set(translate(ask()).body) == {"model", "messages", "truncate"}


def test_json_text_is_sent_byte_for_byte() -> None:
    schema = '{"type": "object", "z": 1.0, "a": [ ], "maximum": 12345678901234567890123}'
    arguments = '{ "big": 98765432109876543210987, "float": 1.0 }'
    call = {"tool_call": {"call_id": "c", "name": "weather", "arguments_json": arguments}}
    form = {"json_schema": {"schema": schema}}
    request = ask(tools=[{"name": "weather", "input_schema": schema}], response_format=form)
    ParseDict({"role": "ROLE_ASSISTANT", "parts": [call]}, request.messages.add())
    body = orjson.dumps(translate(request).body).decode()
    assert body.count(schema) == 2
    assert arguments in body


def test_the_operators_defaults_give_way_to_the_request() -> None:
    options = {"num_ctx": 4096, "temperature": 0.1, "top_k": 5}
    request = ask(temperature=0.7, provider_options={"local": {"options": {"top_k": 9}}})
    body = translate(request, keep_alive="10m", options=options).body
    assert body["options"] == {"num_ctx": 4096, "temperature": pytest.approx(0.7), "top_k": 9}
    assert body["keep_alive"] == "10m"


@pytest.mark.parametrize(("text", "sent"), [("10m", "10m"), ("-1", -1), ("0", 0), ("3600", 3600)])
def test_keep_alive(text: str, sent: str | int) -> None:
    assert translate(ask(), keep_alive=text).body["keep_alive"] == sent
    assert to_embed_wire(embedding(), Defaults(text)).body["keep_alive"] == sent


@pytest.mark.parametrize(
    ("effort", "levels", "without", "think", "warned"),
    [
        ("OFF", False, (), False, False),
        ("LOW", False, (), True, False),
        ("MAX", False, (), True, False),
        ("UNSPECIFIED", False, (), True, False),
        ("OFF", True, (), "low", True),
        ("MINIMAL", True, (), "low", True),
        ("LOW", True, (), "low", False),
        ("MEDIUM", True, (), "medium", False),
        ("HIGH", True, (), "high", False),
        ("MAX", True, (), "high", True),
        ("UNSPECIFIED", True, (), True, False),
        ("OFF", False, ("REASONING",), None, False),
        ("HIGH", False, ("REASONING",), None, True),
    ],
)
def test_think(effort: str, levels: bool, without: tuple[str, ...], think: Any, warned: bool) -> None:
    outgoing = translate(ask(reasoning={"effort": f"REASONING_EFFORT_{effort}"}), *without, levels=levels)
    assert outgoing.body.get("think") == think
    assert [warning.field for warning in outgoing.warnings] == (["reasoning.effort"] if warned else [])


@pytest.mark.parametrize(
    ("choice", "sent", "warned"),
    [
        ({}, ["weather", "clock"], []),
        ({"mode": "TOOL_CHOICE_MODE_AUTO", "parallel": True}, ["weather", "clock"], []),
        ({"mode": "TOOL_CHOICE_MODE_NONE"}, None, []),
        ({"mode": "TOOL_CHOICE_MODE_AUTO", "names": ["clock"]}, ["clock"], []),
        ({"mode": "TOOL_CHOICE_MODE_NAMED", "names": ["clock"]}, ["clock"], ["tool_choice.mode"]),
        ({"mode": "TOOL_CHOICE_MODE_REQUIRED"}, ["weather", "clock"], ["tool_choice.mode"]),
        ({"parallel": False}, ["weather", "clock"], ["tool_choice.parallel"]),
    ],
)
def test_tool_choice(choice: Any, sent: list[str] | None, warned: list[str]) -> None:
    outgoing = translate(ask(tools=[TOOL, {"name": "clock"}], tool_choice=choice))
    names = [tool["function"]["name"] for tool in outgoing.body["tools"]] if "tools" in outgoing.body else None
    assert names == sent
    assert [warning.field for warning in outgoing.warnings] == warned


@pytest.mark.parametrize(
    ("fields", "without", "field"),
    [
        ({"temperature": 0.5}, "TEMPERATURE", "temperature"),
        ({"top_p": 0.5}, "TEMPERATURE", "top_p"),
        ({"seed": "1"}, "SEED", "seed"),
        ({"stop": ["x"]}, "STOP_SEQUENCES", "stop"),
        ({"logprobs": {}}, "LOGPROBS", "logprobs"),
        ({"response_format": {"json_schema": {"schema": "{}"}}}, "JSON_SCHEMA", "response_format.json_schema"),
        ({"cache": {}}, "", "cache"),
        ({"tools": [{"name": "x", "strict": True}]}, "", "tools[0].strict"),
    ],
)
def test_what_is_not_obeyed_is_warned_of_and_strict_refuses_it(fields: Any, without: str, field: str) -> None:
    names = [without] if without else []
    assert [warning.field for warning in translate(ask(**fields), *names).warnings] == [field]
    with pytest.raises(UnsupportedParameter) as caught:
        translate(ask(**fields, strict=True), *names)
    assert [violation.field for violation in caught.value.violations] == [field]


@pytest.mark.parametrize(
    ("request_", "without", "error", "field"),
    [
        (ask({"image": {"url": "https://x/y.png"}}), (), UnsupportedParameter, "messages[0].parts[0].image.url"),
        (ask(PICTURE), ("VISION",), UnsupportedParameter, "messages[0].parts[0].image"),
        (ask({"image": {"url": "data:image/png;base64,!"}}), (), InvalidRequest, "messages[0].parts[0].image.url"),
        (ask({"image": {"url": "data:text/plain,aGk="}}), (), InvalidRequest, "messages[0].parts[0].image.url"),
        (ask({"audio": {"data": "aGk="}}), (), UnsupportedParameter, "messages[0].parts[0].audio"),
        (ask({"document": {"data": "aGk="}}), (), UnsupportedParameter, "messages[0].parts[0].document"),
        (ask({"tool_call": {"name": "x"}}), (), InvalidRequest, "messages[0].parts[0].tool_call"),
        (ask({}), (), InvalidRequest, "messages[0].parts[0]"),
        (ask(tools=[TOOL]), ("TOOLS",), UnsupportedParameter, "tools"),
        (ask(tools=[TOOL], tool_choice={"names": ["y"]}), (), InvalidRequest, "tool_choice.names[0]"),
        (ask(tools=[TOOL], tool_choice={"mode": "TOOL_CHOICE_MODE_NAMED"}), (), InvalidRequest, "tool_choice.names"),
        (ask(tool_choice={"mode": "TOOL_CHOICE_MODE_REQUIRED"}), (), InvalidRequest, "tool_choice.mode"),
        (ask(provider_options={"local": {"model": "y"}}), (), InvalidRequest, "provider_options.local.model"),
    ],
)
def test_refusals_name_the_path(
    request_: ChatRequest, without: tuple[str, ...], error: type[MaestroError], field: str
) -> None:
    with pytest.raises(MaestroError) as caught:
        translate(request_, *without)
    assert type(caught.value) is error
    assert [violation.field for violation in caught.value.violations] == [field]


def test_a_wrong_tool_schema_is_refused_by_its_place() -> None:
    with pytest.raises(InvalidRequest) as caught:
        translate(ask(tools=[TOOL, {"name": "x", "input_schema": '{"properties": {"a": {"type": 7}}}'}]))
    (violation,) = caught.value.violations
    assert violation.field.startswith("tools[1].input_schema")
    assert "/properties/a" in violation.field


def embedding(**fields: Any) -> EmbedRequest:
    return ParseDict({"model": "local/nomic", "inputs": [{"text": "a"}, {"text": "b"}], **fields}, EmbedRequest())


def test_embeddings() -> None:
    plain_body = to_embed_wire(embedding(), Defaults()).body
    assert plain_body == {"model": "nomic", "input": ["a", "b"]}
    request = embedding(truncate=False, dimensions=64, normalize=True, provider_options={"local": {"keep_alive": "1m"}})
    outgoing = to_embed_wire(request, Defaults("5m", {"num_ctx": 512}))
    assert outgoing.body == {
        **plain_body,
        "truncate": False,
        "dimensions": 64,
        "options": {"num_ctx": 512},
        "keep_alive": "1m",
    }
    assert not outgoing.warnings
    odd = to_embed_wire(embedding(normalize=False, purpose="EMBED_PURPOSE_CLUSTERING"), Defaults())
    assert [warning.field for warning in odd.warnings] == ["normalize", "purpose"]
    with pytest.raises(UnsupportedParameter, match="purpose"):
        to_embed_wire(embedding(purpose="EMBED_PURPOSE_CLUSTERING", strict=True), Defaults())
    with pytest.raises(UnsupportedParameter, match=r"inputs\[1\]\.tokens"):
        to_embed_wire(embedding(inputs=[{"text": "a"}, {"tokens": {"ids": [1]}}]), Defaults())
