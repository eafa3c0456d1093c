"""The files that NATS and Envoy start with."""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path
from typing import Any

import pytest
import yaml

from maestro_sdk.cli.rendering import (
    EnvoyValues,
    TemplateError,
    join_address,
    reachable,
    render_envoy,
    render_nats,
    split_address,
)

ROOT = Path(__file__).resolve().parents[3]
TEMPLATE = (ROOT / "envoy/envoy.yaml").read_text()
ENVOY = Path(sysconfig.get_path("scripts"), "envoy")
VALUES = EnvoyValues(
    public="0.0.0.0:18080",
    admin="127.0.0.1:19901",
    gateways=("127.0.0.1:15051", "127.0.0.1:15052"),
    websockets=("[::1]:18081", "127.0.0.1:18082"),
    max_body=123_456,
    ping=15.0,
    descriptors=ROOT / "envoy/maestro.binpb",
)


def found(value: Any, key: str) -> list[Any]:
    if isinstance(value, dict):
        here = [value[key]] if key in value else []
        return here + [each for below in value.values() for each in found(below, key)]
    if isinstance(value, list):
        return [each for below in value for each in found(below, key)]
    return []


def validate(file: Path, directory: Path) -> subprocess.CompletedProcess[str]:
    command = [ENVOY, "--mode", "validate", "--use-dynamic-base-id", "--config-path", file]
    return subprocess.run(command, cwd=directory, capture_output=True, text=True, check=False)


def test_the_shipped_file_is_complete_by_itself() -> None:
    result = validate(ROOT / "envoy/envoy.yaml", ROOT)
    assert result.returncode == 0, result.stderr


def test_a_rendered_file_is_valid_wherever_it_is_used(tmp_path: Path) -> None:
    file = tmp_path / "envoy.yaml"
    file.write_text(render_envoy(TEMPLATE, VALUES))
    result = validate(file, tmp_path)
    assert result.returncode == 0, result.stderr


def test_rendering_replaces_addresses_limits_and_descriptors_and_nothing_else() -> None:
    config = yaml.safe_load(render_envoy(TEMPLATE, VALUES))
    shipped = yaml.safe_load(TEMPLATE)
    addresses = [(each["address"], each["port_value"]) for each in found(config, "socket_address")]
    gateways = [("127.0.0.1", 15051), ("127.0.0.1", 15052), ("::1", 18081), ("127.0.0.1", 18082)]
    assert addresses == [("127.0.0.1", 19901), ("0.0.0.0", 18080), *gateways]
    limits = found(config, "max_request_bytes") + found(config, "max_request_body_size")
    assert len(limits) >= 4
    assert set(limits) == {123_456}
    assert found(config, "proto_descriptor") == [str(VALUES.descriptors)]
    default = EnvoyValues(
        public="127.0.0.1:8080",
        admin="127.0.0.1:9901",
        gateways=("127.0.0.1:50051",),
        websockets=("127.0.0.1:8081",),
        max_body=3145728,
        ping=15.0,
        descriptors=Path("envoy/maestro.binpb"),
    )
    assert yaml.safe_load(render_envoy(TEMPLATE, default)) == shipped


def test_idle_limits_stay_above_the_pings() -> None:
    from dataclasses import replace

    routes = found(yaml.safe_load(render_envoy(TEMPLATE, replace(VALUES, ping=2000.0))), "route")
    idle = {route["idle_timeout"] for route in routes if "idle_timeout" in route}
    assert idle == {"0s", "8000s"}


def test_a_template_without_the_expected_names_is_refused() -> None:
    with pytest.raises(TemplateError, match=r"static_resources\.clusters has none named websocket"):
        render_envoy(TEMPLATE.replace("name: websocket", "name: other"), VALUES)


@pytest.mark.parametrize("template", ["", "a: [", "static_resources: {}", "[]"])
def test_what_is_no_envoy_configuration_is_refused(template: str) -> None:
    with pytest.raises(TemplateError, match=r"envoy\.yaml is not a bootstrap configuration of Envoy"):
        render_envoy(template, VALUES)


def test_nats_file_is_accepted_by_nats(tmp_path: Path) -> None:
    store = tmp_path / 'a "quoted" folder'
    file = tmp_path / "nats.conf"
    file.write_text(render_nats(address="127.0.0.1:14222", store=store))
    server = Path(sysconfig.get_path("scripts"), "nats-server")
    result = subprocess.run([server, "-t", "-c", file], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert "http" not in file.read_text()


@pytest.mark.parametrize(
    ("address", "parts", "reached"),
    [
        ("127.0.0.1:80", ("127.0.0.1", 80), "127.0.0.1:80"),
        ("0.0.0.0:80", ("0.0.0.0", 80), "127.0.0.1:80"),
        ("[::]:80", ("::", 80), "[::1]:80"),
        ("[::1]:80", ("::1", 80), "[::1]:80"),
        ("mesh.example:80", ("mesh.example", 80), "mesh.example:80"),
    ],
)
def test_addresses(address: str, parts: tuple[str, int], reached: str) -> None:
    assert split_address(address) == parts
    assert join_address(*parts) == address
    assert reachable(address) == reached
