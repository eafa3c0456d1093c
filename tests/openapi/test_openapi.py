"""The document tells of everything that is served, and every operation keeps to it, whatever it is asked.

`make openapi-fuzz` asks much more, OPENAPI_EXAMPLES of each kind for each operation, and prints how often.
"""

import os
import re
from pathlib import Path
from typing import Any

import pytest
import requests
import yaml
from google.api import annotations_pb2
from google.protobuf.descriptor_pb2 import FileDescriptorSet
from openapi_fuzz import Fuzz
from openapi_spec_validator import validate

from maestro_gateway.identity.scopes import scope_of_path
from maestro_sdk.testing.mesh import MeshProcess

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = int(os.environ.get("OPENAPI_EXAMPLES", "1"))
_VARIABLE = re.compile(r"\{([a-z0-9_.]+)=[^}]*\}")
_ENVOYS_OWN = {"/healthz", "/readyz"}


def envoy() -> tuple[list[str], list[str]]:
    """The services that Envoy transcodes, and the paths that it hands to the gateway's HTTP port."""
    config = yaml.safe_load((ROOT / "envoy/envoy.yaml").read_text(encoding="utf-8"))
    manager = config["static_resources"]["listeners"][0]["filter_chains"][0]["filters"][0]["typed_config"]
    (services,) = (
        each["typed_config"]["services"] for each in manager["http_filters"] if "json_transcoder" in each["name"]
    )
    routes = manager["route_config"]["virtual_hosts"][0]["routes"]
    plain = [route["match"] for route in routes if route.get("route", {}).get("cluster") == "websocket"]
    # What comes by a pattern comes only to be refused.
    ports = [match.get("path") or match["path_separated_prefix"] for match in plain if "safe_regex" not in match]
    return services, ports


def transcoded(services: list[str]) -> set[tuple[str, str]]:
    """What Envoy serves by its descriptor set: verb and path."""
    found: set[tuple[str, str]] = set()
    rule_of: Any = annotations_pb2.http
    for file in FileDescriptorSet.FromString((ROOT / "envoy/maestro.binpb").read_bytes()).file:
        for service in file.service:
            if f"{file.package}.{service.name}" not in services:
                continue
            for method in service.method:
                if method.options.HasExtension(rule_of):
                    rule: Any = method.options.Extensions[rule_of]
                    for each in (rule, *rule.additional_bindings):
                        verb = each.WhichOneof("pattern")
                        found.add((verb, _VARIABLE.sub(r"{\1}", getattr(each, verb))))
    return found


def test_it_is_a_document_of_openapi(document: dict[str, Any]):
    validate(document)
    assert document["openapi"].startswith("3.1.")
    names = [each["operationId"] for verbs in document["paths"].values() for each in verbs.values()]
    assert len(names) == len(set(names)) > 25


def test_everything_that_is_served_stands_in_it_and_nothing_else(document: dict[str, Any]):
    services, ports = envoy()
    told = {(verb, path) for path, verbs in document["paths"].items() for verb in verbs}
    ours = {(verb, path) for verb, path in told if any(path == port or path.startswith(f"{port}/") for port in ports)}
    assert transcoded(services) == {entry for entry in told - ours if entry[1] not in _ENVOYS_OWN}
    # Every path that goes to the gateway's HTTP port is told of, and what is served there has a scope or is for all.
    assert {port for port in ports if not any(path.startswith(port) for _, path in ours)} == set()
    for verb, path in ours:
        is_open = document["paths"][path][verb].get("security") == []
        assert is_open or scope_of_path(path.replace("{file_id}", "x")) != "operator", path


def test_anybody_may_read_it(mesh: MeshProcess, document: dict[str, Any]):
    told = requests.get(f"{mesh.url}/openapi.json", timeout=10)
    assert (told.status_code, told.headers["content-type"]) == (200, "application/json")
    assert told.json() == document
    page = requests.get(f"{mesh.url}/docs", timeout=10)
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    assert "default-src 'none'" in page.headers["content-security-policy"]
    # Nothing is loaded from elsewhere, and nothing runs.
    assert not re.search(r"<script|\bsrc=|@import|url\(|https?://", page.text)
    for path, verbs in document["paths"].items():
        assert page.text.count(f"<code>{path}</code>") == len(verbs)


@pytest.mark.parametrize(
    ("name", "value"),
    [("x!y", "b"), ("foo-bin", "!!!"), ("grpc-trace-bin", "%"), ("grpc-retry-pushback-ms", "x"), ("lb-cost-bin", "x")],
)
def test_headers_that_grpc_can_not_read_harm_nobody(mesh: MeshProcess, key: str, name: str, value: str):
    headers = {"authorization": f"Bearer {key}", name: value}
    for path in ("/v1/models", "/v1/keys", "/v1/openapi"):
        answer = requests.get(mesh.url + path, headers=headers, timeout=10)
        assert answer.status_code == (404 if path == "/v1/openapi" else 200), answer.text


@pytest.fixture(scope="module")
def known(mesh: MeshProcess, key: str) -> dict[str, str]:
    """One of each thing that an operation may name in its path."""
    headers = {"authorization": f"Bearer {key}"}

    def made(path: str, **more: Any) -> Any:
        answer = requests.post(mesh.url + path, headers=headers, timeout=10, **more)
        assert answer.status_code == 200, answer.text
        return answer

    words = [{"role": "user", "content": "hello"}]
    chat = made("/v1/chat", json={"messages": words, "stream": True, "resumable": True})
    return {
        "file_id": made("/v1/files?purpose=content&filename=a.txt", data=b"hello").json()["file_id"],
        "job_id": made("/v1/jobs", json={"items": [{"item_id": "a", "chat": {"messages": words}}]}).json()["job_id"],
        "key_id": made("/v1/keys", json={}).json()["key"]["key_id"],
        "request_id": chat.headers["x-request-id"],
        "stream": chat.headers["x-request-id"],
        "webhook": "alpha",
    }


@pytest.mark.timeout(60 + 30 * EXAMPLES)
def test_every_operation_keeps_to_it(mesh: MeshProcess, key: str, document: dict[str, Any], known: dict[str, str]):
    tally = Fuzz(document, mesh.url, key, EXAMPLES, known).run()
    print(tally.report())
    assert not tally.failures, "\n\n".join(f"{name}\n{told}" for name, told in tally.failures.items())
    assert tally.requests > 100
    assert all(status < 500 for status in tally.statuses)
