"""Models on Azure: what is deployed is on offer, and settings that can't be right are refused."""

from __future__ import annotations

from typing import Any

import pytest

from maestro.llm.v1.model_pb2 import Feature
from maestro_adapter_openai.azure import AzureProvider
from maestro_adapter_openai.models import azure_models
from maestro_adapter_openai.settings import OpenAISettings
from maestro_sdk.adapter.models import is_unknown, supports


async def test_only_deployed_models_are_on_offer(azure: AzureProvider) -> None:
    found = {model.name: model for model in await azure.models()}
    assert sorted(found) == ["gpt-4.1", "gpt-5.1", "mystery", "text-embedding-3-small"]
    assert found["gpt-4.1"].id == "azure/gpt-4.1"
    assert found["gpt-4.1"].context_window == 1_047_576
    assert supports(found["gpt-4.1"], Feature.FEATURE_TOOLS)
    # What Azure charges, and until when, is its own affair.
    assert not any(model.HasField("price") or model.retires for model in found.values())
    assert {name for name, model in found.items() if supports(model, Feature.FEATURE_BATCH)} == {"gpt-4.1"}
    assert not any(supports(model, Feature.FEATURE_DOCUMENTS) for model in found.values())
    assert is_unknown(found["mystery"])
    assert not supports(found["mystery"], Feature.FEATURE_TOOLS)


def test_an_operator_tells_prices() -> None:
    price = {"from": "2026-01-01", "input": "2.20", "output": "8.80"}
    own = [{"name": "gpt-4.1", "prices": [price], "context_window": 5}]
    found = azure_models({"gpt-4.1": "a", "o3": "b"}, {}, own)
    assert (found["gpt-4.1"].model.price.input, found["gpt-4.1"].model.context_window) == ("2.20", 5)
    assert not found["o3"].model.HasField("price")
    assert found["o3"].dialect is not None
    assert found["o3"].dialect.efforts["max"] == "high"


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("https://r.openai.azure.com/", "https://r.openai.azure.com"),
        ("https://r.openai.azure.com/openai", "https://r.openai.azure.com"),
        ("https://r.openai.azure.com/openai/v1/", "https://r.openai.azure.com"),
        (
            "https://r.openai.azure.com/openai/deployments/x/chat/completions?api-version=2024-10-21",
            "https://r.openai.azure.com",
        ),
        ("https://gateway.example.org/team/openai", "https://gateway.example.org/team"),
        ("https://gateway.example.org/openai-team", "https://gateway.example.org/openai-team"),
    ],
)
def test_an_endpoint_may_be_any_address_that_the_portal_shows(given: str, kept: str) -> None:
    assert OpenAISettings.model_validate({"azure": {"endpoint": given}}).azure.endpoint == kept


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"models": [{"name": "gpt-4o"}]}, "models: gpt-4o has no deployment"),
        ({"batch_deployments": {"gpt-4o": "x"}}, "batch_deployments: gpt-4o has no deployment"),
        ({"endpoint": "my-resource"}, "an http or https address"),
        ({"endpoint": "https://"}, "an http or https address"),
        ({"endpoint": "https://a b"}, "an http or https address"),
        ({"endpoint": "https://host?api-version=1"}, "end with its path"),
        ({"endpoint": "https://me:key@host"}, "never stand in the file"),
        ({"models": [{"name": "gpt-4.1", "prices": 5}]}, "model gpt-4.1: prices is not a list"),
        ({"models": [{"name": "gpt-4.1", "native": "TOOLS"}]}, "model gpt-4.1: native is not a list"),
        ({"models": [{"name": "gpt-4.1", "context_window": "much"}]}, "context_window is 'much'"),
        (
            {"deployments": {"text-embedding-3-small": "a"}, "batch_deployments": {"text-embedding-3-small": "b"}},
            "text-embedding-3-small makes embeddings",
        ),
        ({"deployments": {"gpt-4o": ""}}, "at least 1 character"),
        ({"token_provider": "print"}, "String should match"),
    ],
)
def test_wrong_settings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        OpenAISettings.model_validate({"azure": {"deployments": {"gpt-4.1": "a"}, **fields}})
