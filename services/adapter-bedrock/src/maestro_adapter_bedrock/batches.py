"""Batches: model invocation jobs of Bedrock's control plane, whose requests and results are files in S3.

A batch's folder in the bucket holds `input.jsonl`, `context.jsonl` (what the way back needs) and Bedrock's `output/`.
aiobotocore makes these calls: they are few, and not on the way of a chat.
"""

from __future__ import annotations

import asyncio
import importlib
import math
import re
import tempfile
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from typing import IO, Any, cast
from uuid import uuid4

import orjson

from maestro.llm.v1.batch_pb2 import Batch, BatchHeader, BatchItem, BatchItemResult, ListBatchesRequest
from maestro.llm.v1.batch_pb2 import ListBatchesResponse as BatchPage
from maestro_adapter_bedrock.access import Access
from maestro_adapter_bedrock.failure import UNREADABLE, refuses_keys, to_error, unreadable
from maestro_adapter_bedrock.media import refuse
from maestro_adapter_bedrock.models import PROVIDER, BedrockModel
from maestro_adapter_bedrock.records import (
    OVER,
    from_context,
    name_of,
    to_batch,
    to_context,
    to_failed,
    to_record,
    to_result,
    unreached,
)
from maestro_adapter_bedrock.request import to_wire
from maestro_adapter_bedrock.settings import BedrockSettings
from maestro_sdk.adapter.options import own_options
from maestro_sdk.errors import (
    CapabilityUnavailable,
    Conflict,
    InvalidRequest,
    MaestroError,
    StreamBroken,
    UpstreamError,
)

SPOOL = 8 * 1024 * 1024
"""Bytes of a batch that are held in memory; the rest goes to a file."""
RESULTS = 100
"""Results that are handed on at once."""

_WRONG_IN_NAME = re.compile(r"[^a-zA-Z0-9]+")
_PLACES = ("bucket", "prefix", "role_arn")


class Batches:
    """The jobs of one region. Errors are those of the contract."""

    def __init__(self, settings: BedrockSettings, access: Access, models: Mapping[str, BedrockModel]) -> None:
        self._settings = settings
        self._access = access
        self._models = models

    async def create(self, header: BatchHeader, items: AsyncIterator[BatchItem]) -> Batch:
        """Writes the requests to S3 and starts the job."""
        options = own_options(header.provider_options, PROVIDER)
        place = self._settings.batch.model_dump()
        place.update({name: options.pop(name) for name in _PLACES if name in options})
        if not (place["bucket"] and place["role_arn"]):
            raise CapabilityUnavailable("batches need a bucket and a role: set adapters.bedrock.settings.batch")
        model = self._models[header.model]
        folder = "/".join(part for part in (str(place["prefix"]).strip("/"), uuid4().hex) if part)
        root = f"s3://{place['bucket']}/{folder}"
        arguments: dict[str, Any] = {
            "jobName": f"{_job_name(header.display_name)}-{folder[-8:]}",
            "roleArn": place["role_arn"],
            "modelId": model.model_id,
            "modelInvocationType": "Converse",
            "inputDataConfig": {"s3InputDataConfig": {"s3InputFormat": "JSONL", "s3Uri": f"{root}/input.jsonl"}},
            "outputDataConfig": {"s3OutputDataConfig": {"s3Uri": f"{root}/output/"}},
        }
        if header.HasField("completion_window"):
            hours = math.ceil(header.completion_window.ToTimedelta().total_seconds() / 3600)
            if hours > 168:
                raise InvalidRequest.at("header.completion_window", "is more than the 168 hours that Bedrock gives")
            arguments["timeoutDurationInHours"] = max(24, hours)
        if header.metadata:
            arguments["tags"] = [{"key": key, "value": header.metadata[key]} for key in sorted(header.metadata)]
        arguments.update(options)
        with (
            tempfile.SpooledTemporaryFile(SPOOL) as records,
            tempfile.SpooledTemporaryFile(SPOOL) as contexts,
        ):
            await self._write(items, model, records, contexts)
            async with self._client("s3") as s3:
                for name, file in (("input.jsonl", records), ("context.jsonl", contexts)):
                    file.seek(0)
                    await s3.put_object(Bucket=place["bucket"], Key=f"{folder}/{name}", Body=file)
        async with self._client("bedrock") as control:
            started = await _read(control.create_model_invocation_job(**arguments))
            return await self._get(control, str(started.get("jobArn") or ""))

    async def get(self, batch_id: str) -> Batch:
        """A batch. Raises `NotFound`."""
        async with self._client("bedrock") as control:
            return await self._get(control, batch_id)

    async def list(self, request: ListBatchesRequest) -> BatchPage:
        """Batches, newest first."""
        arguments: dict[str, Any] = {"sortBy": "CreationTime", "sortOrder": "Descending"}
        arguments["maxResults"] = request.page_size or 100
        if request.page_token:
            arguments["nextToken"] = request.page_token
        async with self._client("bedrock") as control:
            found = await _read(control.list_model_invocation_jobs(**arguments))
        batches = [self._read(job) for job in found.get("invocationJobSummaries", ())]
        return BatchPage(batches=batches, next_page_token=found.get("nextToken") or "")

    async def cancel(self, batch_id: str) -> Batch:
        """Asks to stop a batch."""
        async with self._client("bedrock") as control:
            batch = await self._get(control, batch_id)
            if batch.state in OVER:
                return batch
            # A conflict says that it ended meanwhile.
            with suppress(control.exceptions.ConflictException):
                await control.stop_model_invocation_job(jobIdentifier=batch_id)
            return await self._get(control, batch_id)

    async def results(self, batch_id: str) -> AsyncGenerator[list[BatchItemResult]]:
        """The results, each item once, those included that were never reached."""
        async with self._client("bedrock") as control:
            job = await _read(control.get_model_invocation_job(jobIdentifier=batch_id))
        batch = self._read(job)
        if batch.state not in OVER:
            raise Conflict(f"the batch is under way: {batch.raw_state}")
        model = self._models.get(f"{PROVIDER}/{batch.model}") or BedrockModel.unknown(str(job["modelId"]))
        try:
            bucket, key = _split(job["inputDataConfig"]["s3InputDataConfig"]["s3Uri"])
            target, prefix = _split(job["outputDataConfig"]["s3OutputDataConfig"]["s3Uri"])
        except UNREADABLE as error:
            raise unreadable("batch", error) from error
        async with self._client("s3") as s3:
            contexts = {name_of(line): line async for line in _lines(s3, bucket, _beside(key), missing=True)}
            seen: set[str] = set()
            some: list[BatchItemResult] = []
            async for name in _outputs(s3, target, f"{prefix.rstrip('/')}/{batch_id.rpartition('/')[2]}/"):
                async for record in _lines(s3, target, name):
                    item_id = name_of(record)
                    if item_id not in seen:
                        seen.add(item_id)
                        some.append(to_result(record, from_context(contexts.get(item_id, {}), model), batch_id))
                    if len(some) >= RESULTS:
                        yield some
                        some = []
            async for record in _lines(s3, bucket, key):
                item_id = name_of(record)
                if item_id not in seen:
                    some.append(to_failed(item_id, unreached(batch.state)))
                if len(some) >= RESULTS:
                    yield some
                    some = []
            if some:
                yield some

    async def _write(
        self, items: AsyncIterator[BatchItem], model: BedrockModel, records: IO[bytes], contexts: IO[bytes]
    ) -> None:
        number = 0
        async for item in items:
            if item.WhichOneof("request") != "chat":
                raise refuse(f"items[{number}].embed", "can't stand in a batch of Bedrock; conversations can")
            if item.chat.model != model.model.id:
                raise InvalidRequest.at(
                    f"items[{number}].chat.model", f"is not {model.model.id}: a batch has one model"
                )
            try:
                outgoing = to_wire(item.chat, model)
            except MaestroError as error:
                raise type(error)(f"items[{number}]: {error.message}", violations=error.violations) from error
            records.write(to_record(item.item_id, outgoing))
            contexts.write(to_context(item.item_id, outgoing))
            number += 1

    async def _get(self, control: Any, batch_id: str) -> Batch:
        return self._read(await _read(control.get_model_invocation_job(jobIdentifier=batch_id)))

    def _read(self, job: Mapping[str, Any]) -> Batch:
        model_id = str(job.get("modelId") or "")
        # Bedrock tells the model by its ARN.
        plain = model_id.rpartition("/")[2]
        for found in self._models.values():
            if found.model_id in {model_id, plain}:
                return to_batch(job, found.name)
        return to_batch(job, plain)

    @asynccontextmanager
    async def _client(self, service: str) -> AsyncGenerator[Any]:
        """A client of AWS's SDK; what it raises becomes an error of the contract."""
        keys = await self._access.keys()
        session: Any = await self._access.session()
        # Half a second of reading, the first time; the loop has other calls to serve.
        await asyncio.to_thread(_prepare, session, service)
        from aiobotocore.config import AioConfig
        from botocore import handlers
        from botocore.exceptions import BotoCoreError, ClientError

        settings = self._settings
        try:
            async with AsyncExitStack() as stack:
                client = await stack.enter_async_context(
                    session.create_client(
                        service,
                        region_name=await self._access.region(),
                        endpoint_url=(settings.s3_url if service == "s3" else settings.control_url) or None,
                        aws_access_key_id=keys.key_id,
                        aws_secret_access_key=keys.secret,
                        aws_session_token=keys.token,
                        config=AioConfig(
                            retries={"total_max_attempts": 1, "mode": "standard"},
                            connect_timeout=settings.connect_timeout,
                            read_timeout=settings.read_timeout,
                            request_checksum_calculation="when_required",
                            response_checksum_validation="when_required",
                        ),
                    )
                )
                # Stores that speak S3 don't all answer a question before the upload, and then it never begins.
                client.meta.events.unregister("before-call.s3", cast("Any", handlers).add_expect_header)
                yield client
        except ClientError as error:
            meaning = _meaning(cast("Any", error).response)
            if refuses_keys(meaning):
                self._access.forget()
            raise meaning from error
        except BotoCoreError as error:
            raise UpstreamError(f"AWS can't be asked: {error}") from error


async def _read(call: Awaitable[Any]) -> Mapping[str, Any]:
    """The answer to a call of the SDK, which trusts JSON to have the form that it should have."""
    try:
        return await call
    except UNREADABLE as error:
        raise unreadable("answer", error) from error


def _meaning(response: Mapping[str, Any]) -> MaestroError:
    said, facts = response.get("Error", {}), response.get("ResponseMetadata", {})
    code = str(said.get("Code") or "")
    name = "ResourceNotFoundException" if code in {"NoSuchKey", "NoSuchBucket"} else code
    body = orjson.dumps({"__type": name, "message": str(said.get("Message") or "")})
    return to_error(int(facts.get("HTTPStatusCode") or 500), body, facts.get("HTTPHeaders") or {})


def _prepare(session: Any, service: str) -> None:
    """Loads what a client of the service is made of; the session keeps it. Blocks."""
    for module in ("aiobotocore.config", "aiobotocore.client", "botocore.handlers"):
        importlib.import_module(module)
    loader = session.get_component("data_loader")
    for kind in ("service-2", "endpoint-rule-set-1", "paginators-1"):
        loader.load_service_model(service, kind)
    for name in ("endpoints", "partitions", "sdk-default-configuration", "_retry"):
        loader.load_data(name)


async def _outputs(s3: Any, bucket: str, prefix: str) -> AsyncGenerator[str]:
    """The names of the files with results."""
    async for page in s3.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix):
        for entry in page.get("Contents", ()):
            if entry["Key"].endswith(".jsonl.out"):
                yield entry["Key"]


async def _lines(s3: Any, bucket: str, key: str, *, missing: bool = False) -> AsyncGenerator[dict[str, Any]]:
    """The objects of a file of JSON lines, as it is read; nothing for a file that may be `missing` and is."""
    try:
        found = await s3.get_object(Bucket=bucket, Key=key)
    except s3.exceptions.NoSuchKey:
        if missing:
            return
        raise
    async with found["Body"] as body:
        async for line in body.iter_lines():
            if line.strip():
                yield _object(line)


def _object(line: bytes) -> dict[str, Any]:
    try:
        found: Any = orjson.loads(line)
    except ValueError as error:
        raise unreadable("file of the batch", error) from error
    if not isinstance(found, dict):
        raise StreamBroken("the batch's files have a line that is no JSON object")
    return cast("dict[str, Any]", found)


def _split(uri: str) -> tuple[str, str]:
    bucket, _, key = uri.removeprefix("s3://").partition("/")
    return bucket, key


def _beside(key: str) -> str:
    return f"{key.rpartition('/')[0]}/context.jsonl".lstrip("/")


def _job_name(display_name: str) -> str:
    """A name of the characters that jobs take; an ending makes it the only one."""
    return _WRONG_IN_NAME.sub("-", display_name).strip("-")[:50].strip("-") or "maestro"
