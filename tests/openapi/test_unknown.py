"""What nobody knows is never passed over in silence: fields of bodies, and parameters, of every operation there is."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import orjson
import pytest
import requests

from maestro_gateway.reference import document as served
from maestro_sdk.testing.mesh import MeshProcess

FIELD = "no_such_field"
_WORDS = [{"role": "user", "content": "hello"}]
TOLD: dict[str, dict[str, Any]] = {
    "chat": {"messages": _WORDS},
    "estimateChat": {"messages": _WORDS},
    "explain": {"messages": _WORDS},
    "createChatCompletion": {"model": "fast", "messages": _WORDS},
    "createMessage": {"model": "fast", "max_tokens": 5, "messages": _WORDS},
    "countMessageTokens": {"model": "fast", "messages": _WORDS},
}
"""Chats, whose clients send what only some provider knows: a warning tells of it. All others refuse."""
STRICT: dict[str, dict[str, Any]] = {
    "chat": TOLD["chat"],
    "estimateChat": TOLD["estimateChat"],
    "explain": TOLD["explain"],
    "createEmbedding": {"model": "fast", "input": "hello"},
}
"""Those that refuse when the body says `strict`."""
_NOTHING_TO_SAY = {"/docs", "/openapi.json", "/healthz", "/readyz"}
"""Paths for everybody, which take no parameters and mean nothing by them."""


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Verb, path with the name of nothing in it, and operation, of the whole document."""
    for path, verbs in orjson.loads(served())["paths"].items():
        for verb, operation in verbs.items():
            yield verb.upper(), re.sub(r"\{[^}]*\}", "x", path), operation


def with_bodies() -> list[Any]:
    return [
        pytest.param(verb, path, operation["operationId"], id=operation["operationId"])
        for verb, path, operation in operations()
        if "application/json" in operation.get("requestBody", {}).get("content", {})
    ]


def named(answer: requests.Response) -> set[str]:
    """The fields that an error, or a warning, names."""
    body = answer.json()
    if answer.status_code == 200:
        return {each["field"] for each in body.get("warnings") or body["maestro"]["warnings"]}
    return {each["field"] for each in body["error"].get("details", [])} | {body["error"].get("param")}


def ask(
    mesh: MeshProcess, key: str, verb: str, path: str, headers: Mapping[str, str] | None = None, **body: Any
) -> requests.Response:
    headers = {"authorization": f"Bearer {key}", **(headers or {})}
    return requests.request(verb, mesh.url + path, headers=headers, timeout=10, **body)


@pytest.mark.parametrize(("verb", "path", "name"), with_bodies())
def test_a_field_that_nobody_knows(mesh: MeshProcess, key: str, verb: str, path: str, name: str):
    wanted = 200 if name in TOLD else 400
    body = {**TOLD.get(name, {}), **({"strict": True, **STRICT[name]} if wanted == 400 and name in STRICT else {})}
    answer = ask(mesh, key, verb, path, json={**body, FIELD: 1})
    assert (answer.status_code, named(answer) & {FIELD}) == (wanted, {FIELD}), answer.text


@pytest.mark.parametrize("name", sorted(STRICT))
def test_a_field_that_nobody_knows_under_strict(mesh: MeshProcess, key: str, name: str):
    ((verb, path),) = [(verb, path) for verb, path, each in operations() if each["operationId"] == name]
    answer = ask(mesh, key, verb, path, json={**STRICT[name], "strict": True, FIELD: 1})
    assert (answer.status_code, named(answer) & {FIELD}) == (400, {FIELD}), answer.text


@pytest.mark.parametrize(("verb", "path", "name"), with_bodies())
def test_a_field_that_stands_twice(mesh: MeshProcess, key: str, verb: str, path: str, name: str):
    answer = ask(mesh, key, verb, path, data=b'{"request_id": "a", "request_id": "b"}')
    assert answer.status_code == 400, answer.text
    assert "the key 'request_id' stands twice in one object" in answer.json()["error"]["message"]


@pytest.mark.parametrize(("verb", "path", "name"), with_bodies())
@pytest.mark.parametrize("kind", ["application/x-www-form-urlencoded", "text/xml"])
def test_a_body_that_is_no_json(mesh: MeshProcess, key: str, verb: str, path: str, name: str, kind: str):
    answer = ask(mesh, key, verb, path, {"content-type": kind}, data=b"scopes=chat")
    assert answer.status_code == 400, answer.text
    assert "body: is not JSON" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("verb", "path"),
    [
        pytest.param(verb, path, id=operation["operationId"])
        for verb, path, operation in operations()
        if path not in _NOTHING_TO_SAY
    ],
)
def test_a_parameter_that_nobody_knows(mesh: MeshProcess, key: str, verb: str, path: str):
    headers = {"upgrade": "websocket", "connection": "upgrade"} if path == "/v1/chat/stream" else {}
    answer = ask(mesh, key, verb, f"{path}?no_such_parameter=1", headers, json={} if verb == "POST" else None)
    assert answer.status_code == 400, answer.text
    assert "no_such_parameter" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    "query", ["key_id=y", "body=e30%3D", "body.data=e30%3D", "body.content_type=a", "beta=1&body="]
)
def test_a_parameter_behind_which_there_is_a_field(mesh: MeshProcess, key: str, query: str):
    answer = ask(mesh, key, "POST", f"/v1/keys/x:rotate?{query}", json={})
    assert answer.status_code == 400, answer.text
    assert named(answer) == {query.rpartition("&")[2].partition("=")[0], None}
