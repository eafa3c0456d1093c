"""The facts about OpenAI's models, and the settings that change them."""

from __future__ import annotations

import datetime
from pathlib import Path

import pytest

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.message_pb2 import Role
from maestro.llm.v1.model_pb2 import Feature
from maestro.llm.v1.usage_pb2 import Usage
from maestro_adapter_openai.models import models
from maestro_adapter_openai.provider import from_config
from maestro_adapter_openai.settings import OpenAISettings
from maestro_sdk.adapter.chat_completions.dialect import EFFORTS
from maestro_sdk.adapter.group import ProviderGroup
from maestro_sdk.adapter.models import cost_of, supports
from maestro_sdk.errors import ProviderAuth
from maestro_sdk.service.settings import ConfigError, load

DAY = datetime.date(2026, 11, 22)
WORDS = {"none", "minimal", "low", "medium", "high", "xhigh", "max"}


def test_every_model_is_told_in_full() -> None:
    for name, entry in models(today=DAY).items():
        assert entry.model.id == f"openai/{name}"
        assert entry.model.HasField("price"), name
        assert (entry.dialect is None) == supports(entry.model, Feature.FEATURE_EMBEDDINGS), name
        # Half of everything, where it is said at all.
        assert entry.model.price.batch_factor == ("0.5" if supports(entry.model, Feature.FEATURE_BATCH) else ""), name
        if entry.dialect is None:
            continue
        assert supports(entry.model, Feature.FEATURE_STREAMING), name
        # What a model claims and what its dialect does are one.
        assert entry.dialect.tools == supports(entry.model, Feature.FEATURE_TOOLS), name
        assert bool(entry.dialect.efforts) == supports(entry.model, Feature.FEATURE_REASONING), name
        assert set(entry.dialect.efforts) <= set(EFFORTS), name
        assert set(entry.dialect.efforts.values()) <= WORDS, name


def test_models_of_the_example_configuration_are_there() -> None:
    sol = models(today=DAY)["gpt-6.2-sol"]
    assert (sol.model.context_window, sol.model.max_output_tokens) == (1_050_000, 128_000)
    # It can't stop reasoning, and OpenAI takes tools beside reasoning only on another wire.
    assert not supports(sol.model, Feature.FEATURE_TOOLS)
    assert sol.dialect is not None
    assert "off" not in sol.dialect.efforts


def test_prices_follow_the_day() -> None:
    usage = Usage(input_tokens=1_000_000, cache_read_tokens=500_000, output_tokens=100_000)
    before = models(today=datetime.date(2026, 8, 1))["gpt-5.6-sol"].model.price
    after = models(today=DAY)["gpt-5.6-sol"].model.price
    assert cost_of(usage, before).usd.rstrip("0") == "5.75"
    assert cost_of(usage, after).usd.rstrip("0") == "4.2"


def test_retirement() -> None:
    assert {name: entry.model.retires for name, entry in models(today=DAY).items() if entry.model.retires} == {
        "gpt-4.1": "2027-01-14",
        "gpt-4.1-mini": "2027-01-14",
        "gpt-4o": "2027-01-14",
        "gpt-4o-mini": "2027-01-14",
        "gpt-5": "2026-12-11",
        "gpt-5-mini": "2026-12-11",
        "gpt-5-nano": "2026-12-11",
        "gpt-5.1": "2027-04-01",
        "gpt-5.4-nano": "2027-04-01",
        "o3": "2026-12-11",
    }


def test_extra_entries_change_fields_and_add_models() -> None:
    found = models(
        [{"name": "o3", "context_window": 5}, {"name": "gpt-7", "native": ["CHAT", "STREAMING", "SEED"]}], DAY
    )
    assert (found["o3"].model.context_window, found["o3"].model.max_output_tokens) == (5, 100_000)
    assert not found["gpt-7"].model.HasField("price")
    added = found["gpt-7"].dialect
    assert added is not None
    assert (added.seed, added.temperature) == (True, False)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "x", "wire": "gpt-9"}, "wire 'gpt-9' is not one of plain, o3"),
        ({"name": "x", "native": ["FLYING"]}, "unknown feature 'FLYING'"),
        ({"name": "x", "colour": "red"}, "colour"),
    ],
)
def test_wrong_entries_are_named(entry: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models([entry])


def configure(path: Path, text: str) -> ProviderGroup:
    file = path / "maestro.yaml"
    file.write_text(
        f"version: 1\nadapters:\n  openai:\n    address: 127.0.0.1:1\n    settings:\n{text}", encoding="utf-8"
    )
    config = load(file, env={})
    return from_config(config, config.adapters["openai"])


def test_wrong_settings_are_told_with_their_line(tmp_path: Path) -> None:
    text = "      base_url: ftp://x\n      api_keys: 1\n      models:\n        - {name: x, wire: gpt-9}\n"
    with pytest.raises(ConfigError) as caught:
        configure(tmp_path, text)
    told = str(caught.value)
    assert "maestro.yaml:6: adapters.openai.settings.base_url" in told
    assert "maestro.yaml:7: adapters.openai.settings.api_keys" in told
    assert "maestro.yaml:8: adapters.openai.settings.models: model x: wire 'gpt-9'" in told


async def test_a_missing_key_is_told_and_refuses_every_call(tmp_path: Path) -> None:
    provider = configure(tmp_path, "      api_key: {env: SOME_KEY_THAT_IS_NOT_SET}\n")
    assert "set SOME_KEY_THAT_IS_NOT_SET" in await provider.check()
    request = ChatRequest(model="openai/gpt-4.1")
    request.messages.add(role=Role.ROLE_USER).parts.add().text.text = "hi"
    with pytest.raises(ProviderAuth, match="SOME_KEY_THAT_IS_NOT_SET"):
        await provider.complete(request)
    with pytest.raises(ProviderAuth, match="SOME_KEY_THAT_IS_NOT_SET"):
        await anext(aiter(provider.stream(request)))
    assert len(await provider.models()) > 20
    await provider.close()


async def test_a_key_in_a_file(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("sk-1\n", encoding="utf-8")
    provider = configure(tmp_path, "      api_key: {file: key}\n")
    assert await provider.check() == ""
    await provider.close()


def test_settings_never_show_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    assert "very-secret" not in repr(OpenAISettings()) + str(OpenAISettings().model_dump())


def test_golden_money() -> None:
    """Cached, written and reasoning tokens, at once and in a batch: to the nano-dollar."""
    usage = Usage(
        input_tokens=10_007,
        cache_read_tokens=6_144,
        cache_write_5m_tokens=1_024,
        output_tokens=1_303,
        reasoning_tokens=960,
    )
    price = models(today=DAY)["gpt-6-luna"].model.price
    # 2839 at $0.10, 6144 at $0.01, 1024 at $0.125, 1303 at $0.50, per million.
    assert cost_of(usage, price).usd == "0.00112484"
    price = models(today=DAY)["gpt-5.1"].model.price
    # Writes count as input here: 3863 at $1.25, 6144 at $0.125, 1303 at $10.
    assert cost_of(usage, price).usd == "0.01862675"
    assert cost_of(usage, price, batch=True).usd == "0.009313375"


async def test_openai_without_a_key_and_azure_with_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AZURE_TEST_KEY", "k-azure")
    azure = (
        "      azure: {endpoint: 'https://x.openai.azure.com/', api_key: {env: AZURE_TEST_KEY}, deployments: {o3: a}}\n"
    )
    group = configure(tmp_path, f"      api_key: {{env: SOME_KEY_THAT_IS_NOT_SET}}\n{azure}")
    assert list(group.providers) == ["openai", "azure"]
    assert await group.check() == ""
    assert [model.id for model in await group.models()] == ["azure/o3"]
    await group.close()


async def test_neither_has_a_key(tmp_path: Path) -> None:
    group = configure(
        tmp_path, "      api_key: {env: NO_KEY_1}\n      azure: {endpoint: 'https://x', api_key: {env: NO_KEY_2}}\n"
    )
    assert "set NO_KEY_1" in await group.check()
    assert "set NO_KEY_2" in await group.check()
    await group.close()


async def test_the_default_configuration_fits(monkeypatch: pytest.MonkeyPatch) -> None:
    """The repository's example file, with and without Azure."""
    file = next(folder / "maestro.yaml" for folder in Path(__file__).parents if (folder / "maestro.yaml").is_file())
    for env, providers in (
        ({}, ["openai"]),
        ({"AZURE_OPENAI_ENDPOINT": "https://x.openai.azure.com"}, ["openai", "azure"]),
    ):
        config = load(file, env=env)
        group = from_config(config, config.adapters["openai"])
        assert list(group.providers) == providers
        await group.close()
