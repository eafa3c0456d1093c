"""Batch jobs of the obliging model as AWS has them: a control plane that runs them, and a bucket for their files."""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qs, unquote

from maestro_sdk.testing import bedrock_converse
from maestro_sdk.testing.faults import FaultServer, Headers, Seen, Send, SendJson, Step
from maestro_sdk.testing.obliging import ObligingModel
from maestro_sdk.testing.obliging_bedrock import STOPS, oblige_bedrock, read_bedrock

TAKES = 0.15
"""Seconds that a job is under way."""
ROLE = "arn:aws:iam::123456789012:role/batches"

_JOB = "arn:aws:bedrock:us-east-1:123456789012:model-invocation-job/"
_XML = {"content-type": "application/xml"}


def oblige_bedrock_account(server: FaultServer, bucket: str = "conformance") -> None:
    """Lets `server` answer all of `oblige_bedrock`, and run batches with files in `bucket`."""
    oblige_bedrock(server)
    files = _Bucket(bucket)
    jobs = _Jobs(files)
    server.on("POST", "/model-invocation-job", jobs.create)
    server.on("GET", "/model-invocation-jobs", jobs.list)
    server.on("POST", "/model-invocation-job/*/stop", jobs.stop)
    server.on("GET", "/model-invocation-job/*", jobs.get)
    server.on("PUT", f"/{bucket}/*", files.put)
    server.on("GET", f"/{bucket}*", files.get)


class _Bucket:
    """The part of S3 that jobs need: writing, reading, listing."""

    def __init__(self, name: str) -> None:
        self._name = name
        self.files: dict[str, bytes] = {}

    def put(self, seen: Seen) -> Sequence[Step]:
        self.files[self._key(seen)] = seen.body
        return (Headers(200, {"etag": '"1"'}),)

    def get(self, seen: Seen) -> Sequence[Step]:
        key = self._key(seen)
        if not key:
            prefix = parse_qs(seen.query).get("prefix", [""])[0]
            names = sorted(name for name in self.files if name.startswith(prefix))
            found = "".join(f"<Contents><Key>{name}</Key></Contents>" for name in names)
            text = f"<ListBucketResult><IsTruncated>false</IsTruncated>{found}</ListBucketResult>"
            return (Headers(200, _XML), Send(text.encode()))
        if key not in self.files:
            return (Headers(404, _XML), Send(b"<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>"))
        content = self.files[key]
        return (Headers(200, {"content-length": str(len(content))}), *((Send(content),) if content else ()))

    def read(self, uri: str) -> bytes:
        return self.files[uri.removeprefix(f"s3://{self._name}/")]

    def write(self, uri: str, content: bytes) -> None:
        self.files[uri.removeprefix(f"s3://{self._name}/")] = content

    def _key(self, seen: Seen) -> str:
        return unquote(seen.path).removeprefix(f"/{self._name}").removeprefix("/")


class _Jobs:
    """Jobs by their ARN, oldest first; time alone moves them on."""

    def __init__(self, files: _Bucket) -> None:
        self._files = files
        self._model = ObligingModel()
        self._jobs: dict[str, dict[str, Any]] = {}
        self._begun: dict[str, float] = {}

    def create(self, seen: Seen) -> Sequence[Step]:
        arn = f"{_JOB}{len(self._jobs) + 1:012d}"
        given = seen.json()
        total = len(self._lines(given))
        self._jobs[arn] = {
            **{name: value for name, value in given.items() if name != "tags"},
            "jobArn": arn,
            "modelId": f"arn:aws:bedrock:us-east-1::foundation-model/{given['modelId']}",
            "status": "InProgress",
            "submitTime": _now(),
            "totalRecordCount": total,
        }
        self._begun[arn] = time.monotonic()
        return (SendJson({"jobArn": arn}),)

    def get(self, seen: Seen) -> Sequence[Step]:
        job = self._find(unquote(seen.path).removeprefix("/model-invocation-job/"))
        return _missing() if job is None else (SendJson(job),)

    def stop(self, seen: Seen) -> Sequence[Step]:
        job = self._find(unquote(seen.path).removeprefix("/model-invocation-job/").removesuffix("/stop"))
        if job is None:
            return _missing()
        if job["status"] != "InProgress":
            return (Headers(409, {"x-amzn-errortype": "ConflictException"}), SendJson({"message": "the job is over"}))
        job.update(status="Stopped", endTime=_now())
        return (SendJson({}),)

    def list(self, seen: Seen) -> Sequence[Step]:
        query = parse_qs(seen.query)
        size, after = int(query["maxResults"][0]), query.get("nextToken", [""])[0]
        arns = [arn for arn in sorted(self._jobs, reverse=True) if not after or arn < after]
        answer: dict[str, Any] = {"invocationJobSummaries": [self._find(arn) for arn in arns[:size]]}
        if len(arns) > size:
            answer["nextToken"] = arns[size - 1]
        return (SendJson(answer),)

    def _find(self, arn: str) -> dict[str, Any] | None:
        job = self._jobs.get(arn)
        if job is not None and job["status"] == "InProgress" and time.monotonic() - self._begun[arn] >= TAKES:
            self._end(arn, job)
        return job

    def _end(self, arn: str, job: dict[str, Any]) -> None:
        lines = [json.dumps(self._answer(json.loads(line))) for line in self._lines(job)]
        folder = f"{job['outputDataConfig']['s3OutputDataConfig']['s3Uri']}{arn.removeprefix(_JOB)}"
        self._files.write(f"{folder}/input.jsonl.out", "\n".join(reversed(lines)).encode())
        self._files.write(f"{folder}/manifest.json.out", json.dumps({"totalRecordCount": len(lines)}).encode())
        job.update(status="Completed", endTime=_now(), successRecordCount=len(lines), errorRecordCount=0)

    def _answer(self, record: dict[str, Any]) -> dict[str, Any]:
        obliged = self._model.answer(read_bedrock(record["modelInput"]))
        answer = replace(obliged.answer, stop=STOPS.get(obliged.reason))
        nobody = Seen("POST", "/model/x/converse", "", {}, b"{}")
        return {**record, "modelOutput": bedrock_converse.WIRE.document(answer, nobody)}

    def _lines(self, job: dict[str, Any]) -> Sequence[bytes]:
        return self._files.read(job["inputDataConfig"]["s3InputDataConfig"]["s3Uri"]).splitlines()


def _missing() -> Sequence[Step]:
    return (Headers(404, {"x-amzn-errortype": "ResourceNotFoundException"}), SendJson({"message": "no such job"}))


def _now() -> str:
    return datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
