"""The models as data: what is claimed, what it costs, and what an operator changes."""

from __future__ import annotations

import datetime
import re

import pytest
from anthropic.resources.messages.messages import DEPRECATED_MODELS

from maestro.llm.v1.model_pb2 import Feature, Support
from maestro.llm.v1.usage_pb2 import Usage
from maestro_adapter_claude import models
from maestro_adapter_claude.models import ClaudeModel
from maestro_adapter_claude.settings import ClaudeSettings
from maestro_sdk.adapter.models import cost_of, support_of

# Retired, and priced as it was: the sum that gateways get wrong by counting cached tokens twice.
SONNET_37 = {
    "name": "claude-3-7-sonnet",
    "native": ["CHAT"],
    "prices": [{"from": "2025-02-24", "input": "3", "cache_write_5m": "3.75", "cache_read": "0.30", "output": "15"}],
}


def test_money() -> None:
    # Dollars per million tokens: 3 at 3, 12 304 at 3.75, 550 at 15.
    model = models.load([SONNET_37])["anthropic/claude-3-7-sonnet"].model
    cost = cost_of(Usage(input_tokens=12307, cache_write_5m_tokens=12304, output_tokens=550), model.price)
    assert (cost.usd, cost.price_date) == ("0.054399", "2025-02-24")


def test_every_model_is_complete(catalogue: dict[str, ClaudeModel]) -> None:
    assert len(catalogue) == 18
    for name, found in catalogue.items():
        model = found.model
        assert model.id == name == f"anthropic/{model.name}"
        assert model.provider == "anthropic"
        assert model.family
        for feature in ("CHAT", "STREAMING", "TOOLS", "PARALLEL_TOOLS", "VISION", "JSON_SCHEMA", "REASONING"):
            assert support_of(model, Feature.Value(f"FEATURE_{feature}")) == Support.SUPPORT_NATIVE
        for feature in ("TOKEN_COUNTING", "FILES", "BATCH"):
            assert support_of(model, Feature.Value(f"FEATURE_{feature}")) == Support.SUPPORT_NATIVE
        assert not model.HasField("price") or model.price.batch_factor == "0.5"
        # What the provider has not.
        for feature in ("TEMPERATURE", "SEED", "LOGPROBS", "AUDIO", "EMBEDDINGS"):
            assert support_of(model, Feature.Value(f"FEATURE_{feature}")) == Support.SUPPORT_NONE
        forced = support_of(model, Feature.FEATURE_TOOL_CHOICE) == Support.SUPPORT_NATIVE
        assert forced == found.wire.forced_tools
        assert found.wire.adaptive or found.wire.budget


def test_the_sdk_knows_no_other_retirement(catalogue: dict[str, ClaudeModel]) -> None:
    """A model that the provider turns off says when."""
    announced = {name: day for name, day in DEPRECATED_MODELS.items() if f"anthropic/{name}" in catalogue}
    told = {found.model.name: found.model.retires for found in catalogue.values() if found.model.retires}
    # "November 30th, 2026"
    days = {name: re.sub(r"(?<=\d)(st|nd|rd|th)", "", day) for name, day in announced.items()}
    assert {
        name: datetime.datetime.strptime(f"{day} +0000", "%B %d, %Y %z").date().isoformat()
        for name, day in days.items()
    } == told


def test_a_price_that_is_not_known_is_absent(catalogue: dict[str, ClaudeModel]) -> None:
    unpriced = {name for name, found in catalogue.items() if not found.model.HasField("price")}
    names = ("claude-haiku-5-5", "claude-fable-5-2", "claude-mythos-5-2")
    assert unpriced == {f"anthropic/{name}" for name in names}


@pytest.mark.parametrize(
    ("day", "cache_read"), [("2026-10-06", "0.20"), ("2026-10-07", "0.10"), ("2027-01-01", "0.10")]
)
def test_the_price_of_the_day_holds(day: str, cache_read: str) -> None:
    found = models.load(today=datetime.date.fromisoformat(day))["anthropic/claude-sonnet-5-5"]
    assert found.model.price.cache_read == cache_read


def test_an_operator_adds_and_changes_models() -> None:
    settings = ClaudeSettings.model_validate(
        {"models": [SONNET_37, {"name": "claude-sonnet-5-5", "tags": ["default"], "max_output_tokens": 9}]}
    )
    found = models.load(settings.models)
    assert found["anthropic/claude-3-7-sonnet"].wire == found["anthropic/claude-opus-5"].wire
    changed = found["anthropic/claude-sonnet-5-5"]
    assert (list(changed.model.tags), changed.max_output_tokens) == (["default"], 9)
    assert changed.model.context_window == 1_000_000
    assert changed.wire.disable == "between_tools"
    assert len(found) == 19


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"models": [{"name": "x", "wire": "nope"}]}, "wire 'nope' is not one of budgeted"),
        ({"models": [{"name": "x", "native": ["FLYING"]}]}, "unknown feature 'FLYING'"),
        ({"models": [{"name": "x", "windows": 3}]}, "windows"),
        ({"base_url": "api.anthropic.com"}, "is not an http or https address"),
        ({"api_key": "sk-ant-inline"}, "keys never stand in the file"),
        ({"default_max_tokens": 0}, "greater than or equal to 1"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_wrong_settings_are_refused(settings: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        ClaudeSettings.model_validate(settings)


def test_the_path_of_the_api_may_stand_in_the_base_url() -> None:
    for url in ("https://api.anthropic.com", "https://api.anthropic.com/", "https://api.anthropic.com/v1/"):
        assert ClaudeSettings(base_url=url).base_url == "https://api.anthropic.com"
