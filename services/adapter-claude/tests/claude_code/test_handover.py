"""What a run of Claude Code is given, and what its end means: pure, so the extra is not needed."""

from __future__ import annotations

import json
from pathlib import PurePosixPath
from typing import Any

import pytest

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.model_pb2 import Feature, Support
from maestro_adapter_claude import models as api_models
from maestro_adapter_claude.claude_code import models
from maestro_adapter_claude.claude_code.failure import to_error
from maestro_adapter_claude.claude_code.provider import INSTALL, ClaudeCodeProvider
from maestro_adapter_claude.claude_code.request import GO_ON, Run, to_wire
from maestro_adapter_claude.claude_code.transcript import session_file, to_transcript
from maestro_adapter_claude.provider import ClaudeProvider
from maestro_adapter_claude.settings import ClaudeSettings
from maestro_sdk.adapter.group import ProviderGroup
from maestro_sdk.adapter.models import support_of
from maestro_sdk.errors import (
    InvalidRequest,
    MaestroError,
    NotFound,
    Overloaded,
    ProviderAuth,
    ProviderQuota,
    RateLimited,
    UnsupportedParameter,
    UpstreamError,
)
from maestro_sdk.service.config_file import ConfigError
from maestro_sdk.service.settings import load
from maestro_sdk.testing.golden import plain

KNOWN = api_models.load()
CODE = models.load([found.model.name for found in KNOWN.values()], KNOWN)
MODEL = "claude-code/claude-sonnet-5"
FOLDER = PurePosixPath("/tmp/a_b.c")
TOOL = {"name": "look.up", "input_schema": '{"properties":{"x":{"type":"string"}}}', "description": "d"}


def user(*parts: Any) -> dict[str, Any]:
    return {"role": "ROLE_USER", "parts": [{"text": {"text": p}} if isinstance(p, str) else p for p in parts]}


def assistant(*parts: Any) -> dict[str, Any]:
    return {**user(*parts), "role": "ROLE_ASSISTANT"}


def results(*found: tuple[str, str]) -> dict[str, Any]:
    parts = [{"tool_result": {"call_id": name, "parts": [{"text": {"text": text}}]}} for name, text in found]
    return {"role": "ROLE_TOOL", "parts": parts}


def call(name: str) -> dict[str, Any]:
    return {"tool_call": {"call_id": name, "name": "look.up", "arguments_json": '{"x":"y"}'}}


def run_of(request: ChatRequest) -> Run:
    return to_wire(request, CODE[request.model])


def entries(run: Run) -> list[Any]:
    return [json.loads(line) for line in to_transcript(run, "s", FOLDER, "1").splitlines()]


def test_one_question_needs_no_session(ask: Any) -> None:
    run = run_of(ask("hi", model=MODEL, system="Be brief.", max_tokens=7))
    assert (run.system, run.max_tokens, run.past, run.pending) == ("Be brief.", 7, [], None)
    assert run.prompt == [{"type": "text", "text": "hi"}]
    assert entries(run) == []


def test_the_past_is_a_session(ask: Any) -> None:
    thought = {
        "reasoning": {"text": "hm"},
        "origin": {"provider": "anthropic", "api": "messages", "model": "claude-sonnet-5"},
        "provider_state": "c2ln",
    }
    request = ask(model=MODEL, messages=[user("one"), assistant(thought, "two"), user("three")])
    run = run_of(request)
    assert run.prompt == [{"type": "text", "text": "three"}]
    first, second = entries(run)
    assert (first["parentUuid"], second["parentUuid"]) == (None, first["uuid"])
    assert (first["type"], first["message"]["content"]) == ("user", [{"type": "text", "text": "one"}])
    assert second["message"]["role"] == "assistant"
    assert second["message"]["content"] == [
        {"type": "thinking", "thinking": "hm", "signature": "sig"},
        {"type": "text", "text": "two"},
    ]
    assert {entry["sessionId"] for entry in (first, second)} == {"s"}
    assert str(session_file("s", FOLDER)) == "projects/-tmp-a-b-c/s.jsonl"


def test_a_result_comes_from_the_call_that_waits(ask: Any) -> None:
    """The shortest one: Claude Code may cut what a tool says, but not what stands in a session."""
    messages = [user("go"), assistant(call("a"), call("b")), results(("a", "x" * 50)), results(("b", "short"))]
    run = run_of(ask(model=MODEL, messages=messages, tools=[TOOL]))
    assert run.prompt == ()
    assert run.pending is not None
    waiting, result = run.pending
    assert (waiting["id"], result["content"]) == ("b", [{"type": "text", "text": "short"}])
    last = entries(run)
    assert [entry["type"] for entry in last] == ["user", "assistant", "user", "attachment"]
    assert [block["tool_use_id"] for block in last[2]["message"]["content"]] == ["a"]
    assert last[1]["message"]["stop_reason"] == "tool_use"
    assert last[3]["attachment"]["toolUseID"] == "b"
    assert last[3]["attachment"]["toolName"] == "mcp__maestro__look_up"
    assert last[3]["attachment"]["toolInput"] == {"x": "y"}


@pytest.mark.parametrize(
    ("last", "prompt"),
    [
        ([results(("a", "done")), user("And now?")], "And now?"),
        (
            [
                {
                    "role": "ROLE_TOOL",
                    "parts": [
                        {
                            "tool_result": {
                                "call_id": "a",
                                "parts": [{"image": {"data": "AA==", "mime_type": "image/png"}}],
                            }
                        }
                    ],
                }
            ],
            GO_ON,
        ),
    ],
    ids=["words after results", "an image as result"],
)
def test_results_that_can_not_wait_stand_in_the_session(last: Any, prompt: str, ask: Any) -> None:
    run = run_of(ask(model=MODEL, messages=[user("go"), assistant(call("a")), *last], tools=[TOOL]))
    assert (run.pending, list(run.prompt)) == (None, [{"type": "text", "text": prompt}])
    assert run.past[-1]["content"][0]["type"] == "tool_result"


def test_tools(ask: Any) -> None:
    other = {"name": "other"}
    request = ask(model=MODEL, tools=[TOOL, other], tool_choice={"names": ["look.up"]})
    run = run_of(request)
    assert [(tool.name, tool.description) for tool in run.tools] == [("look_up", "d")]
    assert run.tools[0].schema == {"type": "object", "properties": {"x": {"type": "string"}}}
    assert run.outgoing.tool_names["mcp__maestro__look_up"] == "look.up"
    assert run_of(ask(model=MODEL, tools=[TOOL], tool_choice={"mode": "TOOL_CHOICE_MODE_NONE"})).tools == []


@pytest.mark.parametrize(
    ("fields", "places"),
    [
        ({"temperature": 0.0, "top_p": 0.5, "seed": "1"}, ["temperature", "top_p", "seed"]),
        ({"logprobs": {}, "stop": ["x"], "cache": {}}, ["logprobs", "stop", "cache"]),
        ({"response_format": {"json": {}}}, ["response_format"]),
        ({"response_format": {"text": {}}}, []),
        ({"provider_options": {"claude-code": {"x": 1}}}, ["provider_options"]),
        ({"tools": [TOOL], "tool_choice": {"mode": "TOOL_CHOICE_MODE_REQUIRED"}}, ["tool_choice.mode"]),
        (
            {"tools": [{**TOOL, "strict": True}], "tool_choice": {"parallel": False}},
            ["tool_choice.parallel", "tools[0].strict"],
        ),
        ({"reasoning": {"effort": "REASONING_EFFORT_LOW", "budget_tokens": 5000}}, ["reasoning.budget_tokens"]),
    ],
)
def test_what_it_does_not_take(fields: Any, places: list[str], ask: Any) -> None:
    request = ask(model=MODEL, **fields)
    assert [warning.field for warning in run_of(request).outgoing.warnings] == places
    request.strict = True
    if places:
        with pytest.raises(UnsupportedParameter) as caught:
            run_of(request)
        assert [found.field for found in caught.value.violations] == places


@pytest.mark.parametrize(
    ("model", "reasoning", "expected"),
    [
        (MODEL, {"effort": "REASONING_EFFORT_MAX"}, ("max", {"type": "adaptive"}, [])),
        (MODEL, {"effort": "REASONING_EFFORT_OFF"}, ("", {"type": "disabled"}, [])),
        (MODEL, {}, ("", {"type": "adaptive"}, [])),
        ("claude-code/claude-opus-5-5", {"effort": "REASONING_EFFORT_OFF"}, ("low", None, ["reasoning.effort"])),
    ],
)
def test_reasoning(model: str, reasoning: Any, expected: Any, ask: Any) -> None:
    run = run_of(ask(model=model, reasoning=reasoning))
    assert (run.effort, run.thinking, [warning.field for warning in run.outgoing.warnings]) == expected


@pytest.mark.parametrize(
    ("fields", "error", "path"),
    [
        ({"messages": [user("a"), assistant("b")]}, InvalidRequest, "messages"),
        ({"tools": [{"name": "a.b"}, {"name": "a_b"}]}, InvalidRequest, "tools[1].name"),
        ({"tools": [{"name": "x" * 120}]}, UnsupportedParameter, "tools[0].name"),
        ({"tools": [TOOL], "tool_choice": {"names": ["nope"]}}, InvalidRequest, "tool_choice.names[0]"),
        ({"tools": [{"name": "t", "input_schema": "[]"}]}, InvalidRequest, "tools[0].input_schema"),
        ({"messages": [user({"audio": {"url": "https://x"}})]}, UnsupportedParameter, "messages[0].parts[0].audio"),
    ],
)
def test_what_can_not_be_given(fields: Any, error: type[MaestroError], path: str, ask: Any) -> None:
    with pytest.raises(error) as caught:
        run_of(ask(model=MODEL, **fields))
    assert [found.field for found in caught.value.violations] == [path]


@pytest.mark.parametrize(
    ("status", "kind", "text", "expected"),
    [
        (429, "rate_limit", "API Error: Request rejected (429) · slow down", RateLimited),
        (401, "authentication_failed", "Failed to authenticate. API Error: 401 no", ProviderAuth),
        (529, "server_error", "API Error: 529 Overloaded", Overloaded),
        (500, "server_error", "API Error: 500 oops", UpstreamError),
        (400, "invalid_request", "API Error: 400 messages: wrong", InvalidRequest),
        (None, "server_error", "API Error: 529 Overloaded", Overloaded),
        (None, "rate_limit", "", RateLimited),
        (None, "billing_error", "Credit balance is too low", ProviderQuota),
        (None, "", "the process fell over", UpstreamError),
    ],
)
def test_errors(status: int | None, kind: str, text: str, expected: type[MaestroError]) -> None:
    error = to_error(status, kind, text)
    assert type(error) is expected
    assert text in error.message
    assert error.metadata["provider"] == "claude-code"


def test_models() -> None:
    for found in CODE.values():
        model = found.model
        assert model.id == f"claude-code/{model.name}"
        for feature in ("CHAT", "STREAMING", "TOOLS", "VISION", "REASONING"):
            assert support_of(model, Feature.Value(f"FEATURE_{feature}")) == Support.SUPPORT_NATIVE
        for feature in ("TOOL_CHOICE", "JSON_SCHEMA", "STOP_SEQUENCES", "BATCH", "FILES", "TOKEN_COUNTING"):
            assert support_of(model, Feature.Value(f"FEATURE_{feature}")) == Support.SUPPORT_NONE
    priced = CODE[MODEL].model.price
    assert (priced.input, priced.batch_factor) == (KNOWN["anthropic/claude-sonnet-5"].model.price.input, "")


async def test_it_is_off_unless_enabled(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", "sk-ant-12345678")
    monkeypatch.setattr("maestro_adapter_claude.claude_code.provider.find_spec", lambda name: name)
    file = tmp_path / "maestro.yaml"
    made: dict[bool, Any] = {}
    config: Any = None
    for enabled in (False, True):
        file.write_text(
            "version: 1\nadapters:\n  claude:\n    module: maestro_adapter_claude\n    address: 127.0.0.1:50061\n"
            f"    settings: {{claude_code: {{enabled: {str(enabled).lower()}}}}}\n"
        )
        config = load(file, {})
        made[enabled] = ClaudeProvider.from_config(config, config.adapters["claude"])
    assert isinstance(made[False], ClaudeProvider)
    group = made[True]
    assert isinstance(group, ProviderGroup)
    assert list(group.providers) == ["anthropic", "claude-code"]
    assert "anthropic/claude-sonnet-5" in {model.id for model in await group.models()}
    for provider in made.values():
        await provider.close()
    monkeypatch.setattr("maestro_adapter_claude.claude_code.provider.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"claude_code\.enabled.*pip install"):
        ClaudeProvider.from_config(config, config.adapters["claude"])


async def test_without_the_extra_it_says_what_to_install(ask: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("maestro_adapter_claude.claude_code.provider.find_spec", lambda name: None)
    settings = ClaudeSettings.model_validate({"claude_code": {"models": ["claude-sonnet-5"]}})
    provider = ClaudeCodeProvider(settings, KNOWN)
    assert await provider.check() == INSTALL
    with pytest.raises(ProviderAuth, match="pip install"):
        _ = [events async for events in provider.stream(ask(model=MODEL))]
    with pytest.raises(NotFound):
        _ = [events async for events in provider.stream(ask(model="claude-code/claude-opus-5"))]
    assert [model.id for model in await provider.models()] == [MODEL]


def test_settings_name_models_that_exist() -> None:
    with pytest.raises(ValueError, match=r"claude_code.models\[1\]: there is no model 'nope'"):
        ClaudeSettings.model_validate({"claude_code": {"enabled": True, "models": ["claude-opus-5", "nope"]}})


def test_the_prompt_is_json(ask: Any) -> None:
    image = {"image": {"data": "AA==", "mime_type": "image/png"}}
    run = run_of(ask(model=MODEL, messages=[user("look", image)]))
    assert [block["type"] for block in plain(list(run.prompt))] == ["text", "image"]
