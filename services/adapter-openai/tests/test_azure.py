"""Azure: deployments, keys and tokens, what its filters say, and its refusals."""

from __future__ import annotations

import io
import itertools
import json
import sys
import types
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict, ParseDict

from maestro.llm.v1.batch_pb2 import BatchHeader, BatchItem, BatchState
from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedRequest
from maestro.llm.v1.file_pb2 import FileHeader, FilePurpose
from maestro_adapter_openai.azure import AzureProvider
from maestro_adapter_openai.models import azure_models
from maestro_adapter_openai.translate import AZURE, Stream, to_error, to_wire
from maestro_sdk.adapter.fold import fold
from maestro_sdk.errors import (
    ContentPolicy,
    InvalidRequest,
    MaestroError,
    NotFound,
    Overloaded,
    ProviderAuth,
    ProviderQuota,
    RateLimited,
    StreamBroken,
    Timeout,
    UnsupportedParameter,
    UpstreamError,
)
from maestro_sdk.testing import openai_auxiliary, openai_chat
from maestro_sdk.testing.faults import FaultServer, Headers, Reply, SendJson
from maestro_sdk.testing.golden import check, plain
from maestro_sdk.testing.openai_auxiliary import OpenAIAuxiliary
from maestro_sdk.testing.wire import Tokens

from .asking import ask_azure, both, call

GOLDEN = Path(__file__).with_name("golden") / "azure"
CHAT = "/openai/deployments/*"
STREAMS = sorted(path.stem for path in GOLDEN.glob("*.sse"))
REQUESTS = sorted(path.name.removesuffix(".request.json") for path in GOLDEN.glob("*.request.json"))
At = Callable[..., AzureProvider]


# --- the wire ---------------------------------------------------------------------------------------------------------


@both
async def test_a_model_is_its_deployment(server: FaultServer, azure: AzureProvider, mode: str) -> None:
    server.on("POST", CHAT, openai_chat.text(tokens=Tokens(input=12, output=5, cache_read=8)))
    response = fold(await call(azure, ask_azure(), mode))
    assert (response.provider, response.model, response.usage.cache_read_tokens) == ("azure", "gpt-4.1", 8)
    seen = server.requests[0]
    assert seen.path == "/openai/deployments/my%2041/chat/completions"
    assert seen.query == "api-version=2025-04-01-preview"
    assert seen.headers["api-key"] == "sk-test"
    assert "authorization" not in seen.headers
    assert seen.json()["model"] == "my 41"
    assert seen.json().get("stream_options") == ({"include_usage": True} if mode == "stream" else None)


@pytest.mark.parametrize("name", REQUESTS)
def test_golden_request(name: str) -> None:
    text = (GOLDEN / f"{name}.request.json").read_text(encoding="utf-8")
    request = ParseDict(json.loads(text), ChatRequest())
    found = azure_models({"gpt-4.1": "prod-41", "gpt-5.1": "prod-51"}, {})[request.model.removeprefix("azure/")]
    assert found.dialect is not None
    wire = to_wire(request, found.dialect, stream=True)
    warnings = [MessageToDict(warning, preserving_proto_field_name=True) for warning in wire.warnings]
    check(GOLDEN / f"{name}.wire.json", {"body": json.loads(wire.encode()), "warnings": warnings})


@pytest.mark.parametrize("name", STREAMS)
def test_golden_stream(name: str) -> None:
    stream = Stream(AZURE, "gpt-4.1")
    data = (GOLDEN / f"{name}.sse").read_bytes()
    events = [*stream.feed(data), *stream.end()]
    check(GOLDEN / f"{name}.events.json", plain(events))


@pytest.mark.parametrize("name", STREAMS)
def test_streams_split_anywhere(name: str) -> None:
    data = (GOLDEN / f"{name}.sse").read_bytes()
    whole = Stream(AZURE, "gpt-4.1")
    expected = fold([*whole.feed(data), *whole.end()])
    for size in (1, 7, 64):
        stream = Stream(AZURE, "gpt-4.1")
        events = [event for start in range(0, len(data), size) for event in stream.feed(data[start : start + size])]
        assert fold([*events, *stream.end()]) == expected


@both
async def test_headers_of_the_answer_are_facts(server: FaultServer, azure: AzureProvider, mode: str) -> None:
    told = {"x-ms-region": "Sweden Central", "apim-request-id": "apim-1", "x-request-id": "req-1"}
    usual = openai_chat.text()

    def reply(seen: Any) -> Any:
        kind = "text/event-stream" if mode == "stream" else "application/json"
        steps = [step for step in usual(seen) if not isinstance(step, Headers)]
        return [Headers(200, {**told, "content-type": kind}), *steps]

    server.on("POST", CHAT, reply)
    facts = fold(await call(azure, ask_azure(), mode)).provider_metadata["azure"]
    assert (facts["region"], facts["apim_request_id"], facts["request_id"]) == ("Sweden Central", "apim-1", "req-1")


# --- refusals ---------------------------------------------------------------------------------------------------------


FILTERED = {
    "error": {
        "message": "The response was filtered due to the prompt triggering Azure OpenAI's content management policy.",
        "type": None,
        "param": "prompt",
        "code": "content_filter",
        "status": 400,
        "innererror": {
            "code": "ResponsibleAIPolicyViolation",
            "content_filter_result": {
                "hate": {"filtered": False, "severity": "safe"},
                "violence": {"filtered": True, "severity": "high"},
                "jailbreak": {"filtered": True, "detected": True},
            },
        },
    }
}


@pytest.mark.parametrize(
    ("status", "body", "expected", "code"),
    [
        (400, FILTERED, ContentPolicy, "content_filter"),
        (
            401,
            {"error": {"code": "401", "message": "Access denied due to invalid subscription key."}},
            ProviderAuth,
            "401",
        ),
        (401, {"statusCode": 401, "message": "Unauthorized. Access token is missing."}, ProviderAuth, None),
        (401, {"error": {"code": "Unauthorized", "message": "Token expired"}}, ProviderAuth, "Unauthorized"),
        (403, {"error": {"code": "PermissionDenied", "message": "no access"}}, ProviderAuth, "PermissionDenied"),
        (404, {"error": {"code": "DeploymentNotFound", "message": "No such."}}, NotFound, "DeploymentNotFound"),
        (404, {"error": {"code": "404", "message": "Resource not found"}}, NotFound, "404"),
        (400, {"error": {"code": "OperationNotSupported", "message": "no"}}, InvalidRequest, "OperationNotSupported"),
        (408, {"error": {"code": "Timeout", "message": "The operation was timeout."}}, Timeout, "Timeout"),
        (429, {"error": {"code": "429", "message": "exceeded token rate limit"}}, RateLimited, "429"),
        (429, {"error": {"code": "RateLimitReached", "message": "slow"}}, RateLimited, "RateLimitReached"),
        (429, {"error": {"code": "insufficient_quota", "message": "no"}}, ProviderQuota, "insufficient_quota"),
        (429, {"error": {"code": "NoCapacity", "message": "busy"}}, Overloaded, "NoCapacity"),
        (500, {"error": {"code": "InternalServerError", "message": "oops"}}, UpstreamError, "InternalServerError"),
        (503, {"error": {"code": "ServiceUnavailable", "message": "later"}}, Overloaded, "ServiceUnavailable"),
        (502, "<html>Bad gateway</html>", UpstreamError, None),
    ],
)
def test_error_table(status: int, body: Any, expected: type[MaestroError], code: str | None) -> None:
    data = body.encode() if isinstance(body, str) else json.dumps(body).encode()
    headers = {"apim-request-id": "apim-1", "x-ms-region": "East US", "retry-after-ms": "1500"}
    error = to_error(status, data, headers, "azure")
    assert type(error) is expected
    assert error.metadata.get("upstream_code") == code
    assert (error.metadata["request_id"], error.metadata["region"]) == ("apim-1", "East US")
    assert (error.metadata["provider"], error.metadata["upstream_status"]) == ("azure", str(status))
    assert error.retry_after == 1.5


def test_a_filtered_prompt_tells_what_was_found() -> None:
    error = to_error(400, json.dumps(FILTERED).encode(), {}, "azure")
    assert error.metadata["filtered"] == "violence (high), jailbreak"
    assert error.metadata["upstream_cause"] == "ResponsibleAIPolicyViolation"
    assert "Filtered: violence (high), jailbreak." in error.message
    assert not error.failover


@both
@pytest.mark.parametrize(
    ("reply", "expected"),
    [
        (openai_chat.rate_limited(3, {"retry-after-ms": "250"}), RateLimited),
        (openai_chat.cut_after(2), StreamBroken),
        (openai_chat.stall_after(2), Timeout),
        (openai_chat.silent_end(), StreamBroken),
        (openai_chat.in_band_error(), UpstreamError),
        (lambda _: [Headers(400), SendJson(FILTERED)], ContentPolicy),
    ],
)
async def test_every_way_to_fail(
    server: FaultServer, azure: AzureProvider, reply: Reply, expected: type[MaestroError], mode: str
) -> None:
    server.on("POST", CHAT, reply)
    with pytest.raises(expected) as caught:
        await call(azure, ask_azure(), mode)
    assert (caught.value.metadata["provider"], caught.value.metadata["model"]) == ("azure", "gpt-4.1")
    if expected is RateLimited:
        assert caught.value.retry_after == 0.25


# --- keys and tokens --------------------------------------------------------------------------------------------------


@pytest.fixture
def identity(monkeypatch: pytest.MonkeyPatch) -> types.ModuleType:
    """A module of an operator, with callables that give a new token each time."""
    module = types.ModuleType("acme_identity")
    numbers = itertools.count(1)

    def token() -> str:
        return f"token-{next(numbers)}"

    async def later() -> str:
        return token()

    class Credential:
        async def __call__(self) -> str:
            return token()

    def broken() -> str:
        raise RuntimeError("secret-in-message")

    vars(module).update(token=token, later=later, credential=Credential(), broken=broken, empty=lambda: "", number=7)
    monkeypatch.setitem(sys.modules, "acme_identity", module)
    return module


@pytest.mark.parametrize("name", ["token", "later", "credential"])
async def test_tokens_are_asked_for_each_call(
    server: FaultServer, azure_at: At, identity: types.ModuleType, name: str
) -> None:
    server.on("POST", CHAT, openai_chat.text())
    provider = azure_at(token_provider=f"acme_identity:{name}")
    assert await provider.check() == ""
    await call(provider, ask_azure())
    await call(provider, ask_azure(), "complete")
    OpenAIAuxiliary(server, openai_auxiliary.AZURE)
    header = FileHeader(filename="a.jsonl", purpose=FilePurpose.FILE_PURPOSE_JOB_INPUT)
    await provider.upload_file(header, io.BytesIO(b"{}"))
    assert [seen.headers["authorization"] for seen in server.requests] == [
        "Bearer token-1",
        "Bearer token-2",
        "Bearer token-3",
    ]
    assert not any("api-key" in seen.headers for seen in server.requests)
    await provider.close()


@pytest.mark.parametrize("name", ["broken", "empty"])
async def test_a_token_provider_that_fails(
    server: FaultServer, azure_at: At, identity: types.ModuleType, name: str
) -> None:
    provider = azure_at(token_provider=f"acme_identity:{name}")
    with pytest.raises(ProviderAuth) as caught:
        await call(provider, ask_azure())
    assert "secret-in-message" not in caught.value.message
    assert caught.value.metadata["provider"] == "azure"
    assert not server.requests
    await provider.close()


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"token_provider": "acme_identity:gone"}, "acme_identity:gone can't be loaded"),
        ({"token_provider": "acme_identity:number"}, "is a int, not a callable"),
        ({"token_provider": "no_such_module:x"}, "No module named 'no_such_module'"),
        ({"api_key": {"env": "KEY_THAT_IS_NOT_SET"}}, "set KEY_THAT_IS_NOT_SET"),
        ({"deployments": {}, "batch_deployments": {}}, "azure.deployments"),
    ],
)
async def test_what_is_missing_is_said_and_refuses_every_call(
    azure_at: At, identity: types.ModuleType, fields: dict[str, Any], said: str
) -> None:
    provider = azure_at(**fields)
    assert said in await provider.check()
    with pytest.raises(ProviderAuth):
        await call(provider, ask_azure())
    with pytest.raises(ProviderAuth):
        await provider.get_file("file-1")
    await provider.close()


# --- embeddings, files, batches ---------------------------------------------------------------------------------------


async def test_embeddings_on_a_deployment(server: FaultServer, azure: AzureProvider) -> None:
    OpenAIAuxiliary(server, openai_auxiliary.AZURE)
    request = EmbedRequest(model="azure/text-embedding-3-small", inputs=[EmbedInput(text="x")], dimensions=4)
    answer = await azure.embed(request)
    assert (len(answer.embeddings[0].values), answer.provider) == (4, "azure")
    assert answer.model == "text-embedding-3-small"
    assert server.requests[0].path == "/openai/deployments/vectors/embeddings"
    assert server.requests[0].json()["model"] == "vectors"


async def test_files_and_batches(server: FaultServer, azure: AzureProvider) -> None:
    account = OpenAIAuxiliary(server, openai_auxiliary.AZURE, takes=1e9)
    header = FileHeader(filename="a.pdf", purpose=FilePurpose.FILE_PURPOSE_CONTENT)
    file = await azure.upload_file(header, io.BytesIO(b"x"))
    assert account.files[file.file_id].purpose == "assistants"
    assert (file.purpose, file.provider) == (FilePurpose.FILE_PURPOSE_CONTENT, "azure")

    async def items() -> AsyncIterator[BatchItem]:
        yield BatchItem(item_id="a", chat=ask_azure())

    begun = await azure.create_batch(BatchHeader(model="azure/gpt-4.1"), items())
    stored = account.batches[begun.batch_id]
    line = json.loads(account.files[stored.input_file_id].content)
    assert (line["url"], line["body"]["model"], stored.endpoint) == (
        "/chat/completions",
        "my-41-batch",
        "/chat/completions",
    )
    account.finish(begun.batch_id, "completed")
    assert (await azure.get_batch(begun.batch_id)).state == BatchState.BATCH_STATE_COMPLETED
    results = [result async for some in azure.batch_results(begun.batch_id) for result in some]
    assert (results[0].chat.provider, results[0].chat.model) == ("azure", "gpt-4.1")
    assert {seen.query.partition("&")[0] for seen in server.requests} == {"api-version=2025-04-01-preview"}
    assert {seen.headers["api-key"] for seen in server.requests} == {"sk-test"}


async def test_models_without_a_deployment_of_a_batch_type(server: FaultServer, azure: AzureProvider) -> None:
    async def items() -> AsyncIterator[BatchItem]:
        yield BatchItem(item_id="a", chat=ask_azure(model="azure/gpt-5.1"))

    with pytest.raises(UnsupportedParameter, match="takes no batches"):
        await azure.create_batch(BatchHeader(model="azure/gpt-5.1"), items())
    assert not server.requests
