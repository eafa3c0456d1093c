"""What webhooks decide without a network: signatures, the meaning of answers, pauses, and bad settings."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
import yaml

from maestro_gateway.webhooks.hook import Hook
from maestro_gateway.webhooks.outcome import Failed, Gone, Outcome, Taken, judge, pause
from maestro_gateway.webhooks.signature import decode_secret, signed
from maestro_sdk.service.settings import ConfigError, Secret, load
from maestro_sdk.service.webhooks import WebhookConfig
from maestro_sdk.testing.receiver import faults

VECTOR = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"
OTHER = "whsec_" + base64.b64encode(b"o" * 32).decode()
NOW = 1_614_265_330.0


def test_the_published_example_of_the_specification() -> None:
    body = b'{"test": 2432232314}'
    headers = signed([decode_secret(VECTOR)], "msg_p5jXN8AQM9LWM0D4loKWxJek", int(NOW), body)
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
    assert faults([VECTOR], headers, body, NOW) == []
    assert faults([VECTOR], headers, body + b" ", NOW) == ["secret 0 did not sign it"]
    assert faults([VECTOR], headers, body, NOW + 301) == ["its time is 1614265330"]


def test_two_secrets_sign_both() -> None:
    headers = signed([decode_secret(OTHER), decode_secret(VECTOR)], "m", int(NOW), b"{}")
    assert [each.partition(",")[0] for each in headers["webhook-signature"].split(" ")] == ["v1", "v1"]
    assert faults([VECTOR], headers, b"{}", NOW) == faults([OTHER], headers, b"{}", NOW) == []
    assert faults([OTHER], signed([decode_secret(VECTOR)], "m", int(NOW), b"{}"), b"{}", NOW) != []


@pytest.mark.parametrize("bad", ["", "secret", "whsec_", "whsec_????", "whsec_" + "QUFB" * 5, "whsec_" + "QUFB" * 40])
def test_what_is_no_secret_is_told_without_it(bad: str) -> None:
    with pytest.raises(ValueError, match="its secret") as caught:
        decode_secret(bad)
    assert "QUFB" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "headers", "meaning"),
    [
        (200, {}, Taken(200)),
        (204, {}, Taken(204)),
        (410, {}, Gone()),
        (301, {"location": "https://elsewhere"}, None),
        (429, {"retry-after": "7"}, Failed("it answered 429", 429, 7.0)),
        (503, {"retry-after": "Thu, 25 Feb 2021 15:02:20 GMT"}, Failed("it answered 503", 503, 10.0)),
        (503, {"retry-after": "Thu, 25 Feb 2021 15:00:00 GMT"}, Failed("it answered 503", 503, 0.0)),
        (503, {"retry-after": "99999999"}, Failed("it answered 503", 503, 86400.0)),
        (500, {"retry-after": "soon"}, Failed("it answered 500", 500, 0.0)),
        (404, {}, Failed("it answered 404", 404)),
        (101, {}, Failed("it answered 101", 101)),
    ],
)
def test_meanings(status: int, headers: dict[str, str], meaning: Outcome | None) -> None:
    found = judge(status, headers, NOW)
    if meaning is None:
        assert isinstance(found, Failed)
        assert "redirects are not followed" in found.reason
    else:
        assert found == meaning


def test_pauses_grow_to_their_bound_and_obey_the_receiver() -> None:
    config = WebhookConfig(url="https://x/y", secret=Secret(env="X"), back_off=1, longest_back_off=100)
    assert [pause(config, attempt, 0.0, 0.5) for attempt in (1, 2, 3, 4, 5, 50)] == [1, 4, 16, 64, 100, 100]
    assert (pause(config, 2, 0.0, 0.0), pause(config, 2, 0.0, 1.0)) == (3.0, 5.0)
    assert pause(config, 1, 30.0, 1.0) == 30.0


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ({"url": "http://example.com/x"}, "has to be https"),
        ({"url": "ftp://example.com/x"}, "is not an address such as https://host/path"),
        ({"url": "https://u:p@example.com"}, "never stand in the file"),
        ({"url": "https://example.com/#x"}, "is not an address"),
        ({"url": "https:///x"}, "is not an address"),
        ({"url": "http://127.0.0.1.example.com/x"}, "has to be https"),
        ({"secret": "whsec_abc"}, "keys never stand in the file"),
        ({"kinds": ["request.compleated"]}, "is no kind of event"),
        ({"kinds": [">"]}, "is no kind of event"),
        ({"attempts": 0}, "greater than or equal to 1"),
        ({"timeout": "2m"}, "less than or equal to 60"),
        ({"retries": 3}, "no such setting"),
    ],
)
def test_a_bad_webhook_stops_the_start_with_its_path(tmp_path: Path, setting: dict[str, Any], said: str) -> None:
    good = {"url": "https://example.com/x?token=1", "secret": {"env": "X"}}
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, "acme", "orders", good | setting), {})
    (problem,) = caught.value.problems
    assert problem.path.startswith("tenants.acme.webhooks.orders")
    assert said in problem.message
    assert "token=1" not in str(problem)


@pytest.mark.parametrize(
    ("tenant", "name"), [("*", "orders"), ("a.b", "orders"), (">", "o"), ("acme", "a=b"), ("acme", "A")]
)
def test_names_that_would_be_other_subjects_or_consumers(tmp_path: Path, tenant: str, name: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(written(tmp_path, tenant, name, {"url": "https://example.com", "secret": {"env": "X"}}), {})
    assert "is no" in caught.value.problems[0].message or "not a name" in caught.value.problems[0].message


def test_the_address_for_people_has_no_query() -> None:
    config = WebhookConfig(url="https://example.com/x?token=1", secret=Secret(env="X"), kinds=("job.*", "job.queued"))
    hook = Hook("acme", "orders", config)
    assert hook.address == "https://example.com/x"
    assert (hook.consumer, hook.subjects) == ("webhook=acme=orders", ["maestro.events.acme.job.*"])


def written(folder: Path, tenant: str, name: str, webhook: dict[str, Any]) -> Path:
    file = folder / "maestro.yaml"
    file.write_text(yaml.safe_dump({"version": 1, "tenants": {tenant: {"webhooks": {name: webhook}}}}))
    return file
