"""Answers that were begun: who goes on with them, who is known to refuse them, and who is asked."""

from __future__ import annotations

from typing import Any

import pytest

from maestro.llm.v1.model_pb2 import Feature
from maestro_adapter_bedrock.models import BedrockModel
from maestro_sdk.errors import UnsupportedParameter

OLDER, NEWER = "bedrock/eu.anthropic.claude-haiku-4-5-20251001-v1:0", "bedrock/anthropic.claude-opus-4-6-v1"
NOVA = "bedrock/amazon.nova-lite-v1:0"


def begun(text: str = "1, 2,") -> list[dict[str, Any]]:
    """A conversation that ends with an answer that was begun."""
    return [
        {"role": "ROLE_USER", "parts": [{"text": {"text": "Count to 9."}}]},
        {"role": "ROLE_ASSISTANT", "parts": [{"text": {"text": text}}]},
    ]


def test_what_is_claimed_is_what_goes_on(catalogue: dict[str, BedrockModel]) -> None:
    claims = {name for name, found in catalogue.items() if found.has(Feature.FEATURE_PREFILL)}
    assert claims == {name for name, found in catalogue.items() if found.wire.prefill == "goes_on"}
    assert {name.partition(".")[2] for name in claims if name.startswith("bedrock/us.")} == {
        "anthropic.claude-opus-4-5-20251101-v1:0",
        "anthropic.claude-sonnet-4-5-20250929-v1:0",
        "anthropic.claude-haiku-4-5-20251001-v1:0",
        "anthropic.claude-opus-4-1-20250805-v1:0",
        "anthropic.claude-sonnet-4-20250514-v1:0",
    }


@pytest.mark.parametrize("model", [OLDER, NOVA, "bedrock/mine"])
def test_it_is_sent_unless_it_is_known_to_be_refused(ask: Any, translate: Any, model: str) -> None:
    body = translate(ask(model=model, messages=begun())).body
    assert body["messages"][-1] == {"role": "assistant", "content": [{"text": "1, 2,"}]}


def test_a_newer_claude_refuses_it_with_its_path(ask: Any, translate: Any) -> None:
    with pytest.raises(UnsupportedParameter, match="claude-opus-4-6-v1 goes on with no answer") as caught:
        translate(ask(model=NEWER, messages=begun()))
    assert [violation.field for violation in caught.value.violations] == ["messages[1]"]


def test_white_space_at_its_end_is_refused_also_before_a_cache_point(ask: Any, translate: Any) -> None:
    with pytest.raises(UnsupportedParameter, match="white space"):
        translate(ask(model=OLDER, messages=begun("1, 2, "), cache={"points": [{"message": 1}]}))


def test_no_thinking_comes_before_it(ask: Any, translate: Any) -> None:
    high = {"effort": "REASONING_EFFORT_HIGH"}
    outgoing = translate(ask(model=OLDER, messages=begun(), reasoning=high))
    assert "additionalModelRequestFields" not in outgoing.body
    assert [warning.field for warning in outgoing.warnings] == ["reasoning"]
