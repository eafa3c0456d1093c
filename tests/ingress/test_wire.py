"""What official clients send beside their bodies, as bytes: query parameters, headers, browsers, Claude Code."""

import io
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest
import pytest_asyncio

from maestro_sdk.testing.faults import FaultServer
from maestro_sdk.testing.mesh import MeshProcess

from .conftest import KEY

CLAUDE_CODE = {
    "x-api-key": KEY,
    "anthropic-version": "2023-06-01",
    "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14,context-management-2025-06-27",
    "anthropic-dangerous-direct-browser-access": "true",
    "user-agent": "claude-cli/2.1.0 (external, cli)",
    "x-app": "cli",
    "x-stainless-lang": "js",
    "x-stainless-helper-method": "stream",
    "content-type": "application/json",
}
BODY: dict[str, Any] = {
    "model": "anthropic/claude-sonnet-5",
    "max_tokens": 32000,
    "system": [
        {"type": "text", "text": "You are Claude Code.", "cache_control": {"type": "ephemeral"}},
        {"type": "text", "text": "Be brief.", "cache_control": {"type": "ephemeral", "ttl": "1h"}},
    ],
    "messages": [
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "<system-reminder>Nothing.</system-reminder>"},
                {"type": "text", "text": "Use Bash for Paris", "cache_control": {"type": "ephemeral"}},
            ],
        }
    ],
    "tools": [
        {
            "name": "Bash",
            "description": "Runs a command.",
            "input_schema": {
                "$schema": "https://json-schema.org/draft/2020-12/schema",
                "type": "object",
                "properties": {"command": {"type": "string"}},
                "required": ["command"],
                "additionalProperties": False,
            },
        }
    ],
    "metadata": {"user_id": "user_0a1b_account__session_2c3d"},
    "thinking": {"type": "adaptive"},
    "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
    "output_config": {"effort": "high"},
    "stream": True,
}


@pytest_asyncio.fixture(loop_scope="session")
async def http(mesh: MeshProcess, provider: FaultServer) -> AsyncIterator[aiohttp.ClientSession]:
    """A client that sends what it is told."""
    async with aiohttp.ClientSession(mesh.url) as session:
        yield session


async def test_claude_code_is_served(http: aiohttp.ClientSession, provider: FaultServer):
    async with http.post("/v1/messages?beta=true", json=BODY, headers=CLAUDE_CODE) as response:
        text = await response.text()
        assert response.status == 200, text
        assert response.headers["request-id"] == response.headers["x-request-id"]
    events = [json.loads(line.removeprefix("data: ")) for line in text.splitlines() if line.startswith("data: ")]
    assert [event["type"] for event in events][-1] == "message_stop"
    started = [event["content_block"] for event in events if event["type"] == "content_block_start"]
    assert "Bash" in [block.get("name") for block in started]
    sent = provider.requests[-1].json()
    assert sent["context_management"] == BODY["context_management"]
    assert provider.requests[-1].headers["anthropic-beta"] == CLAUDE_CODE["anthropic-beta"]
    async with http.post("/v1/messages/count_tokens?beta=true", json=BODY, headers=CLAUDE_CODE) as response:
        assert response.status == 200, await response.text()
        assert response.headers["request-id"]
        assert (await response.json())["input_tokens"] > 0


async def test_a_whole_message_tells_its_request(http: aiohttp.ClientSession):
    body = {"model": "default", "max_tokens": 50, "messages": [{"role": "user", "content": "Count from 1 to 3"}]}
    async with http.post("/v1/messages", json=body, headers={"x-api-key": KEY}) as response:
        assert response.status == 200
        assert response.headers.getall("request-id") == [response.headers["x-request-id"]]
    async with http.post("/v1/messages", json={}, headers={"x-api-key": KEY}) as response:
        assert response.status == 400
        assert response.headers.getall("request-id") == [(await response.json())["request_id"]]


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions"])
async def test_browsers_may_send_what_the_clients_send(http: aiohttp.ClientSession, path: str):
    asked = [name for name in CLAUDE_CODE if name not in ("user-agent", "x-app")]
    asked += ["authorization", "openai-organization", "openai-project", "x-stainless-runtime-version"]
    headers = {
        "origin": "http://localhost:3000",
        "access-control-request-method": "POST",
        "access-control-request-headers": ",".join(asked),
    }
    async with http.options(path, headers=headers) as response:
        assert response.status == 200
        assert set(asked) <= set(response.headers["access-control-allow-headers"].split(","))


@pytest.mark.parametrize("key", ["", "mk-wrong"])
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens", "/v1/chat/completions"])
async def test_without_a_key_nothing_of_the_body_is_read(
    http: aiohttp.ClientSession, provider: FaultServer, path: str, key: str
):
    before = len(provider.requests)
    async with http.post(path, data=b"{no json", headers={"authorization": f"Bearer {key}"} if key else {}) as response:
        assert response.status == 401
        error = (await response.json())["error"]
    # Not a word about the body, in the shape of each API.
    assert error["type"] == "authentication_error"
    assert "JSON" not in error["message"]
    assert ("code" in error) == ("completions" in path)
    assert len(provider.requests) == before


LARGE = b'{"a":"' + b"x" * 4_000_000 + b'"}'


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "kind"),
    [
        ("POST", "/v1/messages", LARGE, 413, "request_too_large"),
        ("POST", "/v1/messages/count_tokens", LARGE, 413, "request_too_large"),
        ("POST", "/v1/messages?colour=red", b"{}", 400, "invalid_request_error"),
        ("GET", "/v1/messages/batches", None, 404, "not_found_error"),
        ("POST", "/v1/chat/completions", LARGE, 413, "invalid_request_error"),
        ("POST", "/v1/embeddings", LARGE, 413, "invalid_request_error"),
        ("POST", "/v1/chat/completions?colour=red", b"{}", 400, "invalid_request_error"),
        ("GET", "/v1/chat/completions/chatcmpl-1", None, 404, "invalid_request_error"),
    ],
)
async def test_what_the_front_door_refuses_has_the_clients_shape(
    http: aiohttp.ClientSession, method: str, path: str, body: bytes | None, status: int, kind: str
):
    data = io.BytesIO(body) if body is not None else None
    async with http.request(method, path, data=data, headers={"authorization": f"Bearer {KEY}"}) as response:
        assert response.status == status
        document = await response.json()
        request_id = response.headers["x-request-id"]
    error = document["error"]
    assert error["type"] == kind
    assert error["message"]
    assert error["maestro"]["retryable"] is False
    if "messages" in path:
        assert (document["type"], document["request_id"]) == ("error", request_id)
    else:
        assert {"param", "code"} <= error.keys()
        assert error["maestro"]["request_id"] == request_id


@pytest.mark.parametrize("path", ["/v1/messages", "/v1/chat/completions", "/v1/embeddings"])
async def test_what_nobody_knows_is_told_in_a_bounded_answer(http: aiohttp.ClientSession, path: str):
    known: Any = {"model": "default", "max_tokens": 50, "messages": [{"role": "user", "content": "Count from 1 to 3"}]}
    if "embed" in path:
        known = {"model": "local/hashing", "input": "a"}
    body = {**known, **{f"field_{number}": 0 for number in range(100_000)}}
    raw = io.BytesIO(json.dumps(body).encode())
    async with http.post(path, data=raw, headers={"authorization": f"Bearer {KEY}"}) as response:
        assert response.status == 200, await response.text()
        told = (await response.json())["maestro"]["warnings"]
    unknown = [warning["field"] for warning in told if warning["code"] == "unknown_field"]
    assert unknown == [f"field_{number}" for number in range(32)]


async def test_what_azures_clients_put_behind_the_path_is_taken(http: aiohttp.ClientSession):
    body = {"model": "default", "messages": [{"role": "user", "content": "Count from 1 to 3"}]}
    path = "/v1/chat/completions?api-version=2025-04-01-preview"
    async with http.post(path, json=body, headers={"api-key": "none", "authorization": f"Bearer {KEY}"}) as response:
        assert response.status == 200
