"""REST and server-sent events through Envoy: what arrives, what comes back, and the one shape of every error."""

from __future__ import annotations

import asyncio
import json
import math
import re
import time
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import yaml

from maestro_sdk.errors import BY_REASON, to_json
from maestro_sdk.tracing import time_of

pytestmark = pytest.mark.asyncio(loop_scope="module")


def error_of(body: bytes) -> dict[str, Any]:
    found = json.loads(body)
    assert set(found) == {"error"}
    assert set(found["error"]) >= {"code", "reason", "message", "details", "retryable"}
    return found["error"]


async def test_unary_answer_is_the_gateways_json(mesh: Any) -> None:
    response, body = await mesh.ask("answer", big=2**53 + 1)
    assert (response.status, response.headers["content-type"]) == (200, "application/json")
    assert json.loads(body) == {"length": len(mesh.doubles.http.body)}
    assert json.loads(mesh.doubles.http.body)["big"] == 2**53 + 1
    assert "grpc-status" not in response.headers
    assert "grpc-accept-encoding" not in response.headers


async def test_events_arrive_one_by_one(mesh: Any) -> None:
    async with mesh.client.post(f"{mesh.url}/v1/chat", json={"do": "stream"}) as response:
        assert response.headers["content-type"] == "text/event-stream"
        for index in range(3):
            # The next event is sent only after this one was read: nothing on the way waits for more.
            assert await response.content.readuntil(b"\n\n") == b"data: %d\n\n" % index
            mesh.doubles.http.go_on.set()
        assert await response.content.read() == b""


async def test_the_gateways_status_headers_and_body_pass(mesh: Any) -> None:
    response, body = await mesh.ask("limit")
    assert (response.status, response.headers["retry-after"]) == (429, "7")
    assert body == b'{"error":{"code":429,"reason":"RATE_LIMITED"}}'
    assert "x-http-status" not in response.headers


async def test_body_that_is_not_json_is_the_gateways_to_judge(mesh: Any) -> None:
    async with mesh.client.post(f"{mesh.url}/v1/chat", data=b'{"messages": [', headers={}) as response:
        assert response.status == 400
    assert mesh.doubles.http.body == b'{"messages": ['


@pytest.mark.parametrize("body", ["", "{}", '{"scoops": [1', '{"grace":"1s","key_id":"other"}'])
async def test_a_path_and_a_body_arrive_side_by_side(mesh: Any, body: str) -> None:
    headers = {"content-type": "application/json"}
    async with mesh.client.post(f"{mesh.url}/v1/keys/a%2Fb:rotate", data=body.encode(), headers=headers) as response:
        assert (response.status, response.headers["content-type"]) == (200, "application/json")
        assert await response.json() == {"key_id": "a/b", "kind": "application/json", "body": body}


async def test_rich_status_becomes_the_rest_shape(mesh: Any) -> None:
    response, body = await mesh.ask("abort")
    error = error_of(body)
    assert response.status == error["code"] == 400
    assert error["reason"] == "INVALID_REQUEST"
    assert error["message"] == 'not "so" \\ good'
    assert error["details"] == [{"field": "messages[0]", "message": 'say "hi"'}]
    assert error["retryable"] is False
    assert response.headers["content-type"] == "application/json"
    assert int(response.headers["content-length"]) == len(body)


async def test_verdicts_of_a_rich_status_survive(mesh: Any) -> None:
    response, body = await mesh.ask("limited status")
    error = error_of(body)
    assert (response.status, error["reason"], error["retryable"]) == (429, "RATE_LIMITED", True)


async def test_every_reason_has_its_status_and_its_facts(mesh: Any) -> None:
    metadata = {"model": 'o/"m"', "known": "a\\", "tried": '{"metadata":{"retryable":"maybe"},', "upstream_code": ""}
    for reason, kind in BY_REASON.items():
        for wait in (None, 2, 0.25):
            message = f"{reason}: ä"
            asked = {"reason": reason, "message": message, "metadata": metadata, "retry_after": wait}
            headers = {"x-request-id": f"req.{reason}"}
            url = f"{mesh.url}/v1/router:explain"
            async with mesh.client.post(url, data=json.dumps(asked), headers=headers) as response:
                error = error_of(await response.read())
            expected = to_json(kind(message, metadata=metadata, retry_after=wait))["error"]
            assert error == expected | {"request_id": f"req.{reason}"}
            assert response.status == kind.http_status
            assert response.headers.getall("x-request-id") == [f"req.{reason}"]
            assert response.headers.get("retry-after") == (None if wait is None else str(math.ceil(wait)))
            assert response.headers.get("www-authenticate") == ("Bearer" if response.status == 401 else None)


async def test_the_table_of_reasons_is_true() -> None:
    table = (Path(__file__).parents[2] / "docs" / "errors.md").read_text(encoding="utf-8")
    rows = [line.split("|")[1:4] for line in table.splitlines() if line.startswith("| `")]
    told: dict[str, tuple[int, str]] = {}
    for names, statuses, codes in (row for row in rows if row[1].strip()[:1].isdigit()):
        reasons = re.findall(r"`(\w+)`", names)
        for number, reason in enumerate(reasons):
            status, code = ([part.strip() for part in cell.split("/")] for cell in (statuses, codes))
            told[reason] = int(status[number % len(status)]), code[number % len(code)]
    assert told == {reason: (kind.http_status, kind.code.name) for reason, kind in BY_REASON.items()}


async def test_crash_of_the_gateway_is_internal(mesh: Any) -> None:
    response, body = await mesh.ask("crash")
    error = error_of(body)
    assert (response.status, error["reason"], error["retryable"]) == (500, "INTERNAL", False)


@pytest.mark.parametrize(
    ("method", "path"), [("GET", "/nowhere"), ("GET", "/v1/nowhere"), ("GET", "/v1/chat"), ("POST", "/")]
)
async def test_unknown_path_or_method(mesh: Any, method: str, path: str) -> None:
    async with mesh.client.request(method, mesh.url + path) as response:
        error = error_of(await response.read())
        assert response.status == error["code"] == 404
        assert (error["reason"], error["message"]) == ("NOT_FOUND", f"nothing is served at {method} {path}")
        assert response.headers["content-type"] == "application/json"


async def test_unknown_query_parameter(mesh: Any) -> None:
    async with mesh.client.get(f"{mesh.url}/v1/models?colour=red") as response:
        error = error_of(await response.read())
    assert (response.status, error["reason"]) == (400, "INVALID_REQUEST")
    assert "colour" in error["message"]


@pytest.mark.parametrize("path", ["/v1/chat", "/v1/router:explain"])
async def test_body_over_the_limit(mesh: Any, path: str) -> None:
    mesh.doubles.http.body = b""
    for data in (b"x" * 1_000_001, chunks(b"x" * 100_000, 11)):
        async with mesh.client.post(mesh.url + path, data=data) as response:
            error = error_of(await response.read())
            assert response.status == error["code"] == 413
            assert (error["reason"], error["retryable"]) == ("TOO_LARGE", False)
    assert mesh.doubles.http.body == b""


async def chunks(data: bytes, count: int) -> Any:
    for _ in range(count):
        yield data


async def test_body_just_below_the_limit(mesh: Any) -> None:
    async with mesh.client.post(f"{mesh.url}/v1/router:explain", data=b"x" * 999_000) as response:
        assert response.status == 200
    assert len(mesh.doubles.http.body) == 999_000


async def test_nobody_from_outside_speaks_for_the_mesh(mesh: Any) -> None:
    headers = {
        "x-maestro-tenant": "somebody-else",
        "x-maestro-anything": "1",
        "x-envoy-retry-on": "5xx",
        "x-envoy-upstream-rq-timeout-ms": "1",
        "authorization": "Bearer mk-1",
        "traceparent": "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01",
    }
    async with mesh.client.get(f"{mesh.url}/v1/models", headers=headers) as response:
        assert response.status == 200
        assert not [name for name in response.headers if name.lower().startswith("x-envoy")]
    seen = mesh.doubles.http.seen
    assert not [name for name in seen if name.startswith("x-maestro-")]
    assert "x-envoy-retry-on" not in seen
    assert "x-envoy-upstream-rq-timeout-ms" not in seen
    assert seen["authorization"] == "Bearer mk-1"
    assert seen["traceparent"] == headers["traceparent"]


async def test_request_id_is_made_or_kept_and_returned(mesh: Any) -> None:
    async with mesh.client.get(f"{mesh.url}/v1/models") as response:
        made = response.headers["x-request-id"]
    assert made == mesh.doubles.http.seen["x-request-id"]
    assert time_of(made) == pytest.approx(time.time(), abs=5)
    mine = "11111111-2222-4333-8444-555555555555"
    for wanted in ("my-request.7", mine):
        async with mesh.client.get(f"{mesh.url}/v1/models", headers={"x-request-id": wanted}) as response:
            assert response.headers["x-request-id"] == mesh.doubles.http.seen["x-request-id"] == wanted


async def test_bad_request_id_is_replaced_for_everybody(mesh: Any) -> None:
    for bad in ('a b/"<>', "x" * 129):
        async with mesh.client.get(f"{mesh.url}/v1/models", headers={"x-request-id": bad}) as response:
            made = response.headers["x-request-id"]
        assert made != bad
        assert time_of(made) == pytest.approx(time.time(), abs=5)
        assert made == mesh.doubles.http.seen["x-request-id"]


@pytest.mark.parametrize(
    ("headers", "status", "reason", "told"),
    [
        pytest.param(
            {"upgrade": "websocket", "connection": "upgrade"}, 400, "INVALID_REQUEST", "websocket", id="upgrade"
        ),
        pytest.param({"x-big": "x" * 70_000}, 431, "TOO_LARGE", "headers", id="large header"),
        pytest.param({f"x-{i}": "1" for i in range(120)}, 431, "TOO_LARGE", "headers", id="many headers"),
        pytest.param({"transfer-encoding": "gzip"}, 501, "UNIMPLEMENTED", "Not Implemented", id="encoding"),
        pytest.param({"host": None}, 400, "INVALID_REQUEST", "host", id="no host"),
    ],
)
async def test_refusals_of_envoy_say_why(
    mesh: Any, headers: dict[str, str | None], status: int, reason: str, told: str
) -> None:
    fields = [f"{name}: {value}" for name, value in {"host": "x", **headers}.items() if value is not None]
    answer = await exchange(mesh.address, "\r\n".join(["GET /v1/models HTTP/1.1", *fields, "", ""]).encode())
    error = error_of(answer.partition(b"\r\n\r\n")[2])
    assert answer.startswith(b"HTTP/1.1 %d " % status)
    assert (error["code"], error["reason"], error["retryable"]) == (status, reason, False)
    assert told in error["message"]


async def exchange(address: str, request: bytes) -> bytes:
    """Sends bytes, and reads the head and as much of the body as it promises."""
    reader, writer = await asyncio.open_connection(*address.split(":"))
    try:
        writer.write(request)
        head = await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 5)
        length = next(line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:"))
        return head + await asyncio.wait_for(reader.readexactly(int(length.partition(b":")[2])), 5)
    finally:
        writer.close()


async def test_words_of_grpc_mean_nothing_in_rest(mesh: Any) -> None:
    for words in ({"grpc-timeout": "1n"}, {"grpc-timeout": "soon"}, {"grpc-encoding": "shorthand"}):
        async with mesh.client.get(f"{mesh.url}/v1/models", headers=words) as response:
            assert (response.status, words) == (200, words)


async def test_a_slash_at_the_end_is_nothing(mesh: Any) -> None:
    async with mesh.client.post(f"{mesh.url}/v1/chat/", json={}) as response:
        assert response.status == 200


@pytest.fixture
def routes(envoy_file: Path) -> list[Any]:
    listener = yaml.safe_load(envoy_file.read_text())["static_resources"]["listeners"][0]
    manager = listener["filter_chains"][0]["filters"][0]["typed_config"]
    return manager["route_config"]["virtual_hosts"][0]["routes"]


async def test_a_slash_at_the_end_changes_no_limit(routes: list[Any]) -> None:
    limits = {route["match"].get("path"): route.get("route") for route in routes}
    assert limits["/v1/chat/"] == limits["/v1/chat"]
    assert limits["/v1/chat"]["timeout"] == "0s"


async def test_json_for_a_path_of_grpc_is_told_so(mesh: Any) -> None:
    async with mesh.client.post(f"{mesh.url}/maestro.llm.v1.ChatService/Chat", json={}) as response:
        error = error_of(await response.read())
    assert (response.status, error["reason"], error["retryable"]) == (415, "INVALID_REQUEST", False)
    assert "application/grpc" in error["message"]


@pytest.mark.parametrize("do", ["hang", "stream and hang"])
async def test_client_that_leaves_cancels_the_call(mesh: Any, do: str) -> None:
    http = mesh.doubles.http
    http.cancelled.clear()
    reader, writer = await asyncio.open_connection(*mesh.address.split(":"))
    body = json.dumps({"do": do}).encode()
    writer.write(b"POST /v1/chat HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (len(body), body))
    http.seen = {}
    await writer.drain()
    if do == "hang":
        async with asyncio.timeout(5):
            while not http.seen:
                await asyncio.sleep(0.01)
    else:
        assert await reader.readuntil(b"data: first\n\n")
    writer.close()
    await asyncio.wait_for(http.cancelled.wait(), 5)


async def test_death_of_the_gateway_in_a_stream_is_no_clean_end(mesh: Any) -> None:
    async with mesh.client.post(f"{mesh.url}/v1/chat", json={"do": "stream and hang"}) as response:
        assert await response.content.readuntil(b"\n\n") == b"data: first\n\n"
        mesh.doubles.cut()
        with pytest.raises(aiohttp.ClientPayloadError):
            await response.content.read()


async def test_death_of_the_gateway_before_the_answer_is_an_error(mesh: Any) -> None:
    mesh.doubles.http.seen = {}
    asking = asyncio.create_task(mesh.ask("hang"))
    async with asyncio.timeout(5):
        while not mesh.doubles.http.seen:
            await asyncio.sleep(0.01)
    mesh.doubles.cut()
    response, body = await asking
    error = error_of(body)
    assert (response.status, error["reason"], error["retryable"]) == (503, "UPSTREAM_ERROR", True)


async def test_reader_that_pauses_pauses_the_gateway(mesh: Any) -> None:
    total = 2000  # of 16 KiB: 32 MB
    timeout = aiohttp.ClientTimeout(total=30)
    async with (
        aiohttp.ClientSession(read_bufsize=1024, timeout=timeout) as slow,
        slow.post(f"{mesh.url}/v1/chat", json={"do": "flood", "messages": total}) as response,
    ):
        assert response.status == 200
        sent = -1
        while sent != mesh.doubles.http.sent:  # until it stands still
            sent = mesh.doubles.http.sent
            await asyncio.sleep(0.3)
        assert 0 < sent < total / 2
        assert len(await response.read()) == total * 16384


async def test_health_of_envoy_and_of_the_gateway_behind_it(mesh: Any) -> None:
    async def status(path: str) -> int:
        async with mesh.client.get(mesh.url + path) as response:
            return response.status

    for path in ("/healthz", "/readyz"):
        async with mesh.client.get(mesh.url + path) as response:
            assert (response.status, await response.json()) == (200, {"status": "ok"})
    await mesh.doubles.set_health(serving=False)
    try:
        async with asyncio.timeout(10):
            while await status("/readyz") != 503:
                await asyncio.sleep(0.05)
        assert await status("/healthz") == 200
        response, body = await mesh.ask("answer")
        error = error_of(body)
        assert (response.status, error["reason"], error["retryable"]) == (503, "UPSTREAM_ERROR", True)
    finally:
        await mesh.doubles.set_health(serving=True)
    async with asyncio.timeout(10):
        while await status("/readyz") != 200:
            await asyncio.sleep(0.05)
