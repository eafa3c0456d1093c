"""Answers that were begun: older models go on with them, of newer ones it is known that they refuse them."""

from __future__ import annotations

from typing import Any

import pytest

from maestro.llm.v1.model_pb2 import Feature
from maestro_adapter_claude import models
from maestro_adapter_claude.translate import to_wire
from maestro_sdk.adapter.models import supports
from maestro_sdk.errors import UnsupportedParameter

OLDER, NEWER = "anthropic/claude-haiku-4-5", "anthropic/claude-sonnet-4-6"


def begun(text: str = "1, 2,") -> list[dict[str, Any]]:
    """A conversation that ends with an answer that was begun."""
    return [
        {"role": "ROLE_USER", "parts": [{"text": {"text": "Count to 9."}}]},
        {"role": "ROLE_ASSISTANT", "parts": [{"text": {"text": text}}]},
    ]


def test_models_before_4_6_claim_it(catalogue: dict[str, models.ClaudeModel]) -> None:
    claims = {name for name, found in catalogue.items() if supports(found.model, Feature.FEATURE_PREFILL)}
    assert claims == {f"anthropic/claude-{name}-4-5" for name in ("opus", "sonnet", "haiku")}


def test_an_older_model_is_sent_what_was_begun(ask: Any, translate: Any) -> None:
    body = translate(ask(model=OLDER, messages=begun())).body
    assert body["messages"][-1] == {"role": "assistant", "content": [{"type": "text", "text": "1, 2,"}]}


def test_a_newer_model_refuses_it_with_its_path(ask: Any, translate: Any) -> None:
    empty = {"role": "ROLE_ASSISTANT", "parts": [{"text": {"text": " "}}]}
    with pytest.raises(UnsupportedParameter, match="claude-sonnet-4-6 goes on with no answer") as caught:
        translate(ask(model=NEWER, messages=[*begun(), empty]))
    assert [violation.field for violation in caught.value.violations] == ["messages[1]"]


def test_white_space_at_its_end_is_refused(ask: Any, translate: Any) -> None:
    with pytest.raises(UnsupportedParameter, match="white space"):
        translate(ask(model=OLDER, messages=begun("1, 2, ")))


def test_no_thinking_comes_before_it(ask: Any, translate: Any) -> None:
    high = {"effort": "REASONING_EFFORT_HIGH"}
    outgoing = translate(ask(model=OLDER, messages=begun(), reasoning=high))
    assert "thinking" not in outgoing.body
    assert [warning.field for warning in outgoing.warnings] == ["reasoning"]


def test_a_model_of_which_nothing_is_known_is_asked(ask: Any) -> None:
    unknown = models.load([{"name": "claude-next"}])["anthropic/claude-next"]
    outgoing = to_wire(ask(model="anthropic/claude-next", messages=begun()), unknown, 1024)
    assert outgoing.body["messages"][-1]["role"] == "assistant"
