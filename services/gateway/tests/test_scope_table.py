"""The table of scopes in docs/operations.md says what the code demands."""

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from google.api import annotations_pb2
from google.protobuf.descriptor import FileDescriptor, ServiceDescriptor

from maestro.event.v1 import event_pb2
from maestro.gateway.v1 import anthropic_pb2, http_pb2, key_pb2, openai_pb2, stream_pb2, webhook_pb2
from maestro.job.v1 import job_pb2
from maestro.llm.v1 import batch_pb2, chat_pb2, embedding_pb2, file_pb2, model_pb2, standing_pb2
from maestro.memory.v1 import memory_pb2
from maestro.tool.v1 import schema_pb2, tool_pb2
from maestro.usage.v1 import usage_pb2
from maestro_gateway.identity.principal import OPERATOR
from maestro_gateway.identity.scopes import ANY, scope_of_method, scope_of_path

DOCUMENT = Path(__file__).parents[3] / "docs" / "operations.md"
NATIVE = tuple(
    module.DESCRIPTOR
    for module in (
        *(event_pb2, stream_pb2, key_pb2, webhook_pb2, job_pb2, batch_pb2, chat_pb2, embedding_pb2, file_pb2),
        *(model_pb2, standing_pb2, memory_pb2, schema_pb2, tool_pb2, usage_pb2),
    )
)
TRANSCODED = tuple(
    module.DESCRIPTOR for module in (http_pb2, openai_pb2, anthropic_pb2, key_pb2, webhook_pb2, job_pb2, usage_pb2)
)
"""What Envoy makes REST of."""
OWN_PATHS = (
    *("GET /v1/chat/stream", "GET /v1/events/stream", "POST /v1/files", "GET /v1/files", "GET /v1/files/{file_id}"),
    *("GET /v1/files/{file_id}/content", "DELETE /v1/files/{file_id}"),
)
"""What the gateway's own port for HTTP serves."""


def read_table() -> tuple[dict[str, str], dict[str, str]]:
    """Scopes by route, and by service or method, as the table has them."""
    text = DOCUMENT.read_text(encoding="utf-8").split("| needs | REST and WebSocket | gRPC |\n|---|---|---|\n")[1]
    routes: dict[str, str] = {}
    methods: dict[str, str] = {}
    for line in text.split("\n\n")[0].splitlines():
        needs, rest, grpc = line.strip("|").split("|")
        scope = needs.strip().strip("`") if "`" in needs else ANY
        for found, cell in ((routes, rest), (methods, grpc)):
            for name in re.findall(r"`([^`]+)`", cell):
                assert name not in found
                found[name] = scope
    return routes, methods


def services(files: Iterable[FileDescriptor]) -> Iterator[ServiceDescriptor]:
    for file in files:
        yield from file.services_by_name.values()


def routes_served() -> Iterator[tuple[str, str]]:
    """Every route with the scope that the code demands."""
    rule_of: Any = annotations_pb2.http
    for service in services(TRANSCODED):
        for method in service.methods:
            rule = method.GetOptions().Extensions[rule_of]
            scope = scope_of_method(f"/{service.full_name}/{method.name}")
            for each in (rule, *rule.additional_bindings):
                verb = each.WhichOneof("pattern")
                if verb is not None:
                    yield f"{verb.upper()} {getattr(each, verb)}", scope
    for route in OWN_PATHS:
        yield route, scope_of_path(route.partition(" ")[2])


def fitting(table: dict[str, str], name: str, mark: str) -> str | None:
    """The longest entry that fits."""
    fits = [
        entry for entry in table if name == entry or (entry.endswith(mark) and name.startswith(entry[: -len(mark)]))
    ]
    return max(fits, key=len, default=None)


def test_routes() -> None:
    table, _ = read_table()
    used: set[str | None] = set()
    for route, scope in routes_served():
        entry = fitting(table, route, "…")
        used.add(entry)
        assert (table[entry] if entry is not None else OPERATOR) == scope, route
    assert used - {None} == set(table)


def test_methods() -> None:
    _, table = read_table()
    used: set[str] = set()
    for service in services(NATIVE):
        for method in service.methods:
            names = (f"{service.name}.{method.name}", service.name)
            entry = next((name for name in names if name in table), None)
            used |= {entry} if entry is not None else set()
            expected = table[entry] if entry is not None else OPERATOR
            assert scope_of_method(f"/{service.full_name}/{method.name}") == expected, names
    assert used == set(table)
