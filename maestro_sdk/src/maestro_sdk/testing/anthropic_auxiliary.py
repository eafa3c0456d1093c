"""Anthropic's API beside its messages: counting tokens, message batches and files, with a state of their own.

    auxiliary = AnthropicAuxiliary()
    auxiliary.install(server)            # a FaultServer

It is strict: fields, ids, limits and the order of calls are checked as the provider checks them, and refused in the
provider's own words. A batch is under way for `looks` looks at it, then it ends; `expire` ends it early.
"""

from __future__ import annotations

import datetime
import email.parser
import email.policy
import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from email.message import EmailMessage
from typing import Any, cast
from urllib.parse import parse_qs

from maestro_sdk.testing.anthropic_strict import RefusedError, StrictMessages, refuse, without_betas
from maestro_sdk.testing.faults import FaultServer, Headers, Seen, Send, SendJson, Step

COUNT = "/v1/messages/count_tokens"
BATCHES = "/v1/messages/batches"
FILES = "/v1/files"

_COUNTED = frozenset(
    (
        *("messages", "model", "cache_control", "output_config", "speed", "system", "thinking", "tool_choice"),
        *("tools", "user_profile_id", "workspace_id"),
    )
)
_CUSTOM_ID = re.compile(r"^[a-zA-Z0-9_-]{1,64}$")
_BORN = datetime.datetime(2026, 11, 1, 12, tzinfo=datetime.UTC)

Make = Callable[[Mapping[str, Any]], Mapping[str, Any]]
"""The result of one request of a batch, by its `params`: {"type": "succeeded", "message": …} or "errored"."""


@dataclass(slots=True)
class _Batch:
    name: str
    requests: Sequence[Mapping[str, Any]]
    created: datetime.datetime
    looks: int
    cancelled: bool = False
    results: list[dict[str, Any]] | None = None


@dataclass(slots=True)
class _File:
    name: str
    filename: str
    mime_type: str
    content: bytes
    created: datetime.datetime
    expires: datetime.datetime | None
    downloadable: bool


@dataclass(slots=True)
class AnthropicAuxiliary:
    """Keeps batches and files. The provider lets only files be downloaded that its own tools made: `downloadable`."""

    looks: int = 1
    make: Make | None = None
    downloadable: bool = False
    count: Callable[[Mapping[str, Any]], int] | None = None
    batches: dict[str, _Batch] = field(default_factory=dict[str, _Batch])
    files: dict[str, _File] = field(default_factory=dict[str, _File])
    _made: int = 0
    _url: str = ""

    def install(self, server: FaultServer) -> None:
        """Lets `server` answer these paths, over whatever it answers besides."""
        self._url = server.url
        server.on("POST", COUNT, self._count)
        for method in ("GET", "POST"):
            server.on(method, BATCHES, self._guard(self._batch))
            server.on(method, f"{BATCHES}/*", self._guard(self._batch))
        for method in ("GET", "POST", "DELETE"):
            server.on(method, FILES, self._guard(self._file))
            server.on(method, f"{FILES}/*", self._guard(self._file))

    def expire(self, batch_id: str) -> None:
        """Ends a batch now: what was not answered is too late."""
        batch = self.batches[batch_id]
        batch.results = [_line(request, {"type": "expired"}) for request in batch.requests]

    def _count(self, seen: Seen) -> Sequence[Step]:
        body: Any = without_betas(seen, seen.json())
        if extra := sorted(set(body) - _COUNTED):
            return refuse(f"{extra[0]}: Extra inputs are not permitted")
        try:
            StrictMessages().check({**body, "max_tokens": 2**31})
        except RefusedError as refusal:
            return refuse(str(refusal))
        if self.count is not None:
            return [SendJson({"input_tokens": self.count(body)})]
        # One token per word or sign of what counts; a real tokenizer counts otherwise, and as surely.
        counted = {name: body[name] for name in ("messages", "system", "tools") if name in body}
        return [SendJson({"input_tokens": len(re.findall(r"\w+|[^\w\s]", json.dumps(counted)))})]

    def _guard(self, reply: Callable[[Seen], Sequence[Step]]) -> Callable[[Seen], Sequence[Step]]:
        def guarded(seen: Seen) -> Sequence[Step]:
            if not seen.headers.get("authorization", "").startswith("Bearer "):
                return refuse("invalid bearer token", 401, "authentication_error")
            try:
                return reply(seen)
            except RefusedError as refusal:
                return refuse(str(refusal))
            except KeyError as missing:
                return refuse(f"{missing.args[0]} not found", 404, "not_found_error")

        return guarded

    def _batch(self, seen: Seen) -> Sequence[Step]:
        steps = seen.path.removeprefix(BATCHES).strip("/").split("/")
        match seen.method, steps:
            case "POST", [""]:
                return [SendJson(self._show(self._create(seen.json())))]
            case "GET", [""]:
                return [SendJson(self._page(seen.query))]
            case "GET", [name]:
                batch = self.batches[name]
                self._look(batch)
                return [SendJson(self._show(batch))]
            case "POST", [name, "cancel"]:
                batch = self.batches[name]
                if batch.results is not None:
                    raise RefusedError(f"Batch {name} cannot be canceled because it has already ended")
                batch.cancelled, batch.looks = True, 1
                return [SendJson(self._show(batch))]
            case "GET", [name, "results"]:
                results = self.batches[name].results
                if results is None:
                    raise RefusedError("Batch results are not available while the batch is being processed")
                lines = b"".join(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in results)
                # In pieces that end anywhere, as a network does.
                pieces = [lines[start : start + 100] for start in range(0, len(lines), 100)]
                head = Headers(200, {"content-type": "application/x-jsonlines"})
                return [head, *(Send(piece) for piece in pieces)]
            case _:
                raise KeyError(seen.path)

    def _create(self, body: Any) -> _Batch:
        requests: list[Any] = body["requests"]
        if not requests:
            raise RefusedError("requests: List should have at least 1 item after validation, not 0")
        names = [request["custom_id"] for request in requests]
        for number, name in enumerate(names):
            if not _CUSTOM_ID.match(name):
                raise RefusedError(
                    f"requests.{number}.custom_id: String should match pattern '^[a-zA-Z0-9_-]{{1,64}}$'"
                )
            if name in names[:number]:
                raise RefusedError(f"requests.{number}.custom_id: custom_id must be unique")
            if requests[number]["params"].get("stream"):
                raise RefusedError(f"requests.{number}.params.stream: streaming is not supported in batches")
        self._made += 1
        name = f"msgbatch_{self._made:03}"
        created = _BORN + datetime.timedelta(minutes=self._made)
        batch = self.batches[name] = _Batch(name, requests, created, self.looks)
        return batch

    def _look(self, batch: _Batch) -> None:
        if batch.results is not None:
            return
        batch.looks -= 1
        if batch.looks < 0:
            given = {"type": "canceled"}
            batch.results = [
                _line(request, given if batch.cancelled else (self.make or answer)(request["params"]))
                for request in reversed(batch.requests)
            ]

    def _show(self, batch: _Batch) -> dict[str, Any]:
        counts = dict.fromkeys(("processing", "succeeded", "errored", "canceled", "expired"), 0)
        for result in batch.results or ():
            counts[result["result"]["type"]] += 1
        over = batch.results is not None
        counts["processing"] = 0 if over else len(batch.requests)
        later = batch.created + datetime.timedelta(minutes=5)
        return {
            "id": batch.name,
            "type": "message_batch",
            "processing_status": "ended" if over else "canceling" if batch.cancelled else "in_progress",
            "request_counts": counts,
            "created_at": batch.created.isoformat(),
            "expires_at": (batch.created + datetime.timedelta(hours=24)).isoformat(),
            "ended_at": later.isoformat() if over else None,
            "cancel_initiated_at": later.isoformat() if batch.cancelled else None,
            "archived_at": None,
            "results_url": f"{self._url}{BATCHES}/{batch.name}/results" if over else None,
        }

    def _page(self, query: str) -> dict[str, Any]:
        given = {name: values[0] for name, values in parse_qs(query).items()}
        if {"after_id", "before_id"} <= set(given):
            raise RefusedError("only one of after_id and before_id may be given")
        limit = int(given.get("limit", "20"))
        if not 1 <= limit <= 1000:
            raise RefusedError("limit: Input should be from 1 to 1000")
        newest = sorted(self.batches, reverse=True)
        if after := given.get("after_id"):
            newest = [name for name in newest if name < after]
        page = newest[:limit]
        return {
            "data": [self._show(self.batches[name]) for name in page],
            "has_more": len(newest) > limit,
            "first_id": page[0] if page else None,
            "last_id": page[-1] if page else None,
        }

    def _file(self, seen: Seen) -> Sequence[Step]:
        steps = seen.path.removeprefix(FILES).strip("/").split("/")
        match seen.method, steps:
            case "POST", [""]:
                return [SendJson(_describe(self._upload(seen)))]
            case "GET", [""]:
                return [SendJson(self._files(seen.query))]
            case "GET", [name]:
                return [SendJson(_describe(self.files[name]))]
            case "GET", [name, "content"]:
                file = self.files[name]
                if not file.downloadable:
                    error = {"type": "invalid_request_error", "message": f"File '{name}' is not downloadable."}
                    details = {"details": {"error_code": "file_not_downloadable"}}
                    return [Headers(400), SendJson({"type": "error", "error": {**error, **details}})]
                return [Headers(200, {"content-type": file.mime_type}), Send(file.content)]
            case "DELETE", [name]:
                del self.files[name]
                return [SendJson({"id": name, "type": "file_deleted"})]
            case _:
                raise KeyError(seen.path)

    def _upload(self, seen: Seen) -> _File:
        head = f"content-type: {seen.headers['content-type']}\r\n\r\n".encode()
        form = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + seen.body)
        parts = {str(part.get_param("name", header="content-disposition")): part for part in form.iter_parts()}
        if "file" not in parts:
            raise RefusedError("file: Field required")
        file = cast("EmailMessage", parts["file"])
        self._made += 1
        created = _BORN + datetime.timedelta(minutes=self._made)
        expires: datetime.datetime | None = None
        if "expires_in_seconds" in parts:
            seconds = int(str(cast("EmailMessage", parts["expires_in_seconds"]).get_content()))
            if not 3600 <= seconds <= 7776000:
                raise RefusedError("expires_in_seconds: Input should be from 3600 to 7776000")
            expires = created + datetime.timedelta(seconds=seconds)
        name = f"file_{self._made:03}"
        content = cast("bytes", file.get_payload(decode=True))
        made = _File(
            name, file.get_filename("unnamed"), file.get_content_type(), content, created, expires, self.downloadable
        )
        self.files[name] = made
        return made

    def _files(self, query: str) -> dict[str, Any]:
        given = {name: values[0] for name, values in parse_qs(query).items()}
        limit, start = int(given.get("limit", "20")), int(given.get("page", "page_0").removeprefix("page_"))
        newest = sorted(self.files, reverse=True)
        page = newest[start : start + limit]
        more = f"page_{start + limit}" if len(newest) > start + limit else None
        return {"data": [_describe(self.files[name]) for name in page], "next_page": more}


def answer(params: Mapping[str, Any]) -> Mapping[str, Any]:
    """The result for one request: what a strict server would say to it."""
    strict = StrictMessages()
    try:
        strict.check(params)
    except RefusedError as refusal:
        error = {"type": "invalid_request_error", "message": str(refusal)}
        return {"type": "errored", "error": {"type": "error", "error": error, "request_id": "req_batch"}}
    return {"type": "succeeded", "message": strict.answer(params)}


def _line(request: Mapping[str, Any], result: Mapping[str, Any]) -> dict[str, Any]:
    return {"custom_id": request["custom_id"], "result": dict(result)}


def _describe(file: _File) -> dict[str, Any]:
    return {
        "id": file.name,
        "type": "file",
        "filename": file.filename,
        "mime_type": file.mime_type,
        "size_bytes": len(file.content),
        "created_at": file.created.isoformat(),
        "expires_at": file.expires.isoformat() if file.expires else None,
        "downloadable": file.downloadable,
    }
