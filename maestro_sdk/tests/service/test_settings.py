"""The configuration: layers, references, and every problem with its place."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from maestro.llm.v1.model_pb2 import Feature
from maestro_sdk.mesh.table import STRATEGIES
from maestro_sdk.service.settings import (
    Config,
    ConfigError,
    ConfigPath,
    Duration,
    Secret,
    Settings,
    Size,
    load,
)

ROOT = Path(__file__).parents[3]


def write(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "maestro.yaml"
    path.write_text(text)
    return path


def problems(tmp_path: Path, text: str, env: dict[str, str] | None = None) -> list[str]:
    """What `load` complains of, without the folder."""
    path = write(tmp_path, text)
    with pytest.raises(ConfigError) as caught:
        load(path, env or {})
    return str(caught.value).replace(f"{tmp_path}/", "").splitlines()


def test_without_a_file_the_mesh_is_complete(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    config = load(env={})
    assert config.gateway.address == "127.0.0.1:50051"
    assert config.router.breaker.quota_open_time == 300
    assert config.data == tmp_path / ".maestro"
    assert [target.model for target in config.routes["default"].targets] == [
        "anthropic/claude-sonnet-5-5",
        "openai/gpt-6.2-sol",
        "openai/gpt-6-luna",
        "local/offline",
    ]
    assert list(config.enabled_adapters({})) == ["local"]
    assert list(config.enabled_adapters({"OPENAI_API_KEY": "x", "ANTHROPIC_API_KEY": " "})) == ["openai", "local"]
    assert config.resolve("fast") == "local/offline"


CHOOSES_NOTHING = "the weights are all 0, so nothing would ever be chosen"
MATCHES_NOTHING = "says nothing: name models, tenants, personas, skills, labels or required features"
FEATURES = [name.removeprefix("FEATURE_") for name in Feature.keys()[1:]]


def test_a_pin_stands_in_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GATEWAY_PROVIDER", "claude-only")
    assert load(write(tmp_path, "{}")).router.pin == "claude-only"


def test_the_example_says_what_the_defaults_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    example = load(ROOT / "maestro.yaml", env={})
    monkeypatch.chdir(ROOT)
    defaults = load(write(tmp_path, f"base: {ROOT}"), env={})
    assert example == defaults


def test_the_examples_of_the_guide_are_configurations(tmp_path: Path) -> None:
    examples = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs" / "operations.md").read_text(), re.DOTALL)
    assert len(examples) >= 3
    for example in examples:
        load(write(tmp_path, example), env={})


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("gateway: {adress: 'a:1'}", ["maestro.yaml:1: gateway.adress: no such setting; did you mean address?"]),
        ("gatway: {}", ["maestro.yaml:1: gatway: no such setting; did you mean gateway?"]),
        ("grace: 10q", ["maestro.yaml:1: grace: '10q' is not a duration such as 250ms, 10s, 5m, 1h or 7d"]),
        ("grace: 1.0e+300", ["maestro.yaml:1: grace: 1e+300 s is longer than 3650d"]),
        ("grace: 4000d", ["maestro.yaml:1: grace: 345600000 s is longer than 3650d"]),
        ("grace: 0.1ms", ["maestro.yaml:1: grace: 0.0001 s is shorter than 1ms"]),
        (
            "router: {breaker: {minimum_calls: 5000000000, half_open_calls: 5000000000}}",
            [
                "maestro.yaml:1: router.breaker.minimum_calls: input should be less than or equal to 1000000",
                "maestro.yaml:1: router.breaker.half_open_calls: input should be less than or equal to 1000000",
            ],
        ),
        (
            "routes: {x: {targets: [a/b], max_attempts: 5000000000}}",
            ["maestro.yaml:1: routes.x.max_attempts: input should be less than or equal to 100"],
        ),
        ("\ngrace: 1s\ngrace: 2s", ["maestro.yaml:3: grace: given twice, first in line 2"]),
        (
            "routes:\n  default:\n    strategy: foo\n    targets: [a/b]",
            [f"maestro.yaml:3: routes.default.strategy: 'foo' is not one of {', '.join(STRATEGIES)}"],
        ),
        (
            "routes:\n  x:\n    targets: [a/b]\n    match: {}",
            [f"maestro.yaml:4: routes.x.match: {MATCHES_NOTHING}"],
        ),
        (
            "routes:\n  x:\n    targets: [a/b]\n    match: {required: [TELEPATHY]}",
            ["maestro.yaml:4: routes.x.match.required[0]: 'TELEPATHY' is not one of " + ", ".join(FEATURES)],
        ),
        (
            (
                "routes:\n  x:\n    targets: [a/b]\n    experiment:\n      name: e\n"
                "      variants: {one: {share: 60, targets: [a/c]}, two: {share: 41, targets: [a/d]}}"
            ),
            ["maestro.yaml:4: routes.x.experiment: the shares of the variants add up to 101 percent"],
        ),
        (
            (
                "routes:\n  x:\n    strategy: weighted\n    targets: [a/b]\n    experiment:\n      name: e\n"
                "      variants:\n        one:\n          share: 60\n          targets: [{model: a/c, weight: 0}]"
            ),
            [f"maestro.yaml:10: routes.x.experiment.variants.one.targets: {CHOOSES_NOTHING}"],
        ),
        (
            "adapters: {a: {address: 'h:1'}}\nrouter:\n  pin: b-only\n  pins: {dev: c}",
            [
                "maestro.yaml:3: router.pin: 'b-only' is not an adapter; there are: a",
                "maestro.yaml:4: router.pins.dev: 'c' is not an adapter; there are: a",
            ],
        ),
        ("routes: {x: {targets: []}}", ["maestro.yaml:1: routes.x.targets: must have at least one entry"]),
        ("routes: {x: {}}", ["maestro.yaml:1: routes.x.targets: is required"]),
        (
            "routes:\n  x:\n    targets:\n    - gpt\n    - {model: b/c}",
            ["maestro.yaml:4: routes.x.targets[0].model: 'gpt' is not a model such as anthropic/claude-sonnet-5-5"],
        ),
        (
            "routes: {x: {strategy: weighted, targets: [{model: a/b, weight: 0}]}}",
            ["maestro.yaml:1: routes.x.targets: the weights are all 0, so nothing would ever be chosen"],
        ),
        ("routes: {x: {targets: [a/b, a/b]}}", ["maestro.yaml:1: routes.x.targets: a/b stands 2 times"]),
        ("aliases: {default: a/b}", ["maestro.yaml:1: aliases.default: is the name of a route too"]),
        (
            "aliases:\n  a: b\n  b: c\n  c: a",
            [
                "maestro.yaml:2: aliases.a: goes round in a circle: a → b → c → a",
                "maestro.yaml:3: aliases.b: goes round in a circle: b → c → a → b",
                "maestro.yaml:4: aliases.c: goes round in a circle: c → a → b → c",
            ],
        ),
        (
            "aliases: {a: nowhere}",
            ["maestro.yaml:1: aliases.a: 'nowhere' is neither provider/model nor a route or alias; there are: default"],
        ),
        (
            "aliases: {a/b: c/d}",
            ["maestro.yaml:1: aliases.a/b: 'a/b' is not a name: an alias has no slash and no space"],
        ),
        (
            "gateway:\n  keys:\n  - {tenant: a, key: {env: K}}\n  - {tenant: b, key: {env: K}}",
            ["maestro.yaml:4: gateway.keys[1].key: K is the key of gateway.keys[0] already"],
        ),
        (
            "gateway: {keys: [{tenant: a.b, key: {env: K}}]}",
            ["maestro.yaml:1: gateway.keys[0].tenant: 'a.b' is not a tenant: letters, digits, - and _, 64 at most"],
        ),
        (
            "gateway: {keys: [{tenant: a, key: mk-secret}]}",
            ["maestro.yaml:1: gateway.keys[0].key: keys never stand in the file: use {env: NAME} or {file: PATH}"],
        ),
        (
            "gateway: {keys: [{tenant: a, key: {env: A, file: B}}]}",
            ["maestro.yaml:1: gateway.keys[0].key: give either env or file"],
        ),
        (
            "adapters:\n  x:\n    address: 'h:1'\n    settings:\n      api_key: sk-secret",
            [
                (
                    "maestro.yaml:5: adapters.x.settings.api_key: "
                    "keys never stand in the file: use {env: NAME} or {file: PATH}"
                )
            ],
        ),
        (
            "adapters: {x: {address: 'h:1', enabled: perhaps}}",
            ["maestro.yaml:1: adapters.x.enabled: must be true, false, {env: NAME} or {env: [NAME, …]}"],
        ),
        (
            "router: {address: '127.0.0.1:50051'}",
            ["maestro.yaml:1: router.address: 127.0.0.1:50051 is the address of gateway.address already"],
        ),
        (
            "router: {address: localhost}",
            ["maestro.yaml:1: router.address: 'localhost' is not an address such as 127.0.0.1:50051"],
        ),
        ("data: 'x${HOME'", ["maestro.yaml:1: data: '${HOME' names no variable; write $${ for a plain ${"]),
        ("data: '${A B}'", ["maestro.yaml:1: data: '${A B}' names no variable; write $${ for a plain ${"]),
        ("nats: {url: 'http://x'}", ["maestro.yaml:1: nats.url: is not an address such as nats://127.0.0.1:4222"]),
        (
            "telemetry: {otlp_endpoint: 'no address'}",
            ["maestro.yaml:1: telemetry.otlp_endpoint: 'no address' is not an address such as http://127.0.0.1:4317"],
        ),
        ("gateway: {max_body: 0}", ["maestro.yaml:1: gateway.max_body: input should be greater than or equal to 1024"]),
        (
            "gateway: {max_body: 100GB}",
            ["maestro.yaml:1: gateway.max_body: input should be less than or equal to 16777216"],
        ),
        # What is wrong alone and what contradicts something else are told in one go.
        (
            (
                "grace: 1q\n"
                "gateway:\n  keys:\n  - {tenant: a, key: {env: K}}\n  - {tenant: b, key: {env: K}}\n"
                "routes:\n  x: {targets: []}\n  y: {targets: [a/b, a/b]}\n"
                "aliases:\n  a: x\n  b: 5\n  c: c\n"
            ),
            [
                "maestro.yaml:1: grace: '1q' is not a duration such as 250ms, 10s, 5m, 1h or 7d",
                "maestro.yaml:5: gateway.keys[1].key: K is the key of gateway.keys[0] already",
                "maestro.yaml:7: routes.x.targets: must have at least one entry",
                "maestro.yaml:8: routes.y.targets: a/b stands 2 times",
                "maestro.yaml:11: aliases.b: input should be a valid string",
                "maestro.yaml:12: aliases.c: goes round in a circle: c → c",
            ],
        ),
        ("router:\n- 1", ["maestro.yaml:1: router: must be a mapping"]),
        ("- 1", ["maestro.yaml:1: the top is not a mapping"]),
        ("a: [1,", ["maestro.yaml:1: not YAML: expected the node content, but found '<stream end>'"]),
        ("a: 'sk-secret", ["maestro.yaml:1: not YAML: found unexpected end of stream"]),
        (
            "nats:\n  url: ${NATS_URL}",
            ["maestro.yaml:2: nats.url: the variable NATS_URL is not set; set it, or give a default: ${NATS_URL:-…}"],
        ),
        ("events: {spool: much}", ["maestro.yaml:1: events.spool: 'much' is not a size such as 3145728, 64MiB or 1GB"]),
        ("version: 2", ["maestro.yaml:1: version: 2 is not one of 1"]),
    ],
)
def test_a_problem_has_its_line_and_path(tmp_path: Path, text: str, expected: list[str]) -> None:
    assert problems(tmp_path, text) == expected


def test_all_problems_are_told_at_once_and_none_tells_a_key(tmp_path: Path) -> None:
    text = """\
grace: soon
gateway: {ping: 0s, keys: [{tenant: a, key: mk-very-secret}]}
routes: {r: {targets: [x]}}
events: {queue: many}
"""
    found = problems(tmp_path, text, {"MAESTRO__ROUTER__ADDRESS": "nowhere"})
    assert [line.split(": ")[:2] for line in found] == [
        ["maestro.yaml:1", "grace"],
        ["maestro.yaml:2", "gateway.keys[0].key"],
        ["maestro.yaml:2", "gateway.ping"],
        ["maestro.yaml:3", "routes.r.targets[0].model"],
        ["maestro.yaml:4", "events.queue"],
        ["MAESTRO__ROUTER__ADDRESS", "router.address"],
    ]
    assert "very-secret" not in "\n".join(found)


def test_the_environment_lies_over_the_file(tmp_path: Path) -> None:
    path = write(tmp_path, "gateway: {address: 'a:1'}\nadapters: {my-own: {address: 'b:2', settings: {x: 1}}}")
    env = {
        "MAESTRO__GATEWAY__ADDRESS": "0.0.0.0:7",
        "MAESTRO__ADAPTERS__MY_OWN__SETTINGS__Y": "[1, two]",
        "MAESTRO__TELEMETRY__OTLP_ENDPOINT": "",
        "MAESTRO__GRACE": "90s",
        "MAESTRO_KEY": "unrelated",
    }
    config = load(path, env)
    assert config.gateway.address == "0.0.0.0:7"
    assert config.adapters["my-own"].settings == {"x": 1, "y": [1, "two"]}
    assert config.telemetry.otlp_endpoint == ""
    assert config.grace == 90


def test_references_are_replaced_in_strings(tmp_path: Path) -> None:
    text = 'nats: {url: "nats://${HOST:-localhost}:${PORT}"}\naliases: {a: "p/${M:-}x", b: "p/$${M}"}'
    config = load(write(tmp_path, text), {"PORT": "1", "M": "m"})
    assert config.nats.url == "nats://localhost:1"
    assert config.aliases == {"a": "p/mx", "b": "p/${M}"}


def test_a_merge_key_is_no_double(tmp_path: Path) -> None:
    text = "routes:\n  a: &base {max_attempts: 2, targets: [p/m]}\n  b: {<<: *base, max_attempts: 5}"
    routes = load(write(tmp_path, text), {}).routes
    assert (routes["a"].max_attempts, routes["b"].max_attempts) == (2, 5)
    assert routes["b"].targets == routes["a"].targets


def test_what_is_written_reads_the_same_anywhere(tmp_path: Path) -> None:
    text = "aliases: {b: 'p/$${M}'}\ngateway: {keys: [{tenant: a, key: {file: key.txt}}]}\ndata: state"
    (tmp_path / "key.txt").write_text("the-key\n")
    config = load(write(tmp_path, text), {}).replaced(
        {"gateway.address": "127.0.0.1:0", "adapters.local.address": "127.0.0.1:9"}
    )
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    again = load(write(elsewhere, config.to_yaml()), {})
    assert again == config
    assert again.data == tmp_path / "state"
    assert again.gateway.keys[0].key.get() == "the-key"
    assert (again.gateway.address, again.adapters["local"].address) == ("127.0.0.1:0", "127.0.0.1:9")


def test_a_wrong_replacement_is_refused(tmp_path: Path) -> None:
    config = load(write(tmp_path, "grace: 1s"), {})
    with pytest.raises(ConfigError, match="grace: 'x' is not a duration"):
        config.replaced({"grace": "x"})


def test_the_file_is_found_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other.yaml").write_text("grace: 1s")
    write(tmp_path, "grace: 2s")
    monkeypatch.chdir(tmp_path)
    assert load(env={"MAESTRO_CONFIG": "other.yaml"}).grace == 1
    assert load(env={}).grace == 2
    with pytest.raises(ConfigError, match=r"gone\.yaml: there is no such file"):
        load(env={"MAESTRO_CONFIG": "gone.yaml"})


class ServerSettings(Settings):
    name: str
    api_key: Secret | None = None


class LocalSettings(Settings):
    servers: tuple[ServerSettings, ...] = ()
    timeout: Duration = 60.0
    most: Size = 10
    script: ConfigPath | None = None


def test_an_adapters_settings_are_its_own_model(tmp_path: Path) -> None:
    text = """\
adapters:
  local:
    address: a:1
    settings:
      timeout: 1m30s
      most: 2KiB
      script: answers.yaml
      servers:
      - {name: x, api_key: {env: SOME_KEY}}
"""
    settings = load(write(tmp_path, text), {}).adapters["local"].settings_as(LocalSettings)
    assert (settings.timeout, settings.most, settings.script) == (90, 2048, tmp_path / "answers.yaml")
    key = settings.servers[0].api_key
    assert key is not None
    assert key.get({"SOME_KEY": " a-key-of-mine "}) == "a-key-of-mine"
    assert key.get({"SOME_KEY": ""}) is None
    assert "a-key-of-mine" not in repr(settings) + settings.model_dump_json()


def test_an_adapters_wrong_settings_have_lines_too(tmp_path: Path) -> None:
    text = """\
adapters:
  local:
    address: a:1
    settings:
      timeout: never
      servers:
      - name: x
      - api_keys: {env: K}
"""
    config = load(write(tmp_path, text), {})
    with pytest.raises(ConfigError) as caught:
        config.adapters["local"].settings_as(LocalSettings)
    path = "adapters.local.settings"
    assert str(caught.value).replace(f"{tmp_path}/", "").splitlines() == [
        f"maestro.yaml:5: {path}.timeout: 'never' is not a duration such as 250ms, 10s, 5m, 1h or 7d",
        f"maestro.yaml:8: {path}.servers[1].name: is required",
        f"maestro.yaml:8: {path}.servers[1].api_keys: no such setting; did you mean api_key?",
    ]


def test_a_configuration_never_changes(tmp_path: Path) -> None:
    config = load(write(tmp_path, ""), {})
    with pytest.raises(ValueError, match="frozen"):
        config.grace = 1
    assert isinstance(config, Config)
