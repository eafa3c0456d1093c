"""Embeddings, files and batches of OpenAI's API, or Azure's, behind a fault server: stateful, and strict about shapes.

    OpenAIAuxiliary(server)                       # /v1/embeddings, /v1/files…, /v1/batches…
    OpenAIAuxiliary(server, AZURE)                # /openai/deployments/*/embeddings, /openai/files…, /openai/batches…

What the real API refuses gets its error here. Time alone moves a batch on.
"""

from __future__ import annotations

import email.parser
import email.policy
import itertools
import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote

from maestro_sdk.testing import openai_chat
from maestro_sdk.testing.faults import FaultServer, Headers, Seen, Send, SendJson, Step
from maestro_sdk.testing.openai_embedding import Refused, embed, refuse
from maestro_sdk.testing.wire import Answer, Tokens

Answers = Callable[[Any], tuple[int, Any]]
"""Answers the body of one request of a batch: status and document."""

_CREATED = 1_790_000_000
_LABELS, _LABEL_NAME, _LABEL_VALUE = 16, 64, 512


@dataclass(frozen=True, slots=True)
class Account:
    """Where an API is, and what differs there."""

    root: str
    embeddings: str
    endpoints: tuple[str, ...]
    purposes: frozenset[str]
    key_header: str
    versioned: bool = False
    """Whether each call has to name an `api-version`."""


OPENAI = Account(
    "/v1",
    "/v1/embeddings",
    ("/v1/chat/completions", "/v1/embeddings"),
    frozenset({"assistants", "batch", "fine-tune", "vision", "user_data", "evals"}),
    "authorization",
)
AZURE = Account(
    "/openai",
    "/openai/deployments/*/embeddings",
    ("/chat/completions",),
    frozenset({"assistants", "batch", "fine-tune"}),
    "api-key",
    versioned=True,
)


@dataclass(slots=True)
class StoredFile:
    """A file that was uploaded, or that a batch left behind."""

    file_id: str
    filename: str
    purpose: str
    content: bytes
    created_at: int
    expires_at: int | None = None

    def document(self) -> dict[str, Any]:
        """The file as the API tells it."""
        return {
            "id": self.file_id,
            "object": "file",
            "bytes": len(self.content),
            "created_at": self.created_at,
            "filename": self.filename,
            "purpose": self.purpose,
            "status": "processed",
            "expires_at": self.expires_at,
        }


@dataclass(slots=True)
class StoredBatch:
    """A batch; `status` is what the last look at it found."""

    batch_id: str
    endpoint: str
    input_file_id: str
    metadata: dict[str, str]
    created_at: int
    begun: float
    status: str = "validating"
    output_file_id: str | None = None
    error_file_id: str | None = None
    errors: list[dict[str, Any]] = field(default_factory=list[dict[str, Any]])
    counts: dict[str, int] = field(default_factory=lambda: {"total": 0, "completed": 0, "failed": 0})

    def document(self) -> dict[str, Any]:
        """The batch as the API tells it."""
        over = {f"{self.status}_at": self.created_at + 60} if self.status in _OVER else {}
        return {
            "id": self.batch_id,
            "object": "batch",
            "endpoint": self.endpoint,
            "errors": {"object": "list", "data": self.errors} if self.errors else None,
            "input_file_id": self.input_file_id,
            "completion_window": "24h",
            "status": self.status,
            "output_file_id": self.output_file_id,
            "error_file_id": self.error_file_id,
            "created_at": self.created_at,
            "expires_at": self.created_at + 86400,
            "request_counts": self.counts,
            "metadata": self.metadata or None,
            **over,
        }


_OVER = frozenset({"completed", "failed", "cancelled", "expired"})


class OpenAIAuxiliary:
    """The state of one account. `takes` is the time in seconds that a batch needs, and half of that to be cancelled."""

    def __init__(
        self,
        server: FaultServer,
        account: Account = OPENAI,
        answers: Answers | None = None,
        takes: float = 0.1,
    ) -> None:
        self.account = account
        self.files: dict[str, StoredFile] = {}
        self.batches: dict[str, StoredBatch] = {}
        self.takes = takes
        self._answers = answers or self._answer
        self._numbers = itertools.count(1)
        root = account.root
        for method, path, act in (
            ("POST", account.embeddings, self._embed),
            ("POST", f"{root}/files", self._upload),
            ("GET", f"{root}/files", self._list_files),
            ("GET", f"{root}/files/*", self._get_file),
            ("DELETE", f"{root}/files/*", self._delete_file),
            ("POST", f"{root}/batches", self._create_batch),
            ("POST", f"{root}/batches/*/cancel", self._cancel_batch),
            ("GET", f"{root}/batches", self._list_batches),
            ("GET", f"{root}/batches/*", self._get_batch),
        ):
            server.on(method, path, self._guard(act))

    def finish(self, batch_id: str, status: str, answered: int | None = None) -> None:
        """Ends a batch with that status; of its items the first `answered` have an answer, or all."""
        self._end(self.batches[batch_id], status, answered)

    def _guard(self, act: Callable[[Seen], Sequence[Step]]) -> Callable[[Seen], Sequence[Step]]:
        def reply(seen: Seen) -> Sequence[Step]:
            try:
                keyed = seen.headers.get(self.account.key_header) or seen.headers.get("authorization")
                if not keyed:
                    raise Refused(401, "You didn't provide an API key.", code="invalid_api_key")
                if self.account.versioned and not _query(seen).get("api-version"):
                    raise Refused(404, "Resource not found", code="404")
                return act(seen)
            except Refused as refused:
                return [Headers(refused.status), SendJson({"error": refused.document})]

        return reply

    # --- embeddings -------------------------------------------------------------------------------------------------

    def _embed(self, seen: Seen) -> Sequence[Step]:
        body = seen.json()
        deployed = seen.path.split("/")[3] if self.account.versioned else str(body.get("model") or "")
        return [SendJson(embed(body, deployed))]

    def _answer(self, body: Any) -> tuple[int, Any]:
        if "input" in body:
            return 200, embed(body, str(body.get("model") or ""))
        seen = Seen("POST", openai_chat.PATH, "", {}, json.dumps(body).encode())
        text = f"Mock answer to {len(body['messages'])} messages."
        return 200, openai_chat.WIRE.document(Answer(pieces=(text,), tokens=Tokens(input=100, output=10)), seen)

    # --- files ------------------------------------------------------------------------------------------------------

    def _upload(self, seen: Seen) -> Sequence[Step]:
        fields, filename, content = read_form(seen)
        purpose = fields.get("purpose", "")
        if purpose not in self.account.purposes:
            raise Refused(400, f"'{purpose}' is not one of {sorted(self.account.purposes)}", "purpose")
        if purpose == "batch" and not filename.endswith(".jsonl"):
            raise Refused(400, "Invalid file format for Batch API. Must be .jsonl", "file")
        expires_at = None
        if "expires_after[anchor]" in fields or "expires_after[seconds]" in fields:
            seconds = int(fields.get("expires_after[seconds]", "0"))
            if fields.get("expires_after[anchor]") != "created_at" or not 3600 <= seconds <= 2592000:
                raise Refused(400, "Invalid expires_after", "expires_after")
            expires_at = _CREATED + seconds
        if strange := set(fields) - {"purpose", "expires_after[anchor]", "expires_after[seconds]"}:
            raise Refused(400, f"Unrecognized request argument supplied: {', '.join(sorted(strange))}")
        return [SendJson(self._keep(filename, purpose, content, expires_at).document())]

    def _keep(self, filename: str, purpose: str, content: bytes, expires_at: int | None = None) -> StoredFile:
        number = next(self._numbers)
        file = StoredFile(f"file-{number:06d}", filename, purpose, content, _CREATED + number, expires_at)
        self.files[file.file_id] = file
        return file

    def _list_files(self, seen: Seen) -> Sequence[Step]:
        query = _query(seen)
        found = [file.document() for file in self.files.values() if query.get("purpose") in {None, file.purpose}]
        return [SendJson(_page(found if query.get("order") == "asc" else found[::-1], query, 10_000))]

    def _get_file(self, seen: Seen) -> Sequence[Step]:
        if seen.path.endswith("/content"):
            file = self._file(seen.path.split("/")[-2])
            if file.purpose in {"user_data", "assistants", "vision"}:
                raise Refused(400, f"Not allowed to download files of purpose: {file.purpose}")
            return [Headers(200, {"content-type": "application/octet-stream"}), *_pieces(file.content)]
        return [SendJson(self._file(seen.path.split("/")[-1]).document())]

    def _delete_file(self, seen: Seen) -> Sequence[Step]:
        file = self._file(seen.path.split("/")[-1])
        del self.files[file.file_id]
        return [SendJson({"id": file.file_id, "object": "file", "deleted": True})]

    def _file(self, file_id: str) -> StoredFile:
        found = self.files.get(unquote(file_id))
        if found is None:
            raise Refused(404, f"No such File object: {unquote(file_id)}", "id")
        return found

    # --- batches ----------------------------------------------------------------------------------------------------

    def _create_batch(self, seen: Seen) -> Sequence[Step]:
        body = seen.json()
        fields = {"input_file_id", "endpoint", "completion_window", "metadata", "output_expires_after"}
        if strange := set(body) - fields:
            raise Refused(400, f"Unknown parameter: '{min(strange)}'.", min(strange), "unknown_parameter")
        if body.get("completion_window") != "24h":
            raise Refused(400, "Invalid value: completion_window must be 24h", "completion_window")
        if body.get("endpoint") not in self.account.endpoints:
            raise Refused(400, f"Invalid value: '{body.get('endpoint')}'", "endpoint")
        file = self.files.get(str(body.get("input_file_id")))
        if file is None or file.purpose != "batch":
            raise Refused(400, f"Invalid input file: {body.get('input_file_id')}", "input_file_id")
        labels: dict[str, str] = body.get("metadata") or {}
        if len(labels) > _LABELS or any(
            len(name) > _LABEL_NAME or len(value) > _LABEL_VALUE for name, value in labels.items()
        ):
            raise Refused(400, "Invalid metadata", "metadata")
        number = next(self._numbers)
        batch = StoredBatch(
            f"batch_{number:06d}", body["endpoint"], file.file_id, labels, _CREATED + number, time.monotonic()
        )
        self.batches[batch.batch_id] = batch
        return [SendJson(batch.document())]

    def _get_batch(self, seen: Seen) -> Sequence[Step]:
        return [SendJson(self._batch(seen.path.split("/")[-1]).document())]

    def _list_batches(self, seen: Seen) -> Sequence[Step]:
        found = [self._batch(batch_id).document() for batch_id in reversed(self.batches)]
        return [SendJson(_page(found, _query(seen), 100))]

    def _cancel_batch(self, seen: Seen) -> Sequence[Step]:
        batch = self._batch(seen.path.split("/")[-2])
        if batch.status in _OVER:
            raise Refused(409, f"Cannot cancel a batch with status '{batch.status}'.")
        if batch.status != "cancelling":
            batch.status, batch.begun = "cancelling", time.monotonic()
        return [SendJson(batch.document())]

    def _batch(self, batch_id: str) -> StoredBatch:
        batch = self.batches.get(unquote(batch_id))
        if batch is None:
            raise Refused(404, f"No batch found with id '{unquote(batch_id)}'.", "id")
        passed = time.monotonic() - batch.begun
        if batch.status == "validating" and passed >= self.takes / 4:
            batch.errors = self._validate(batch)
            batch.status = "failed" if batch.errors else "in_progress"
            batch.counts["total"] = 0 if batch.errors else len(self._lines(batch))
        if batch.status == "in_progress" and passed >= self.takes:
            self._end(batch, "completed", None)
        if batch.status == "cancelling" and passed >= self.takes / 2:
            self._end(batch, "cancelled", 0)
        return batch

    def _lines(self, batch: StoredBatch) -> list[Any]:
        return [json.loads(line) for line in self.files[batch.input_file_id].content.splitlines() if line.strip()]

    def _validate(self, batch: StoredBatch) -> list[dict[str, Any]]:
        """What the API finds wrong with a whole batch before it begins."""
        errors: list[dict[str, Any]] = []
        names: set[str] = set()
        models: set[str] = set()
        for number, line in enumerate(self._lines(batch), 1):
            if set(line) != {"custom_id", "method", "url", "body"} or line["method"] != "POST":
                errors.append(_flaw("invalid_json_line", "This line is not a request.", number))
            elif line["url"] != batch.endpoint:
                errors.append(_flaw("url_mismatch", f"The URL is not {batch.endpoint}.", number))
            elif line["custom_id"] in names:
                errors.append(_flaw("duplicate_custom_id", f"{line['custom_id']} was used before.", number))
            else:
                names.add(line["custom_id"])
                models.add(str(line["body"].get("model")))
                if len(models) > 1:
                    errors.append(_flaw("mismatched_model", "All requests must have the same model.", number))
        return errors or ([] if names else [_flaw("empty_file", "The input file has no requests.", None)])

    def _end(self, batch: StoredBatch, status: str, answered: int | None) -> None:
        lines = self._lines(batch)
        good: list[Any] = []
        bad: list[Any] = []
        for place, line in enumerate(lines):
            entry = {"id": f"batch_req_{place}", "custom_id": line["custom_id"], "response": None, "error": None}
            if answered is not None and place >= answered:
                if status in {"cancelled", "expired"}:
                    why = {"code": f"batch_{status}", "message": f"This request was {status}."}
                    bad.append({**entry, "error": why})
                continue
            code, document = self._answers(line["body"])
            entry["response"] = {"status_code": code, "request_id": f"req_{place}", "body": document}
            (good if code < 400 else bad).append(entry)
        batch.counts = {"total": len(lines), "completed": len(good), "failed": len(bad)}
        if status in {"cancelled", "expired"}:
            batch.counts["failed"] = sum(entry["response"] is not None for entry in bad)
        batch.status = status
        if good:
            batch.output_file_id = self._keep(f"{batch.batch_id}_output.jsonl", "batch_output", _jsonl(good)).file_id
        if bad:
            batch.error_file_id = self._keep(f"{batch.batch_id}_error.jsonl", "batch_output", _jsonl(bad)).file_id


def read_form(seen: Seen) -> tuple[dict[str, str], str, bytes]:
    """The fields of a multipart form, and the name and bytes of its file."""
    head = f"content-type: {seen.headers.get('content-type', '')}\r\n\r\n".encode()
    message = email.parser.BytesParser(policy=email.policy.HTTP).parsebytes(head + seen.body)
    fields: dict[str, str] = {}
    filename, content = "", None
    for part in message.iter_parts():
        name = str(part.get_param("name", header="content-disposition"))
        payload = part.get_payload(decode=True)
        data = payload if isinstance(payload, bytes) else b""
        if name == "file":
            filename, content = part.get_filename() or "", data
        else:
            fields[name] = data.decode()
    if content is None or not filename:
        raise Refused(400, "'file' is a required property", "file")
    return fields, filename, content


def _page(found: list[dict[str, Any]], query: Mapping[str, str], most: int) -> dict[str, Any]:
    limit = int(query.get("limit", "20"))
    if not 1 <= limit <= most:
        refuse(f"limit must be between 1 and {most}", "limit")
    if after := query.get("after"):
        places = [place for place, entry in enumerate(found) if entry["id"] == after]
        if not places:
            refuse(f"No such object: {after}", "after")
        found = found[places[0] + 1 :]
    data = found[:limit]
    ends = {"first_id": data[0]["id"], "last_id": data[-1]["id"]} if data else {}
    return {"object": "list", "data": data, "has_more": len(found) > limit, **ends}


def _query(seen: Seen) -> dict[str, str]:
    return dict(parse_qsl(seen.query))


def _pieces(content: bytes) -> list[Step]:
    return [Send(content[start : start + 65536]) for start in range(0, len(content), 65536)]


def _jsonl(entries: list[Any]) -> bytes:
    return b"".join(json.dumps(entry).encode() + b"\n" for entry in entries)


def _flaw(code: str, message: str, line: int | None) -> dict[str, Any]:
    return {"code": code, "message": message, "line": line, "param": None}
