"""What a configuration makes of a mesh: programs, ports, and who gets which key."""

from __future__ import annotations

import stat
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest
import yaml

from maestro_sdk.cli.folder import Folder
from maestro_sdk.cli.programs import Program, environment_for, freed, listeners, moved, own_nats, programs, settled
from maestro_sdk.cli.replicas import introduced, replicas
from maestro_sdk.cli.up import with_key, with_mesh_token
from maestro_sdk.service.replica import process_name
from maestro_sdk.service.settings import Config, ConfigError, load

ROOT = Path(__file__).resolve().parents[3]
ENVIRONMENT = {"ANTHROPIC_API_KEY": "ka", "OPENAI_API_KEY": "ko", "MAESTRO_KEY": "mk-1", "HOME": "/home/me"}


def configured(tmp_path: Path, text: str = "version: 1\n", environment: Mapping[str, str] = ENVIRONMENT) -> Config:
    file = tmp_path / "maestro.yaml"
    file.write_text(text + f"envoy: {{directory: {ROOT / 'envoy'}}}\n")
    return load(file, environment)


def by_name(found: list[Program]) -> dict[str, Program]:
    return {each.name: each for each in found}


def made(config: Config, environment: Mapping[str, str] = ENVIRONMENT) -> dict[str, Program]:
    folder = Folder(config.data)
    folder.create()
    further = replicas(config, lambda count: list(range(9001, 9001 + count)))
    return by_name(programs(introduced(config, further), further, folder, environment))


def test_nats_first_then_services_then_envoy(tmp_path: Path) -> None:
    found = made(configured(tmp_path))
    assert list(found) == ["nats", "adapter-claude", "adapter-openai", "adapter-local", "router", "gateway", "envoy"]
    assert found["gateway"].command == (sys.executable, "-P", "-m", "maestro_gateway")
    assert [name for name, each in found.items() if each.essential] == ["gateway", "envoy"]


def test_one_program_serves_several_adapters(tmp_path: Path) -> None:
    text = (
        "adapters:\n"
        "  east: {module: maestro_adapter_local, address: 127.0.0.1:9101}\n"
        "  west: {module: maestro_adapter_local, address: 127.0.0.1:9102}\n"
        "routes: {default: {targets: [local/offline]}}\naliases: {}\n"
    )
    found = made(configured(tmp_path, text))
    told = {name: each.environment["MAESTRO_ADAPTER"] for name, each in found.items() if "adapter" in name}
    assert told == {"adapter-east": "east", "adapter-west": "west"}
    assert "MAESTRO_ADAPTER" not in found["gateway"].environment


def test_replicas_have_names_addresses_and_folders_of_their_own(tmp_path: Path) -> None:
    text = "gateway: {replicas: 3, websocket: '[::1]:8081'}\nrouter: {replicas: 2, others: [far.example:50052]}\n"
    config = configured(tmp_path, text)
    found = made(config)
    assert list(found)[-6:] == ["router", "router-2", "gateway", "gateway-2", "gateway-3", "envoy"]
    assert {name: each.address for name, each in found.items() if each.service in {"gateway", "router"}} == {
        "router": "127.0.0.1:50052",
        "router-2": "127.0.0.1:9005",
        "gateway": "127.0.0.1:50051",
        "gateway-2": "127.0.0.1:9001",
        "gateway-3": "127.0.0.1:9003",
    }
    assert [(each.service, each.essential) for each in found.values()][-3:-1] == [("gateway", True)] * 2
    assert found["gateway-3"].command == found["gateway"].command
    # What the processes read: the shared file, and over it what is their own.
    seen = {name: load(config.data / "run/maestro.yaml", found[name].environment) for name in found if name != "envoy"}
    assert {str(each.gateway.websocket) for each in seen.values()} == {"[::1]:8081", "[::1]:9002", "[::1]:9004"}
    assert seen["gateway-3"].gateway.address == "127.0.0.1:9003"
    for name in ("gateway", "gateway-3", "router"):
        routers = (seen[name].router.address, *seen[name].router.others)
        assert routers == ("127.0.0.1:50052", "127.0.0.1:9005", "far.example:50052"), name
    assert seen["router-2"].router.address == "127.0.0.1:9005"
    data = {name: str(seen[name].data.relative_to(config.data)) for name in ("gateway", "gateway-2", "router-2")}
    assert data == {"gateway": ".", "gateway-2": "gateway-2", "router-2": "router-2"}
    assert [process_name("x", each.environment) for each in found.values() if each.service == "gateway"] == [
        "gateway",
        "gateway-2",
        "gateway-3",
    ]
    envoy = (config.data / "run/envoy.yaml").read_text()
    assert all(f"port_value: {port}\n" in envoy for port in (50051, 9001, 9003, 8081, 9002, 9004))
    assert found["envoy"].command[found["envoy"].command.index("--concurrency") + 1] == "2"


def test_one_process_of_a_service_is_what_nobody_asks_for(tmp_path: Path) -> None:
    config = configured(tmp_path)
    assert replicas(config, lambda count: [1] * count) == []
    assert introduced(config, []) is config


def test_only_enabled_adapters_that_run_here(tmp_path: Path) -> None:
    text = """
adapters:
  local: {module: maestro_adapter_local, address: 127.0.0.1:50065, enabled: false}
  far: {address: 10.0.0.1:50070}
  near: {module: maestro_adapter_near, address: 127.0.0.1:50071, enabled: {env: NEAR_KEY}}
routes: {default: {targets: [x/y]}}
aliases: {}
"""
    assert "adapter-near" in made(configured(tmp_path, text), {**ENVIRONMENT, "NEAR_KEY": "k"})
    names = set(made(configured(tmp_path, text)))
    assert names == {"nats", "router", "gateway", "envoy"}


def test_what_somebody_says_to_grpc_stays_said(tmp_path: Path) -> None:
    config = configured(tmp_path)
    assert environment_for("gateway.", config, {})["GRPC_EXPERIMENTS"] == "-event_engine_client,-event_engine_listener"
    own = environment_for("gateway.", config, {"GRPC_EXPERIMENTS": "mine"})
    assert (own["GRPC_EXPERIMENTS"], own["GRPC_ENABLE_FORK_SUPPORT"]) == ("mine", "0")


def test_a_process_gets_its_own_keys_only(tmp_path: Path) -> None:
    found = made(configured(tmp_path))
    keys = {"ANTHROPIC_API_KEY", "OPENAI_API_KEY", "MAESTRO_KEY"}
    assert {name: keys & each.environment.keys() for name, each in found.items()} == {
        "nats": set(),
        "adapter-claude": {"ANTHROPIC_API_KEY"},
        "adapter-openai": {"OPENAI_API_KEY"},
        "adapter-local": set(),
        "router": set(),
        "gateway": {"MAESTRO_KEY"},
        "envoy": set(),
    }
    assert all(each.environment["HOME"] == "/home/me" for each in found.values())
    assert not any("mk-1" in part for each in found.values() for part in each.command)


def test_keys_that_nobody_refers_to_reach_nobody_but_adapters(tmp_path: Path) -> None:
    text = """
adapters: {near: {module: maestro_adapter_near, address: 127.0.0.1:50071}}
routes: {default: {targets: [x/y]}}
aliases: {}
"""
    secrets = ("AWS_CONTAINER_AUTHORIZATION_TOKEN", "GITHUB_TOKEN", "DB_PASSWORD", "AZURE_CLIENT_SECRET", "mykey_key")
    known = ("ANTHROPIC_API_KEY", "OPENAI_API_KEY", "AWS_SECRET_ACCESS_KEY", "GOOGLE_APPLICATION_CREDENTIALS")
    plain = ("SSL_CERT_FILE", "KEYBOARD", "OTEL_SERVICE_NAME", "TOKENIZERS_PARALLELISM")
    environment = {**ENVIRONMENT, **dict.fromkeys((*secrets, *known, *plain), "x")}
    found = made(configured(tmp_path, text, environment), environment)
    for name, each in found.items():
        assert set(plain) <= each.environment.keys(), name
        assert not set(known) & each.environment.keys(), name
        # A cloud's SDK finds its credentials by variables that no configuration names.
        assert set(secrets) & each.environment.keys() == (set(secrets) if name == "adapter-near" else set()), name


def test_files_of_the_users_folder_are_not_imported(tmp_path: Path) -> None:
    (tmp_path / "json.py").write_text("raise RuntimeError('imported')\n")
    *options, _ = made(configured(tmp_path))["gateway"].command
    answer = subprocess.run([*options, "json.tool"], cwd=tmp_path, input=b"{}", capture_output=True, check=False)
    assert (answer.returncode, answer.stdout, answer.stderr) == (0, b"{}\n", b"")


def test_the_resolved_file_gives_the_same_mesh_without_any_key(tmp_path: Path) -> None:
    config = configured(tmp_path)
    made(config)
    file = config.data / "run/maestro.yaml"
    assert file.stat().st_mode & 0o077 == 0
    assert "mk-1" not in file.read_text()
    again = load(file, {})
    assert set(again.enabled_adapters({})) == {"claude", "openai", "local"}
    assert again.data == config.data


def test_variables_of_the_parent_do_not_undo_the_chosen_ports(tmp_path: Path) -> None:
    environment = {**ENVIRONMENT, "MAESTRO__GATEWAY__ADDRESS": "127.0.0.1:7"}
    config = freed(
        configured(tmp_path, environment=environment), environment, free=lambda count: list(range(9000, 9000 + count))
    )
    gateway = made(config, environment)["gateway"]
    assert "MAESTRO__GATEWAY__ADDRESS" not in gateway.environment
    written = yaml.safe_load(Path(gateway.environment["MAESTRO_CONFIG"]).read_text())
    assert written["gateway"]["address"] == config.gateway.address
    assert config.gateway.address != "127.0.0.1:7"


def test_free_ports_for_everything_but_the_public_one(tmp_path: Path) -> None:
    config = configured(tmp_path)
    changed = freed(config, ENVIRONMENT, free=lambda count: list(range(9000, 9000 + count)))
    before = {each.setting: each.address for each in listeners(config, ENVIRONMENT)}
    after = {each.setting: each.address for each in listeners(changed, ENVIRONMENT)}
    assert after.pop("envoy.address") == before.pop("envoy.address")
    assert sorted(int(address.rpartition(":")[2]) for address in after.values()) == list(range(9000, 9000 + len(after)))
    assert changed.nats.url == f"nats://{after['nats.url']}"


def test_port_0_is_chosen_and_any_other_is_kept(tmp_path: Path) -> None:
    config = configured(tmp_path)
    assert moved(config, {}, port=0, free=lambda _: [9000]).envoy.address == "127.0.0.1:9000"
    assert moved(config, {}, port=81, free=lambda _: []).envoy.address == "127.0.0.1:81"
    assert moved(config, {}, port=None, free=lambda _: []).envoy.address == "127.0.0.1:8080"


@pytest.mark.parametrize(
    ("url", "address"),
    [
        ("nats://127.0.0.1:4300", "127.0.0.1:4300"),
        ("nats://localhost", "localhost:4222"),
        ("nats://nats.example:4222", None),
        ("nats://127.0.0.1:1,nats://127.0.0.1:2", None),
    ],
)
def test_whose_nats_it_is(tmp_path: Path, url: str, address: str | None) -> None:
    assert own_nats(configured(tmp_path, f"nats: {{url: '{url}'}}\n")) == address


def test_development_key_is_made_once_and_only_when_none_is_given(tmp_path: Path) -> None:
    config = configured(tmp_path, environment={})
    folder = Folder(config.data)
    folder.create()
    environment, key, shown = with_key(config, folder, {"MAESTRO_KEY": "mk-mine"})
    assert (environment["MAESTRO_KEY"], key, shown) == ("mk-mine", "mk-mine", "mk-mine")
    assert not (folder.root / "key").exists()
    environment, key, shown = with_key(config, folder, {})
    assert key is not None
    assert key.startswith("mk-")
    assert len(key) == 35
    assert environment["MAESTRO_KEY"] == key == shown
    assert with_key(config, folder, {})[1] == key
    assert (folder.root / "key").stat().st_mode & 0o777 == 0o600


def test_keys_of_tenants_are_not_shown(tmp_path: Path) -> None:
    config = configured(tmp_path, "gateway: {keys: [{tenant: acme, key: {env: ACME_KEY}}]}\n")
    folder = Folder(config.data)
    folder.create()
    environment, key, shown = with_key(config, folder, {"ACME_KEY": "secret-1"})
    assert (key, shown) == ("secret-1", "$ACME_KEY")
    assert "MAESTRO_KEY" not in environment


def test_a_missing_envoy_file_is_told_with_its_setting(tmp_path: Path) -> None:
    file = tmp_path / "maestro.yaml"
    file.write_text("version: 1\nenvoy:\n  directory: nowhere\n")
    config = load(file, {})
    with pytest.raises(ConfigError, match=r"maestro\.yaml:3: envoy\.directory: there is no envoy\.yaml in .*nowhere"):
        made(config, {})


def test_settled_turns_on_who_takes_part_and_keeps_the_reason_of_the_others(tmp_path: Path) -> None:
    config = settled(configured(tmp_path), {"OPENAI_API_KEY": "k"})
    assert config.adapters["openai"].enabled is True
    assert config.adapters["claude"].enabled == configured(tmp_path).adapters["claude"].enabled
    assert set(config.enabled_adapters({})) == {"openai", "local"}


def test_nats_variables_reach_everybody(tmp_path: Path) -> None:
    config = configured(tmp_path)
    assert environment_for("router.", config, {"NATS_TRACE": "1"})["NATS_TRACE"] == "1"


def test_secrets_of_webhooks_reach_the_gateways_alone(tmp_path: Path) -> None:
    file = tmp_path / "maestro.yaml"
    file.write_text(
        "tenants: {acme: {webhooks: {orders: {url: https://example.com/x, secret: {env: ORDERS_SECRET}}}}}\n"
    )
    config, variables = load(file, {}), {"ORDERS_SECRET": "whsec_x"}
    having = [
        name
        for name in ("gateway.", "router.", "envoy.", "nats.")
        if environment_for(name, config, variables).get("ORDERS_SECRET")
    ]
    assert having == ["gateway."]


MEMBERS = {"adapter-claude", "adapter-openai", "adapter-local", "router", "gateway"}


def test_the_mesh_token_reaches_its_members_alone(tmp_path: Path) -> None:
    config, folder = configured(tmp_path), Folder(tmp_path / "data")
    folder.create()
    environment = with_mesh_token(config, folder, ENVIRONMENT)
    token = environment["MAESTRO_MESH_TOKEN"]
    assert len(token) == 64
    assert with_mesh_token(config, folder, ENVIRONMENT) == environment, "it is made once"
    assert stat.S_IMODE((folder.root / "mesh-token").stat().st_mode) == 0o600
    found = made(config, environment)
    assert {name for name, each in found.items() if token in each.environment.values()} == MEMBERS
    assert not any(token in part for each in found.values() for part in each.command)
    assert not any(token in path.read_text() for path in (config.data / "run").iterdir() if path.is_file())


@pytest.mark.parametrize(
    ("section", "variables"),
    [
        ("", {"MAESTRO_MESH_TOKEN": "of-the-environment-0123"}),
        ("mesh: {tokens: [{env: OURS}]}\n", {"OURS": "of-the-environment-0123"}),
        ("mesh: {tls: {certificate: c, key: k, authority: a}}\n", {}),
    ],
)
def test_a_mesh_that_has_something_to_show_gets_no_token(
    section: str, variables: dict[str, str], tmp_path: Path
) -> None:
    environment = ENVIRONMENT | variables
    config, folder = configured(tmp_path, f"version: 1\n{section}", environment), Folder(tmp_path / "data")
    folder.create()
    assert with_mesh_token(config, folder, environment) == environment
    assert not (folder.root / "mesh-token").exists()
    having = {name for name, each in made(config, environment).items() if variables.keys() & each.environment.keys()}
    assert having == (MEMBERS if variables else set())


def test_a_nats_that_wants_a_login_is_somebody_elses(tmp_path: Path) -> None:
    environment = ENVIRONMENT | {"NATS_WORD": "secret-of-nats"}
    section = "nats: {user: maestro, password: {env: NATS_WORD}}\n"
    config = configured(tmp_path, f"version: 1\n{section}", environment)
    assert own_nats(config) is None
    found = made(config, environment)
    assert {name for name, each in found.items() if "NATS_WORD" in each.environment} == MEMBERS
    assert found.keys() == MEMBERS | {"envoy"}
