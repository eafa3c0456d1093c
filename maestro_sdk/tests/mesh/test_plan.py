"""Decisions as a table: what is asked for, what the mesh has, what is tried in which order, and why not the others."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from maestro.llm.v1.chat_pb2 import (
    ChatRequest,
    JsonSchemaFormat,
    ResponseFormat,
    Routing,
    Tool,
    ToolChoice,
    ToolChoiceMode,
)
from maestro.llm.v1.error_pb2 import ErrorReason
from maestro.llm.v1.message_pb2 import DocumentPart, ImagePart, Message, Part, Role, TextPart, ToolResultPart
from maestro.llm.v1.model_pb2 import Feature
from maestro.router.v1 import router_pb2 as pb
from maestro_sdk.errors import CapabilityUnavailable, ContextTooLong, InvalidRequest, NoBackend, NotFound
from maestro_sdk.mesh.local import LocalState
from maestro_sdk.mesh.needs import Needs, features_from_needs, mask, needs_from_features, needs_of, unmask
from maestro_sdk.mesh.plan import Plan, plan, refusal
from maestro_sdk.mesh.table import EMPTY, Table
from maestro_sdk.testing.tables import backend, model, table

NOW = 1_700_000_000.0
CLAUDE = model("anthropic/sonnet", "TOOLS", "VISION", window=200_000)
GPT = model("openai/gpt", "TOOLS", "JSON_SCHEMA", window=8_000)
TINY = model("local/tiny", polyfilled=("TOOLS",))


def mesh(strategy: str = "fallback", **states: dict[str, Any]) -> Table:
    return table(
        [
            backend("claude", CLAUDE, **states.get("claude", {})),
            backend("openai", GPT, **states.get("openai", {})),
            backend("local", TINY, **states.get("local", {})),
        ],
        {"default": [("anthropic/sonnet", 1), ("openai/gpt", 3), ("local/tiny", 0)], "gone": [("vertex/gemini", 1)]},
        strategy=strategy,
    )


def half() -> float:
    return 0.5


def kept(decision: Plan) -> list[str]:
    return [ranked.choice.backend.id.split(":")[0] for ranked in decision.kept]


TOOLS = mask([Feature.FEATURE_TOOLS])
VISION = mask([Feature.FEATURE_VISION])


@pytest.mark.parametrize(
    ("needs", "expected"),
    [
        (Needs(""), ["claude", "openai", "local"]),
        (Needs("default"), ["claude", "openai", "local"]),
        (Needs("openai/gpt"), ["openai"]),
        (Needs("gpt"), ["openai"]),
        (Needs("", TOOLS), ["claude", "openai", "local"]),
        (Needs("", TOOLS, Routing(require_native=True)), ["claude", "openai"]),
        (Needs("", VISION), ["claude"]),
        (Needs("", 0, Routing(prefer_providers=["local", "openai"])), ["local", "openai", "claude"]),
        (Needs("", 0, Routing(exclude_providers=["anthropic"])), ["openai", "local"]),
        (Needs("", input_tokens=17_000), ["claude", "local"]),  # more than twice the window of openai/gpt
        (Needs("", input_tokens=9_000), ["claude", "openai", "local"]),  # a near miss is the provider's to judge
    ],
)
def test_fallback_order(needs: Needs, expected: list[str]) -> None:
    assert kept(plan(needs, mesh(), LocalState(), NOW, half)) == expected


def test_what_is_too_long_for_all_is_told_as_such() -> None:
    found = table([backend("a", model("p/a", window=1000)), backend("b", model("p/b", window=2000))],
                  {"default": [("p/a", 1), ("p/b", 1)]})  # fmt: skip
    needs = Needs("", input_tokens=4001)
    error = refusal(plan(needs, found, LocalState(), NOW, half), needs, NOW)
    assert isinstance(error, ContextTooLong)
    assert "about 4001 tokens don't fit its window of 2000" in error.message


def test_an_adapter_that_was_started_anew_gets_a_new_breaker() -> None:
    local = LocalState()

    def told(since: int) -> Table:
        serving = backend("a", model("p/a"))
        serving.serving_since.seconds = since
        return table([serving], {"default": [("p/a", 1)]})

    local.adopt(told(100), NOW)
    local.breaker("a:p/a").fail(NOW, ErrorReason.ERROR_REASON_PROVIDER_QUOTA, counts=True)
    local.adopt(told(100), NOW)
    assert not local.breaker("a:p/a").admits(NOW)
    local.adopt(told(200), NOW)
    assert local.breaker("a:p/a").admits(NOW)


@pytest.mark.parametrize(
    ("state", "reason"),
    [
        ({"state": pb.BACKEND_STATE_DOWN, "reason": "not reachable"}, "down: not reachable"),
        ({"state": pb.BACKEND_STATE_DRAINING}, "draining"),
        ({"state": pb.BACKEND_STATE_DISABLED, "reason": "cost"}, "disabled by an operator: cost"),
        (
            {"state": pb.BACKEND_STATE_OPEN, "reason": "5 failures in a row", "until": NOW + 5},
            "breaker open: 5 failures in a row",
        ),
    ],
)
def test_unavailable_backends_are_dropped_with_their_reason(state: dict[str, Any], reason: str) -> None:
    decision = plan(Needs(""), mesh(claude=state), LocalState(), NOW, half)
    assert kept(decision) == ["openai", "local"]
    assert [(drop.backend.adapter, drop.reason, drop.lasting) for drop in decision.dropped] == [
        ("claude", reason, False)
    ]


def test_an_open_breaker_of_the_table_is_tried_again_after_its_time() -> None:
    state = {"state": pb.BACKEND_STATE_OPEN, "reason": "x", "until": NOW - 0.1}
    assert kept(plan(Needs(""), mesh(claude=state), LocalState(), NOW, half)) == ["claude", "openai", "local"]


def test_a_local_breaker_counts_too() -> None:
    local = LocalState()
    local.adopt(mesh(), NOW)
    for _ in range(5):
        local.breaker("claude:anthropic/sonnet").fail(NOW, ErrorReason.ERROR_REASON_UPSTREAM_ERROR, counts=True)
    decision = plan(Needs(""), mesh(), local, NOW, half)
    assert kept(decision) == ["openai", "local"]
    assert decision.dropped[0].reason == "breaker open here: UPSTREAM_ERROR, 5 failures in a row"


def dice(*values: float) -> Callable[[], float]:
    source = iter(values)
    return lambda: next(source)


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # key = -ln(1 - u) / weight, the smallest first: weights 1 (claude) and 3 (openai); local has weight 0
        ((0.5, 0.5), ["openai", "claude"]),
        ((0.1, 0.5), ["claude", "openai"]),
        ((0.1, 0.1), ["openai", "claude"]),
    ],
)
def test_weighted_order(values: Sequence[float], expected: list[str]) -> None:
    decision = plan(Needs(""), mesh("weighted"), LocalState(), NOW, dice(*values))
    assert kept(decision) == expected
    assert [drop.reason for drop in decision.dropped] == ["its weight is 0"]


def test_weighted_shares_follow_the_weights() -> None:
    import random

    source = random.Random(11)
    decisions = [plan(Needs(""), mesh("weighted"), LocalState(), NOW, source.random) for _ in range(4000)]
    first = sum(kept(decision)[0] == "openai" for decision in decisions)
    # 3000 expected; chi-square with one degree of freedom stays below 10.8 in 999 of 1000 runs.
    assert (first - 3000) ** 2 / 3000 + (first - 3000) ** 2 / 1000 < 10.8


def test_the_same_model_at_two_adapters_goes_to_the_idler_one() -> None:
    twice = table(
        [backend("a", GPT), backend("b", GPT), backend("c", CLAUDE)],
        {"default": [("openai/gpt", 1), ("anthropic/sonnet", 1)]},
    )
    local = LocalState()
    local.load.in_flight["a:openai/gpt"] = 2
    assert kept(plan(Needs(""), twice, local, NOW, half)) == ["b", "a", "c"]
    assert kept(plan(Needs("openai/gpt"), twice, local, NOW, half)) == ["b", "a"]


def test_unknown_name_tells_what_is_known_and_what_is_similar() -> None:
    with pytest.raises(NotFound) as caught:
        plan(Needs("openai/gtp"), mesh(), LocalState(), NOW, half)
    assert "did you mean openai/gpt" in caught.value.message
    assert "default, gone, anthropic/sonnet, local/tiny, openai/gpt" in caught.value.message
    assert not caught.value.failover


def test_of_very_many_names_only_some_are_told() -> None:
    """They have to fit into the trailers of a call."""
    many = table([backend("a", model(f"p/{'m' * 100}-{number}")) for number in range(500)], {})
    with pytest.raises(NotFound) as caught:
        plan(Needs("x"), many, LocalState(), NOW, half)
    assert caught.value.message.endswith("and 468 more")
    assert len(caught.value.metadata["known"].split(",")) == 32


def test_a_bare_name_with_two_owners_asks_which() -> None:
    two = table([backend("openai", model("openai/gpt")), backend("azure", model("azure/gpt"))], {})
    with pytest.raises(InvalidRequest, match="openai/gpt, azure/gpt") as caught:
        plan(Needs("gpt"), two, LocalState(), NOW, half)
    assert caught.value.violations[0].field == "model"


def test_without_a_table_the_answer_is_to_wait() -> None:
    with pytest.raises(NoBackend, match="is the router running"):
        plan(Needs(""), EMPTY, LocalState(), NOW, half)


def test_refusal_names_what_is_missing_per_candidate() -> None:
    needs = Needs("", VISION | mask([Feature.FEATURE_AUDIO]))
    error = refusal(plan(needs, mesh(), LocalState(), NOW, half), needs, NOW)
    assert isinstance(error, CapabilityUnavailable)
    assert "claude:anthropic/sonnet: does not offer AUDIO" in error.message
    assert "openai:openai/gpt: does not offer VISION, AUDIO" in error.message


def test_a_refusal_by_many_backends_fits_into_the_trailers_of_a_call() -> None:
    many = [model(f"provider/model-with-a-long-name-{n}") for n in range(200)]
    found = table([backend("adapter", each) for each in many], {"default": [(each.id, 1) for each in many]})
    needs = Needs("", VISION | mask([Feature.FEATURE_AUDIO]))
    decision = plan(needs, found, LocalState(), NOW, half)
    error = refusal(decision, needs, NOW)
    assert error.message.endswith("; and 184 more")
    assert len(json.loads(error.metadata["candidates"])) == 16
    # Twice, since gRPC has the text beside the details; 8 KiB is what its peers take at least.
    assert len(error.message) * 2 + sum(map(len, error.metadata.values())) < 6000
    assert len(decision.message().candidates) == 200


def test_refusal_of_what_may_come_back_says_when() -> None:
    needs = Needs("anthropic/sonnet")
    state = {"state": pb.BACKEND_STATE_OPEN, "reason": "x", "until": NOW + 5}
    error = refusal(plan(needs, mesh(claude=state), LocalState(), NOW, half), needs, NOW)
    assert isinstance(error, NoBackend)
    assert error.retry_after == pytest.approx(5, abs=0.01)
    assert "claude:anthropic/sonnet: breaker open: x" in error.message


def test_refusal_of_a_route_without_adapters() -> None:
    needs = Needs("gone")
    error = refusal(plan(needs, mesh(), LocalState(), NOW, half), needs, NOW)
    assert "vertex/gemini: no enabled adapter offers it" in error.message


def test_explanation_lists_every_candidate() -> None:
    decision = plan(
        Needs("", VISION), mesh(local={"state": pb.BACKEND_STATE_DRAINING}), LocalState(), NOW, half
    ).message()
    assert (decision.route, decision.table_version, decision.strategy) == ("default", 7, "fallback")
    assert [(c.backend_id, c.kept, c.reason, list(c.missing)) for c in decision.candidates] == [
        ("claude:anthropic/sonnet", True, "target 1", []),
        ("openai:openai/gpt", False, "does not offer VISION", [Feature.FEATURE_VISION]),
        ("local:local/tiny", False, "does not offer VISION", [Feature.FEATURE_VISION]),
    ]


def user(*parts: Part) -> Message:
    return Message(role=Role.ROLE_USER, parts=parts)


TEXT = Part(text=TextPart(text="x" * 400))
IMAGE = Part(image=ImagePart(url="https://example.com/a.png"))
DOCUMENT = Part(document=DocumentPart(url="https://example.com/a.pdf"))
ADD = Tool(name="add")


@pytest.mark.parametrize(
    ("request_", "features"),
    [
        (ChatRequest(messages=[user(TEXT)]), {"CHAT"}),
        (ChatRequest(messages=[user(TEXT, IMAGE)]), {"CHAT", "VISION"}),
        (ChatRequest(messages=[user(DOCUMENT)]), {"CHAT", "DOCUMENTS"}),
        (ChatRequest(messages=[user(TEXT)], tools=[ADD]), {"CHAT", "TOOLS"}),
        (
            ChatRequest(
                messages=[user(TEXT)], tools=[ADD], tool_choice=ToolChoice(mode=ToolChoiceMode.TOOL_CHOICE_MODE_NONE)
            ),
            {"CHAT"},
        ),
        (
            ChatRequest(messages=[user(Part(tool_result=ToolResultPart(call_id="c", parts=[IMAGE])))]),
            {"CHAT", "TOOLS", "VISION"},
        ),
        (
            ChatRequest(
                messages=[user(TEXT)], response_format=ResponseFormat(json_schema=JsonSchemaFormat(schema="{}"))
            ),
            {"CHAT", "JSON_SCHEMA"},
        ),
        (ChatRequest(messages=[user(TEXT)], temperature=0.1, seed=1), {"CHAT"}),
        (
            ChatRequest(messages=[user(TEXT)], routing=Routing(required=[Feature.FEATURE_LOGPROBS])),
            {"CHAT", "LOGPROBS"},
        ),
    ],
)
def test_needs_of_a_request(request_: ChatRequest, features: set[str]) -> None:
    needs = needs_of(request_)
    assert {Feature.Name(f).removeprefix("FEATURE_") for f in unmask(needs.required)} == features
    again = needs_from_features(features_from_needs(needs))
    assert (again.required, again.model, again.input_tokens) == (needs.required, needs.model, needs.input_tokens)


def test_input_tokens_are_estimated_from_the_text() -> None:
    assert needs_of(ChatRequest(messages=[user(TEXT, TEXT)], system="y" * 40)).input_tokens == 210
