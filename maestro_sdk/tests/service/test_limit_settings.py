"""Limits in a configuration: what they may look like, what is told of wrong ones, and how they change while it runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from maestro_sdk.service.hot_reload import changed_paths, merge
from maestro_sdk.service.settings import Config, ConfigError, LimitConfig, RateConfig, load

KEYS = "gateway: {keys: [{tenant: acme, name: billing, key: {env: A}}], replicas: 1}\n"


def read(tmp_path: Path, text: str) -> Config:
    path = tmp_path / "maestro.yaml"
    path.write_text(text)
    return load(path, {})


def test_rates_sizes_and_spans(tmp_path: Path) -> None:
    config = read(
        tmp_path,
        "limits:\n  every_tenant: {requests: 100, tokens: {limit: 5000, per: 10s}, concurrency: 4, max_part: 64KiB}\n"
        "  tenants: {acme: {requests: {limit: 7}}}\n",
    )
    assert config.limits.every_tenant == LimitConfig(
        requests=RateConfig(limit=100, per=60.0),
        tokens=RateConfig(limit=5000, per=10.0),
        concurrency=4,
        max_part=65536,
    )
    assert config.limits.tenants["acme"].requests == RateConfig(limit=7, per=60.0)
    assert load(_written(tmp_path, config), {}).limits == config.limits


def _written(tmp_path: Path, config: Config) -> Path:
    path = tmp_path / "again.yaml"
    path.write_text(config.to_yaml())
    return path


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "limits:\n  every_key: {jobs: 2}",
            "maestro.yaml:2: limits.every_key.jobs: is limited per tenant only: limits.every_tenant, limits.tenants",
        ),
        (
            "limits:\n  every_tenant:\n    requests: 0",
            "maestro.yaml:3: limits.every_tenant.requests.limit: input should be greater than or equal to 1",
        ),
        (
            "limits:\n  tenants:\n    acme: {concurrency: -1}",
            "maestro.yaml:3: limits.tenants.acme.concurrency: input should be greater than or equal to 1",
        ),
        (
            "limits:\n  every_key:\n    tokens: {limit: 5, per: often}",
            "maestro.yaml:3: limits.every_key.tokens.per: 'often' is not a duration such as 250ms, 10s, 5m, 1h or 7d",
        ),
        (
            "limits:\n  every_key:\n    tokens: 100/hour",
            "maestro.yaml:3: limits.every_key.tokens: is neither a number for a minute nor {limit: 100, per: 10s}",
        ),
        (
            "limits:\n  every_key:\n    tokens: true",
            "maestro.yaml:3: limits.every_key.tokens: is neither a number for a minute nor {limit: 100, per: 10s}",
        ),
        (
            "limits:\n  every_key: {requests: {limit: 5, per: 2d}}",
            "maestro.yaml:2: limits.every_key.requests.per: input should be less than or equal to 86400",
        ),
        (
            "limits:\n  every_key: {request: 5}",
            "maestro.yaml:2: limits.every_key.request: no such setting; did you mean requests?",
        ),
        (
            "limits: {on_store_failure: maybe}",
            "maestro.yaml:1: limits.on_store_failure: 'maybe' is not one of allow, deny",
        ),
        (
            f"{KEYS}limits:\n  tenants:\n    acmee: {{requests: 5}}",
            (
                "maestro.yaml:4: limits.tenants.acmee: no key belongs to 'acmee', so this would limit nobody; "
                "did you mean acme?"
            ),
        ),
        (
            f"{KEYS}limits:\n  tenants:\n    a b: {{requests: 5}}",
            "maestro.yaml:4: limits.tenants.a b: 'a b' is not a tenant: letters, digits, - and _, 64 at most",
        ),
        (
            f"{KEYS}limits:\n  keys:\n    biling: {{requests: 5}}",
            (
                "maestro.yaml:4: limits.keys.biling: no key is named 'biling', so this would limit nobody; "
                "did you mean billing?"
            ),
        ),
        (
            "limits:\n  providers:\n    openai: {requests: 5, max_part: 1KiB}",
            (
                "maestro.yaml:3: limits.providers.openai: max_part is a limit of callers; at a provider count "
                "requests, tokens or concurrency"
            ),
        ),
        (
            "limits:\n  every_tenant: {providers: {openai: {jobs: 5}}}",
            (
                "maestro.yaml:2: limits.every_tenant.providers.openai: jobs is a limit of callers; at a provider count "
                "requests, tokens or concurrency"
            ),
        ),
        (
            "limits:\n  providers:\n    openai: {concurrency: 0}",
            "maestro.yaml:3: limits.providers.openai.concurrency: input should be greater than or equal to 1",
        ),
        (
            "limits:\n  providers:\n    anthropc: {requests: 5}",
            (
                "maestro.yaml:3: limits.providers.anthropc: no route names provider 'anthropc', so this would limit "
                "nobody; did you mean anthropic?"
            ),
        ),
        (
            "limits:\n  every_tenant:\n    providers:\n      'open ai': {requests: 5}",
            (
                "maestro.yaml:4: limits.every_tenant.providers.open ai: 'open ai' is no provider, provider/model, "
                "adapter:provider or adapter:provider/model"
            ),
        ),
        (
            "limits:\n  providers:\n    eu:openai: {requests: 5}",
            (
                "maestro.yaml:3: limits.providers.eu:openai: 'eu' is not an adapter; there are: claude, openai, "
                "vertex, bedrock, local"
            ),
        ),
        (
            "limits:\n  every_key: {providers: {openai: {requests: 5}}}",
            (
                "maestro.yaml:2: limits.every_key.providers: are limited per tenant and for all: limits.every_tenant, "
                "limits.tenants, limits.providers"
            ),
        ),
        (
            "gateway: {replicas: 3}\nlimits:\n  providers: {openai: {requests: 5}}",
            "maestro.yaml:2: limits: each of the 3 gateways would count for itself: set store.url to share the counts",
        ),
        (
            "gateway: {replicas: 3}\nlimits:\n  personas: {dev: {concurrency: 5}}",
            "maestro.yaml:2: limits: each of the 3 gateways would count for itself: set store.url to share the counts",
        ),
        (
            "store: {url: 'http://127.0.0.1:6379'}",
            (
                "maestro.yaml:1: store.url: 'http://127.0.0.1:6379' is not an address such as redis://127.0.0.1:6379 "
                "or rediss://HOST:6379/0"
            ),
        ),
        (
            "store:\n  url: redis://:hunter22@127.0.0.1:6379",
            (
                "maestro.yaml:2: store.url: a password never stands in the file: use store.password with {env: NAME} "
                "or {file: PATH}"
            ),
        ),
    ],
)
def test_wrong_limits_are_told_with_their_place(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(ConfigError) as caught:
        read(tmp_path, text)
    told = [str(problem).replace(f"{tmp_path}/", "") for problem in caught.value.problems]
    assert told == [expected]
    assert "hunter22" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        f"{KEYS}limits: {{tenants: {{acme: {{requests: 5}}, elsewhere: {{requests: 5}}}}}}",
        f"{KEYS}limits: {{keys: {{billing: {{requests: 5}}, key_0123456789abcdef: {{requests: 5}}}}}}",
        "limits: {providers: {openai: {requests: 5}, other: {}, openai/gpt-6-luna: {}, 'local:local/a:b': {}}}",
        "limits: {every_tenant: {providers: {'openai:azure': {tokens: {limit: 5, per: 1h}}}}}",
        "gateway: {replicas: 3}\nlimits: {every_tenant: {max_part: 1KiB}}",
        "gateway: {replicas: 3}\nlimits: {every_tenant: {requests: 1}}\nstore: {url: 'redis://h:6379'}",
    ],
)
def test_what_is_no_mistake(tmp_path: Path, text: str) -> None:
    assert read(tmp_path, text).limits != read(tmp_path, "{}").limits


def test_limits_change_while_it_runs_and_the_store_does_not(tmp_path: Path) -> None:
    before = read(tmp_path, "limits: {every_tenant: {requests: 1}}")
    after = read(tmp_path, "limits: {every_tenant: {requests: 2}}\nstore: {url: 'redis://h:6379'}")
    hot, cold = changed_paths(before, after)
    assert (hot, cold) == (["limits.every_tenant.requests.limit"], ["store.url"])
    merged = merge(before, after)
    assert merged.limits == after.limits
    assert merged.store == before.store
