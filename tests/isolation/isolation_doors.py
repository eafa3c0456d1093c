"""Every door, and what a stranger tries at it. `{name}` stands for an identifier of the owner, or for one of nobody."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from .isolation_mesh import item, turn

FORGED = {
    "x-maestro-tenant": "{tenant}",
    "x-maestro-call-key": "{job_id}.0.1",
    "x-envoy-external-address": "10.9.8.7",
    "tenant": "{tenant}",
}


@dataclass(frozen=True)
class Rest:
    """A request of HTTP. `covers` is its operation; operators may see what an `open` one gives."""

    verb: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    body: Any = None
    headers: Mapping[str, str] = field(default_factory=dict[str, str])
    open: bool = False
    twin: bool = True
    """Whether the answer has to be the same for an identifier of nobody."""
    operation: str = ""

    @property
    def covers(self) -> tuple[str, str]:
        """The operation of the document."""
        return self.verb.lower(), self.operation or self.path


@dataclass(frozen=True)
class Rpc:
    """A call of gRPC. `body` is the request, or a list of them, as JSON."""

    method: str
    body: Any = field(default_factory=dict[str, Any])
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    open: bool = False
    twin: bool = True


@dataclass(frozen=True)
class Socket:
    """A WebSocket: what is asked, and what is sent up."""

    path: str
    frames: tuple[Any, ...] = ()
    query: Mapping[str, str] = field(default_factory=dict[str, str])
    open: bool = False
    twin: bool = True


Door = Rest | Rpc | Socket

_FILE = {"role": "user", "content": [{"type": "text", "text": "read"}, {"type": "document", "file_id": "{file_id}"}]}
_PART = {"document": {"file_id": "{file_id}"}}
_TURN = {"role": "ROLE_USER", "parts": [_PART]}
_RULES = ({}, {"tenant": "{tenant}"})
_KINDS = (
    *("request.*", "job.*", "*", ">", "..", "request.>", "*.*", "request.completed,*", "maestro.events.>", "."),
    *("{tenant}.>", "job.completed"),
)


def rest() -> Iterator[Rest]:
    """All of HTTP."""
    for path in ("/docs", "/openapi.json", "/healthz", "/readyz"):
        yield Rest("GET", path, twin=False)
    for path in ("/v1/models", "/v1/router/backends", "/v1/health/providers"):
        yield Rest("GET", path, twin=False)
        yield Rest("GET", path, headers=FORGED, twin=False)
    yield from _models()
    yield from _chats()
    yield from _money()
    yield from _files()
    yield from _jobs()
    yield from _keys()
    yield from _hooks()
    feed = "/v1/events/stream"
    yield Rest("GET", feed, {"after": "0"}, twin=False)
    yield Rest("GET", feed, {"after": "0"}, headers=FORGED, twin=False)
    yield Rest("GET", feed, headers={"last-event-id": "{after}"}, twin=False)
    yield Rest("GET", feed, {"after": "0", "job": "{job_id}"}, twin=False)
    yield Rest("GET", feed, {"after": "0", "tenant": "{tenant}"}, open=True)
    for kinds in _KINDS:
        yield Rest("GET", feed, {"after": "0", "kinds": kinds}, twin=False)
    for wrong in ("*", ">", "..", "{tenant}.request", "mesh", "_mesh", "-"):
        yield Rest("GET", feed, {"after": "0", "tenant": wrong}, open=True)
        yield Rest("GET", feed, {"after": "0", "job": wrong}, twin=False)


def _models() -> Iterator[Rest]:
    models, one = "/v1/models", "/v1/models/{model}"
    for cursor in ("after_id", "before_id"):
        yield Rest("GET", models, {"limit": "3", cursor: "{tenant}"}, twin=False)
    strangers = ("{tenant}", "{tenant}/model", "{file_id}", "{key_id}")
    for name in ("fake/model", "fake%2Fmodel", "default", "*", "%3E", *strangers):
        for headers in ({}, {**FORGED, "anthropic-version": "2023-06-01"}):
            yield Rest("GET", f"{models}/{name}", headers=headers, operation=one, twin=name in strangers)


def _chats() -> Iterator[Rest]:
    chat, mine = "/v1/chat", "/v1/chat/{stream}"
    for name in ("{stream}", "{live}", "*", "%3E", "{tenant}.{stream}"):
        yield Rest("GET", f"/v1/chat/{name}/events", operation=f"{mine}/events")
        yield Rest("GET", f"/v1/chat/{name}/events", {"after": "1"}, operation=f"{mine}/events")
        yield Rest("GET", f"/v1/chat/{name}/events", headers={"last-event-id": "2"}, operation=f"{mine}/events")
        yield Rest("GET", f"/v1/chat/{name}/events", headers=FORGED, operation=f"{mine}/events")
        yield Rest("DELETE", f"/v1/chat/{name}", operation=mine)
        yield Rest("DELETE", f"/v1/chat/{name}", headers=FORGED, operation=mine)
    yield Rest("POST", chat, body={"messages": [_FILE]})
    yield Rest("POST", chat, body={"messages": [_FILE], "stream": True})
    yield Rest("POST", chat, body={"messages": [_FILE]}, headers=FORGED)
    yield Rest("POST", f"{chat}:estimate", body={**turn("what"), "routing": {"session_key": "{session}"}})
    yield Rest("POST", "/v1/chat/completions", body={"model": "fake/model", "messages": _loop()}, twin=False)
    anthropic = [
        {"role": "user", "content": "what"},
        {"role": "assistant", "content": [{"type": "tool_use", "id": "{call_id}", "name": "find", "input": {}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "{call_id}", "content": "it"}]},
    ]
    told = {
        "model": "fake/model",
        "max_tokens": 99,
        "messages": anthropic,
        "tools": [{"name": "find", "input_schema": {}}],
    }
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        yield Rest("POST", path, body=told, headers={"anthropic-version": "2023-06-01"}, twin=False)
    yield Rest("POST", "/v1/embeddings", body={"model": "embed", "input": ["9"]}, headers=FORGED, twin=False)
    explain = "/v1/router:explain"
    for name in ("{request_id}", "{stream}", "*"):
        yield Rest("POST", explain, body={"request_id": name})
        yield Rest("POST", explain, body={"request_id": name, "after": "2026-01-01T00:00:00Z"}, headers=FORGED)
    yield Rest("POST", explain, body={"routing": {"session_key": "{session}"}}, twin=False)
    content = "/v1/requests/{request_id}/content"
    for name in ("{request_id}", "{stream}", "*", "%3E"):
        yield Rest("GET", f"/v1/requests/{name}/content", operation=content)
        yield Rest("GET", f"/v1/requests/{name}/content", headers=FORGED, operation=content)


def _loop() -> list[Any]:
    call = {"id": "{call_id}", "type": "function", "function": {"name": "find", "arguments": "{}"}}
    return [
        {"role": "user", "content": "what"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "{call_id}", "content": "it"},
    ]


def _money() -> Iterator[Rest]:
    audit, usage, budgets = "/v1/audit", "/v1/usage", "/v1/budgets"
    for path in (audit, usage, budgets, "/v1/usage.csv"):
        yield Rest("GET", path, twin=False)
        yield Rest("GET", path, headers=FORGED, twin=False)
        for name in ("{tenant}", "*", ">", "..", "-", "{tenant}.x"):
            yield Rest("GET", path, {"tenant": name}, open=True)
    for name, value in (("request_id", "{request_id}"), ("key_id", "{key_id}"), ("target", "key/{key_id}")):
        yield Rest("GET", audit, {name: value})
    for token in ("{number}", "99999999", "1"):
        yield Rest("GET", audit, {"page_token": token}, twin=False)
    yield Rest("GET", usage, {"group_by": "tenant"}, open=True)
    for name, value in (("key_id", "{key_id}"), ("labels", "canary-label=canary-label-value"), ("group_by", "key")):
        yield Rest("GET", usage, {name: value}, twin=False)
        yield Rest("GET", "/v1/usage.csv", {name: value}, twin=False)
    for name in ("{budget}", "shared", "*"):
        yield Rest("GET", budgets, {"budget": name}, open=True)
    estimated = item("what")
    yield Rest("POST", "/v1/usage:estimate", body=estimated, headers=FORGED, twin=False)


def _files() -> Iterator[Rest]:
    files, one = "/v1/files", "/v1/files/{file_id}"
    yield Rest("GET", files, twin=False)
    yield Rest("GET", files, headers=FORGED, twin=False)
    for name in ("{file_id}", "{input_id}"):
        yield Rest("GET", files, {"page_token": name}, twin=False)
        path = f"{files}/{name}"
        yield Rest("GET", path, operation=one)
        yield Rest("GET", path, headers=FORGED, operation=one)
        yield Rest("GET", f"{path}/content", operation=f"{one}/content")
        yield Rest("GET", f"{path}/content", headers={"range": "bytes=2-4"}, operation=f"{one}/content")
        yield Rest("GET", f"{path}/content", headers={"range": "bytes=-3", **FORGED}, operation=f"{one}/content")
        yield Rest("GET", f"{path}/content", headers={"range": "bytes=999-"}, operation=f"{one}/content")
        yield Rest("DELETE", path, operation=one)
        yield Rest("DELETE", path, headers={"idempotency-key": "{upload}"}, operation=one)
    for name in ("*", "%3E", "..", "{tenant}.{file_id}"):
        yield Rest("GET", f"{files}/{name}", operation=one, twin=False)
        yield Rest("GET", f"{files}/{name}/content", operation=f"{one}/content", twin=False)
        yield Rest("DELETE", f"{files}/{name}", operation=one, twin=False)
    query = {"purpose": "content", "filename": "own.txt", "tenant": "{tenant}"}
    yield Rest("POST", files, query, body=b"own", headers=FORGED)


def _jobs() -> Iterator[Rest]:
    jobs, one = "/v1/jobs", "/v1/jobs/{job_id}"
    yield Rest("GET", jobs, twin=False)
    yield Rest("GET", jobs, {"page_token": "{jobs_token}"}, headers=FORGED, twin=False)
    yield Rest("GET", jobs, {"page_token": "{results_token}"})
    for name in ("{job_id}", "*", "%3E"):
        yield Rest("GET", f"{jobs}/{name}", operation=one)
        yield Rest("GET", f"{jobs}/{name}", headers=FORGED, operation=one)
        yield Rest("POST", f"{jobs}/{name}:cancel", body={}, operation=f"{one}:cancel")
        yield Rest("GET", f"{jobs}/{name}/results", operation=f"{one}/results")
        yield Rest("GET", f"{jobs}/{name}/results", {"page_token": "{results_token}"}, operation=f"{one}/results")
        yield Rest("GET", f"{jobs}/{name}/results", headers=FORGED, operation=f"{one}/results")
    for name in ("{input_id}", "{file_id}"):
        yield Rest("POST", jobs, body={"input_file_id": name})
        yield Rest("POST", jobs, body={"input_file_id": name}, headers=FORGED)


def _keys() -> Iterator[Rest]:
    keys, one = "/v1/keys", "/v1/keys/{key_id}"
    for query in _RULES:
        yield Rest("GET", keys, query, open=True)
        yield Rest("GET", keys, query, headers=FORGED, open=True, twin=bool(query))
    yield Rest("GET", keys, {"page_token": "{key_id}"}, twin=False)
    for name in ("*", ">", "-"):
        yield Rest("GET", keys, {"tenant": name}, open=True)
    yield Rest("POST", keys, body={"tenant": "{tenant}"}, open=True)
    yield Rest("DELETE", one, open=True)
    yield Rest("DELETE", one, {"request_id": "{making}"}, open=True)
    for action in ("rotate", "revoke"):
        yield Rest("POST", f"{one}:{action}", body={}, open=True)
        yield Rest("POST", f"{one}:{action}", body={"request_id": "{making}"}, headers=FORGED, open=True)


def _hooks() -> Iterator[Rest]:
    hooks, one = "/v1/webhooks", "/v1/webhooks/{webhook}"
    for query in _RULES:
        yield Rest("GET", hooks, query, open=True)
        for name in ("{webhook}", "own-hook", "*", "%3E", "..", "{tenant}.{webhook}"):
            letters = f"{hooks}/{name}/dead-letters"
            yield Rest("GET", letters, query, open=True, operation=f"{one}/dead-letters")
            yield Rest("GET", letters, {**query, "page_token": "1"}, open=True, operation=f"{one}/dead-letters")
    for body in _RULES:
        yield Rest("POST", f"{one}:replay", body=body, open=True)
        yield Rest(
            "POST",
            f"{hooks}/own-hook:replay",
            body={**body, "numbers": ["{number}"]},
            open=True,
            operation=f"{one}:replay",
        )
        yield Rest("POST", f"{one}:test", body=body, open=True)


def rpcs() -> Iterator[Rpc]:
    """All of gRPC."""
    llm, job, usage = "/maestro.llm.v1.", "/maestro.job.v1.JobService/", "/maestro.usage.v1.UsageService/"
    gateway, forged = "/maestro.gateway.v1.", FORGED
    named = {"model": "fake/model", "messages": [_TURN]}
    yield Rpc(f"{llm}ModelService/ListModels", metadata=forged, twin=False)
    yield Rpc(f"{llm}ModelService/GetInfo", metadata=forged, twin=False)
    for method in ("Chat", "StreamChat"):
        yield Rpc(f"{llm}ChatService/{method}", named)
        yield Rpc(f"{llm}ChatService/{method}", named, forged)
    yield Rpc(f"{llm}ChatService/CountTokens", {"request": named}, twin=False)
    yield Rpc(f"{llm}EmbeddingService/Embed", {"model": "embed", "inputs": [{"text": "8"}]}, forged, twin=False)
    for name in ("{file_id}", "{input_id}", "*", "{tenant}.{file_id}"):
        yield Rpc(f"{llm}FileService/GetFile", {"file_id": name})
        yield Rpc(f"{llm}FileService/GetFile", {"file_id": name}, forged)
        for offset in (0, 3, 999):
            yield Rpc(f"{llm}FileService/DownloadFile", {"file_id": name, "offset": offset})
        yield Rpc(f"{llm}FileService/DeleteFile", {"file_id": name})
        yield Rpc(f"{llm}FileService/DeleteFile", {"file_id": name, "request_id": "{upload}"}, forged)
    yield Rpc(f"{llm}FileService/ListFiles", metadata=forged, twin=False)
    yield Rpc(f"{llm}FileService/ListFiles", {"page_token": "{file_id}"}, twin=False)
    header = {"filename": "own.txt", "purpose": "FILE_PURPOSE_CONTENT"}
    yield Rpc(f"{llm}FileService/UploadFile", [{"header": header}, {"data": "b3du"}], forged, twin=False)
    for name in ("{job_id}", "*", "{tenant}.{job_id}"):
        for method in ("GetJob", "CancelJob", "ListJobResults", "StreamJobResults"):
            yield Rpc(job + method, {"job_id": name})
            yield Rpc(job + method, {"job_id": name}, forged)
        yield Rpc(f"{job}ListJobResults", {"job_id": name, "page_token": "{results_token}"})
        yield Rpc(f"{job}StreamJobResults", {"job_id": name, "resume_token": "{results_token}"})
    yield Rpc(f"{job}ListJobs", metadata=forged, twin=False)
    yield Rpc(f"{job}ListJobs", {"page_token": "{jobs_token}"}, twin=False)
    yield Rpc(f"{job}CreateJob", {"input_file_id": "{input_id}"}, forged)
    for body in _RULES:
        for method in ("QueryUsage", "ListAuditRecords", "ListBudgets"):
            yield Rpc(usage + method, body, forged, open=True, twin=bool(body))
    yield Rpc(f"{usage}ListBudgets", {"budget": "{budget}"}, open=True)
    yield Rpc(f"{usage}ListAuditRecords", {"request_id": "{request_id}"})
    for name in ("{request_id}", "{stream}"):
        yield Rpc(f"{usage}GetRequestContent", {"request_id": name}, forged)
    yield Rpc(f"{usage}EstimateCost", item("what"), forged, twin=False)
    events = "/maestro.event.v1.EventService/Subscribe"
    yield Rpc(events, {"after_sequence": 0}, forged, twin=False)
    yield Rpc(events, {"after_sequence": 0, "tenant": "{tenant}"}, open=True)
    yield Rpc(events, {"after_sequence": 0, "job_id": "{job_id}"}, twin=False)
    for kind in _KINDS:
        yield Rpc(events, {"after_sequence": 0, "kinds": [kind]}, twin=False)
    for body in _RULES:
        yield Rpc(f"{gateway}KeyService/ListKeys", body, forged, open=True, twin=bool(body))
        yield Rpc(f"{gateway}WebhookService/ListWebhooks", body, forged, open=True, twin=bool(body))
        for method in ("ListDeadLetters", "ReplayDeadLetters", "TestWebhook"):
            yield Rpc(f"{gateway}WebhookService/{method}", {**body, "webhook": "{webhook}"}, forged, open=True)
    yield Rpc(f"{gateway}KeyService/CreateKey", {"tenant": "{tenant}"}, forged, open=True)
    yield Rpc(f"{gateway}KeyService/RotateKey", {"key_id": "{key_id}"}, forged, open=True)
    yield Rpc(f"{gateway}KeyService/RevokeKey", {"key_id": "{key_id}"}, forged, open=True)
    for name in ("{stream}", "{live}", "*", "{tenant}.{stream}"):
        for after in (0, 1):
            yield Rpc(f"{gateway}StreamService/ResumeChat", {"stream": name, "after": after}, forged)
        yield Rpc(f"{gateway}StreamService/CancelChat", {"stream": name}, forged)


def sockets() -> Iterator[Socket]:
    """All WebSockets."""
    chat, feed = "/v1/chat/stream", "/v1/events/stream"
    for name in ("{stream}", "{live}", "*"):
        for after in (0, 2):
            resumed = {"type": "resume", "id": "c1", "stream": name, "after": after}
            yield Socket(chat, (resumed,))
            # Whether it is cancelled before it is answered is a matter of moments, whosever name it is.
            yield Socket(chat, (resumed, {"type": "cancel", "id": "c1"}), twin=False)
    yield Socket(chat, ({"type": "chat", "id": "c1", "request": {"messages": [_FILE]}},))
    yield Socket(chat, ({"type": "cancel", "id": "{live}"}, {"type": "ping"}))
    for query in ({}, {"job": "{job_id}"}, {"kinds": "request.*,job.*"}):
        yield Socket(feed, query={"after": "0", **query}, twin=False)
    yield Socket(feed, query={"after": "0", "tenant": "{tenant}"}, open=True)
    for kinds in _KINDS:
        yield Socket(feed, query={"after": "0", "kinds": kinds}, twin=False)
