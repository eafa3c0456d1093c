"""Batch jobs of Vertex AI and the Cloud Storage that they read and write, as far as an adapter needs both.

A job is taken, runs at the next look, and is over at the one after; its items are answered by the strict model.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any
from urllib.parse import parse_qs, unquote

from maestro_sdk.testing.faults import FaultServer, Headers, Seen, Send, SendJson, Step
from maestro_sdk.testing.gemini_content import problem
from maestro_sdk.testing.obliging_gemini import StrictGemini, oblige_gemini

_JOBS = "/v1/projects/*/locations/*/batchPredictionJobs"
_OVER = frozenset({"JOB_STATE_SUCCEEDED", "JOB_STATE_CANCELLED"})
_NEXT = {
    "JOB_STATE_PENDING": "JOB_STATE_RUNNING",
    "JOB_STATE_RUNNING": "JOB_STATE_SUCCEEDED",
    "JOB_STATE_CANCELLING": "JOB_STATE_CANCELLED",
}
_TIME = "2026-11-22T12:00:00Z"


def oblige_gemini_account(server: FaultServer) -> None:
    """Lets `server` answer for everything that the adapter asks: models, vectors, batches and storage."""
    oblige_gemini(server)
    ObligingBatches().serve(server)


class ObligingBatches:
    """Jobs by their number, and objects by bucket and name."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], bytes] = {}
        self.jobs: dict[str, dict[str, Any]] = {}
        self.held = False
        """Whether jobs stay as they are, until they are cancelled."""
        self._model = StrictGemini()

    def serve(self, server: FaultServer) -> None:
        """Lets `server` answer for jobs and for storage."""
        server.on("POST", "/upload/storage/v1/b/*/o", self._upload)
        server.on("GET", "/storage/v1/b/*/o", self._list_objects)
        server.on("GET", "/storage/v1/b/*/o/*", self._download)
        server.on("POST", _JOBS, self._create)
        server.on("GET", _JOBS, self._list)
        server.on("POST", f"{_JOBS}/*:cancel", self._cancel)
        server.on("GET", f"{_JOBS}/*", self._get)

    def _upload(self, seen: Seen) -> Sequence[Step]:
        self.objects[seen.path.split("/")[5], parse_qs(seen.query)["name"][0]] = seen.body
        return (SendJson({"kind": "storage#object"}),)

    def _list_objects(self, seen: Seen) -> Sequence[Step]:
        wanted, prefix = seen.path.split("/")[4], parse_qs(seen.query)["prefix"][0]
        names = sorted(name for bucket, name in self.objects if bucket == wanted and name.startswith(prefix))
        # One per page: lists are longer than a page in earnest.
        start = int(parse_qs(seen.query).get("pageToken", ["0"])[0])
        token = {"nextPageToken": str(start + 1)} if start + 1 < len(names) else {}
        return (SendJson({"items": [{"name": name} for name in names[start : start + 1]], **token}),)

    def _download(self, seen: Seen) -> Sequence[Step]:
        _, _, _, _, bucket, _, name = seen.path.split("/", 6)
        found = self.objects.get((bucket, unquote(name)))
        return _missing() if found is None else (Headers(200, {"content-type": "application/jsonl"}), Send(found))

    def _create(self, seen: Seen) -> Sequence[Step]:
        number = str(1000 + len(self.jobs))
        name = f"{seen.path.removeprefix('/v1/')}/{number}"
        self.jobs[number] = {**seen.json(), "name": name, "state": "JOB_STATE_PENDING", "createTime": _TIME}
        return (SendJson(self.jobs[number]),)

    def _list(self, seen: Seen) -> Sequence[Step]:
        asked = parse_qs(seen.query)
        start, size = int(asked.get("pageToken", ["0"])[0]), int(asked["pageSize"][0])
        jobs = list(reversed(self.jobs.values()))
        token = {"nextPageToken": str(start + size)} if start + size < len(jobs) else {}
        return (SendJson({"batchPredictionJobs": jobs[start : start + size], **token}),)

    def _get(self, seen: Seen) -> Sequence[Step]:
        job = self.jobs.get(seen.path.rpartition("/")[2])
        if job is None:
            return _missing()
        if job["state"] not in _OVER and not (self.held and job["state"] == "JOB_STATE_RUNNING"):
            job["state"] = _NEXT[job["state"]]
            if job["state"] in _OVER:
                job["endTime"] = _TIME
            if job["state"] == "JOB_STATE_SUCCEEDED":
                self._run(job)
        return (SendJson(job),)

    def _cancel(self, seen: Seen) -> Sequence[Step]:
        job = self.jobs.get(seen.path.rpartition("/")[2].removesuffix(":cancel"))
        if job is None:
            return _missing()
        if job["state"] not in _OVER:
            job["state"] = "JOB_STATE_CANCELLING"
        return (SendJson({}),)

    def _run(self, job: dict[str, Any]) -> None:
        bucket, _, name = str(job["inputConfig"]["gcsSource"]["uris"][0]).removeprefix("gs://").partition("/")
        path = f"/v1/projects/p/locations/l/{job['model']}:generateContent"
        lines: list[str] = []
        failed = 0
        for line in self.objects[bucket, name].splitlines():
            given = json.loads(line)
            *_, last = self._model.reply(Seen("POST", path, "", {}, json.dumps(given["request"]).encode()))
            value: Any = last.value if isinstance(last, SendJson) else {}
            if "error" in value:
                failed += 1
                lines.append(json.dumps({**given, "status": f"Bad Request: {json.dumps(value)}"}))
            else:
                lines.append(json.dumps({**given, "status": "", "processed_time": _TIME, "response": value}))
        target = str(job["outputConfig"]["gcsDestination"]["outputUriPrefix"])
        folder = f"{target.rstrip('/')}/prediction-model-{_TIME}"
        bucket, _, prefix = folder.removeprefix("gs://").partition("/")
        # In any order, and in several files.
        for number, some in enumerate((lines[1:], lines[:1])):
            self.objects[bucket, f"{prefix}/predictions_{number}.jsonl"] = "\n".join([*some, ""]).encode()
        job["outputInfo"] = {"gcsOutputDirectory": folder}
        job["completionStats"] = {"successfulCount": str(len(lines) - failed), "failedCount": str(failed)}


def _missing() -> Sequence[Step]:
    return (Headers(404), SendJson(problem(404, "It does not exist.")))
