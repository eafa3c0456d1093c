"""Logs that name the request and never a key; traces that join the hops of one request."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import pytest
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc

from maestro.llm.v1 import chat_pb2, chat_pb2_grpc, message_pb2
from maestro_sdk.service.channel import open_channel
from maestro_sdk.service.settings import Secret, TelemetryConfig
from maestro_sdk.service.telemetry import JsonFormatter, TextFormatter, redacted, set_up_telemetry
from maestro_sdk.testing.servers import free_port
from maestro_sdk.tracing import Call, enter_call

TRACE, PARENT = "a" * 32, "b" * 16


def record(message: str, *arguments: object, error: BaseException | None = None) -> logging.LogRecord:
    info = (type(error), error, error.__traceback__) if error else None
    return logging.LogRecord("maestro_x", logging.WARNING, __file__, 1, message, arguments, info)


@pytest.mark.parametrize(
    "text",
    [
        "the key sk-ant-api03-{}-AA is refused",
        "authorization: Bearer {}",
        "{{'authorization': 'bearer {}'}}",
        "mk-{} is unknown",
        "AIza{}",
    ],
)
def test_no_log_holds_what_looks_like_a_key(text: str) -> None:
    secret = "Zx81Qw93Er75Ty62Ui"
    assert secret not in redacted(text.format(secret))
    assert "***" in redacted(text.format(secret))


def test_no_log_holds_a_key_that_was_read(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("just-words-of-mine\n")
    assert Secret(file=tmp_path / "key").get() == "just-words-of-mine"
    line = TextFormatter().format(record("%s", "the upstream said: just-words-of-mine is wrong"))
    assert line.endswith("the upstream said: *** is wrong")
    assert redacted("nothing to hide: skating, mk-1, Bearer") == "nothing to hide: skating, mk-1, Bearer"


async def test_a_log_names_the_request() -> None:
    enter_call(Call("req_1", "acme", f"00-{TRACE}-{PARENT}-01"))
    text = TextFormatter().format(record("slow by %d ms", 5))
    assert text.endswith(f"WARNING maestro_x: slow by 5 ms request_id=req_1 tenant=acme trace_id={TRACE}")
    try:
        raise ValueError("Bearer abcdefghijkl")
    except ValueError as error:
        entry = json.loads(JsonFormatter("gateway").format(record("failed\nbadly", error=error)))
    assert "\n" not in JsonFormatter("gateway").format(record("failed\nbadly"))
    assert entry.pop("time").endswith("Z")
    assert "ValueError: ***" in entry.pop("exception")
    assert entry == {
        "level": "warning",
        "service": "gateway",
        "logger": "maestro_x",
        "message": "failed\nbadly",
        "request_id": "req_1",
        "tenant": "acme",
        "trace_id": TRACE,
    }


def test_without_an_endpoint_nothing_is_added() -> None:
    telemetry = set_up_telemetry("x", TelemetryConfig(otlp_endpoint=""))
    assert (telemetry.enabled, telemetry.server_interceptors()) == (False, ())
    telemetry.shut_down()
    code = "import sys, maestro_sdk.service.run; sys.exit('opentelemetry.sdk' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=60).returncode == 0


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    def __init__(self) -> None:
        self.resources: list[Any] = []

    async def Export(self, request: Any, context: Any) -> Any:
        self.resources.extend(request.resource_spans)
        return trace_service_pb2.ExportTraceServiceResponse()


async def test_the_hops_of_a_request_are_one_trace(tmp_path: Path) -> None:
    collector = Collector()
    server = grpc.aio.server()
    trace_service_pb2_grpc.add_TraceServiceServicer_to_server(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    (tmp_path / "ready").touch()
    address = f"127.0.0.1:{free_port()}"
    env = {
        **os.environ,
        "MAESTRO__DATA": str(tmp_path),
        "MAESTRO__GATEWAY__ADDRESS": address,
        "MAESTRO__TELEMETRY__OTLP_ENDPOINT": f"http://127.0.0.1:{port}",
        "MAESTRO__TELEMETRY__LOG_FORMAT": "json",
        "STAND_KEY": "sk-1234567890abcdef",
    }
    child = await asyncio.create_subprocess_exec(
        *(sys.executable, str(Path(__file__).with_name("stand.py")), "3", "0"),
        stderr=asyncio.subprocess.PIPE,
        cwd=tmp_path,
        env=env,
    )
    try:
        message = message_pb2.Message(
            role=message_pb2.ROLE_USER, parts=[message_pb2.Part(text=message_pb2.TextPart(text="hello"))]
        )
        request = chat_pb2.ChatRequest(messages=[message], metadata={"forward": address})
        metadata = (("traceparent", f"00-{TRACE}-{PARENT}-01"), ("x-request-id", "req_1"))
        async with open_channel(address) as channel:
            stub = chat_pb2_grpc.ChatServiceStub(channel)
            await stub.Chat(request, metadata=metadata, wait_for_ready=True, timeout=20)
            streamed = [
                part async for part in stub.StreamChat(chat_pb2.ChatRequest(messages=[message]), metadata=metadata)
            ]
        assert len(streamed) == 3
        child.send_signal(signal.SIGTERM)
        _, log = await asyncio.wait_for(child.communicate(), 20)
    finally:
        if child.returncode is None:
            child.kill()
            await child.communicate()
        await server.stop(None)
    assert child.returncode == 0

    entries = [json.loads(line) for line in log.decode().splitlines()]
    answering = next(entry for entry in entries if entry["message"].startswith("answering"))
    assert answering["message"] == "answering for ***"
    assert (answering["request_id"], answering["trace_id"], answering["service"]) == ("req_1", TRACE, "stand")

    names = {
        attribute.value.string_value
        for resource in collector.resources
        for attribute in resource.resource.attributes
        if attribute.key == "service.name"
    }
    assert names == {"stand"}
    spans = [span for resource in collector.resources for scope in resource.scope_spans for span in scope.spans]
    assert {span.trace_id.hex() for span in spans} == {TRACE}
    chats = [span for span in spans if span.name.endswith("ChatService/Chat")]
    by_parent = {span.parent_span_id.hex(): span for span in chats}
    first = by_parent[PARENT]
    client = by_parent[first.span_id.hex()]
    second = by_parent[client.span_id.hex()]
    assert [span.kind for span in (first, client, second)] == [2, 3, 2], "server, client, server"
    assert len(chats) == 3
    assert [span.parent_span_id.hex() for span in spans if span.name.endswith("StreamChat")] == [PARENT]
