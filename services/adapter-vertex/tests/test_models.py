"""The models as data: what is claimed, what it costs, and what an operator changes."""

from __future__ import annotations

import datetime

import pytest

from maestro.llm.v1.model_pb2 import Feature, Support
from maestro.llm.v1.usage_pb2 import Usage
from maestro_adapter_vertex import models
from maestro_adapter_vertex.models import VertexModel
from maestro_adapter_vertex.settings import VertexSettings
from maestro_sdk.adapter.models import cost_of, support_of


def test_money() -> None:
    """Thoughts are paid as output, what was cached costs a tenth."""
    model = models.load(today=datetime.date(2026, 11, 22))["vertex/gemini-3.5-flash"].model
    used = Usage(input_tokens=20_000, cache_read_tokens=16_000, output_tokens=900, reasoning_tokens=700)
    # Dollars per million tokens: 4 000 at 1.50, 16 000 at 0.15, 900 at 9.
    assert cost_of(used, model.price).usd == "0.016500"
    assert cost_of(used, model.price, batch=True).usd == "0.008250"


def test_prices_begin_on_their_day() -> None:
    used = Usage(input_tokens=1_000_000, output_tokens=1_000_000)
    prices = {
        day: cost_of(used, models.load(today=datetime.date.fromisoformat(day))["vertex/gemini-3.8-flash"].model.price)
        for day in ("2026-12-31", "2027-01-01")
    }
    assert {day: cost.usd for day, cost in prices.items()} == {"2026-12-31": "4.500000", "2027-01-01": "9.000000"}


def test_vectors_are_paid_by_the_character_or_the_token(catalogue: dict[str, VertexModel]) -> None:
    by_character = catalogue["vertex/text-embedding-005"].model.price
    assert cost_of(Usage(input_tokens=250, input_characters=1000), by_character).usd == "0.000025"
    by_token = catalogue["vertex/gemini-embedding-001"].model.price
    assert cost_of(Usage(input_tokens=1_000_000), by_token).usd == "0.150000"


def test_what_can_not_be_said_in_a_price_list_has_no_price(catalogue: dict[str, VertexModel]) -> None:
    unpriced = {name for name, found in catalogue.items() if not found.model.HasField("price")}
    assert unpriced == {"vertex/gemini-2.5-pro", "vertex/gemini-3-pro-preview", "vertex/gemini-3.1-pro-preview"}


def test_all_models_are_whole(catalogue: dict[str, VertexModel]) -> None:
    assert len(catalogue) == 11
    for name, found in catalogue.items():
        assert found.model.id == name
        assert found.model.provider == "vertex"
        chats = found.has(Feature.FEATURE_CHAT)
        assert chats is not found.has(Feature.FEATURE_EMBEDDINGS)
        assert bool(found.wire.embeds) is not chats
        # A model that thinks takes a level or a budget.
        thinks = found.has(Feature.FEATURE_REASONING)
        assert thinks is bool(found.wire.levels or found.wire.budget)


def test_an_operator_adds_and_changes_models() -> None:
    extra = [
        {"name": "gemini-9-flash", "native": ["CHAT", "REASONING"], "wire": "three", "context_window": 5},
        {"name": "gemini-2.5-flash", "max_output_tokens": 7},
        {"name": "gemini-8"},
    ]
    found = VertexSettings.model_validate({"models": extra})
    loaded = models.load(found.models)
    assert loaded["vertex/gemini-9-flash"].wire.levels == ("MINIMAL", "LOW", "MEDIUM", "HIGH")
    assert loaded["vertex/gemini-2.5-flash"].max_output_tokens == 7
    assert loaded["vertex/gemini-2.5-flash"].model.context_window == 1048576
    assert "unknown" in loaded["vertex/gemini-8"].model.tags
    assert support_of(loaded["vertex/gemini-8"].model, Feature.FEATURE_TOOLS) == Support.SUPPORT_NONE


@pytest.mark.parametrize(
    "fields",
    [
        {"models": [{"name": "x", "wire": "nope"}]},
        {"models": [{"name": "x", "native": ["FLYING"]}]},
        {"location": "Europe West"},
        {"project": "a/b"},
        {"base_url": "ftp://x"},
        {"embed_concurrency": 0},
        {"read_timeout": "0s"},
    ],
)
def test_wrong_settings_are_refused(fields: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="1 validation error"):
        VertexSettings.model_validate(fields)


@pytest.mark.parametrize(
    ("fields", "endpoint"),
    [
        ({}, "https://aiplatform.googleapis.com"),
        ({"location": "europe-west4"}, "https://europe-west4-aiplatform.googleapis.com"),
        ({"location": "us-central1", "base_url": "http://127.0.0.1:9/v1/"}, "http://127.0.0.1:9"),
    ],
)
def test_the_address_follows_from_the_location(fields: dict[str, object], endpoint: str) -> None:
    assert VertexSettings.model_validate(fields).endpoint == endpoint
