"""One mesh with two gateways, a key of an operator, and ways to ask each door with any key."""

import inspect
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import grpc
import jwt
import pytest
import pytest_asyncio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from maestro.event.v1.event_pb2 import SubscribeRequest
from maestro.event.v1.event_pb2_grpc import EventServiceStub
from maestro.gateway.v1 import key_pb2, webhook_pb2
from maestro.gateway.v1.key_pb2_grpc import KeyServiceStub
from maestro.gateway.v1.webhook_pb2_grpc import WebhookServiceStub
from maestro.llm.v1.chat_pb2 import ChatRequest, CountTokensRequest, Routing
from maestro.llm.v1.chat_pb2_grpc import ChatServiceStub
from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedRequest
from maestro.llm.v1.embedding_pb2_grpc import EmbeddingServiceStub
from maestro.llm.v1.file_pb2 import ListFilesRequest
from maestro.llm.v1.file_pb2_grpc import FileServiceStub
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro_sdk.service.channel import open_channel
from maestro_sdk.testing.mesh import MeshProcess

ROOT = "mk-operator-0123456789abcdef"
MODEL = "local/offline"
ISSUER = "https://login.example"
PROVIDER = Ed25519PrivateKey.generate()
"""The key of an identity provider."""
GATEWAYS = ("gateway", "gateway-2")
CONFIG: dict[str, Any] = {
    "version": 1,
    "gateway": {"replicas": 2, "jwt": {"issuer": ISSUER, "audience": "maestro", "jwks_file": "jwks.json"}},
    "adapters": {"local": {"module": "maestro_adapter_local", "address": "127.0.0.1:50065"}},
    "routes": {"default": {"targets": [MODEL]}},
    "aliases": {},
    "grace": "2s",
}
WORDS = [{"role": "user", "content": "hello"}]


@dataclass
class Mesh:
    """The running mesh. `secrets` are all that it ever gave out."""

    process: MeshProcess
    http: aiohttp.ClientSession
    secrets: list[str] = field(default_factory=lambda: [ROOT])

    async def rest(self, method: str, path: str, key: str, body: Any = None) -> tuple[int, Any]:
        """Status and JSON of a REST call."""
        headers = {"authorization": f"Bearer {key}"} if key else {}
        async with self.http.request(method, self.process.url + path, json=body, headers=headers) as response:
            return response.status, await response.json(content_type=None)

    async def made(self, key: str = ROOT, **fields: Any) -> tuple[str, str]:
        """Identifier and secret of a new key."""
        status, answer = await self.rest("POST", "/v1/keys", key, fields)
        assert status == 200, answer
        self.secrets.append(answer["secret"])
        return answer["key"]["key_id"], answer["secret"]

    async def chat(self, key: str, at: str = "", persona: str = "", skill: str = "") -> str:
        """The status of a gRPC chat, with one of the gateways itself or through Envoy."""
        address = self.process.address(at) if at else self.process.target
        async with open_channel(address) as channel:
            try:
                await ChatServiceStub(channel).Chat(asked(persona, skill), metadata=bearer(key), timeout=10)
            except grpc.aio.AioRpcError as error:
                return error.code().name
        return "OK"


def asked(persona: str = "", skill: str = "") -> ChatRequest:
    """A chat."""
    message = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="hello"))])
    return ChatRequest(model=MODEL, messages=[message], routing=Routing(persona=persona, skill=skill))


def token(**claims: Any) -> str:
    """A token of the identity provider, good for a minute."""
    known = {"iss": ISSUER, "aud": "maestro", "exp": int(time.time()) + 60, "sub": "ada", "tenant": "tenant-j"}
    return jwt.encode(known | claims, PROVIDER, "EdDSA")


def bearer(key: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {key}"),)


async def _rest_chat(mesh: Mesh, key: str) -> int:
    return (await mesh.rest("POST", "/v1/chat", key, {"messages": WORDS}))[0]


async def _stream(mesh: Mesh, key: str) -> int:
    headers = {"x-api-key": key}
    body = {"messages": WORDS, "stream": True}
    async with mesh.http.post(f"{mesh.process.url}/v1/chat", json=body, headers=headers) as response:
        assert response.status != 200 or b"[DONE]" in await response.read()
        return response.status


async def _openai(mesh: Mesh, key: str) -> int:
    status, body = await mesh.rest("POST", "/v1/chat/completions", key, {"model": MODEL, "messages": WORDS})
    assert status == 200 or set(body["error"]) >= {"message", "type", "param", "code"}
    return status


async def _anthropic(mesh: Mesh, key: str) -> int:
    body = {"model": MODEL, "messages": WORDS, "max_tokens": 9}
    status, answer = await mesh.rest("POST", "/v1/messages", key, body)
    assert status == 200 or (answer["type"], set(answer["error"]) >= {"type", "message"}) == ("error", True)
    return status


async def _openai_embedding(mesh: Mesh, key: str) -> int:
    # No model here makes vectors, which is told to those who may ask: 4xx, but neither 401 nor 403.
    status, _ = await mesh.rest("POST", "/v1/embeddings", key, {"model": "none/none", "input": "hello"})
    return 200 if status == 404 else status


async def _grpc_embedding(mesh: Mesh, key: str) -> int:
    request = EmbedRequest(model="none/none", inputs=[EmbedInput(text="hello")])
    async with open_channel(mesh.process.target) as channel:
        return await _status(EmbeddingServiceStub(channel).Embed(request, metadata=bearer(key)))


async def _count(mesh: Mesh, key: str) -> int:
    return (await mesh.rest("POST", "/v1/messages/count_tokens", key, {"model": MODEL, "messages": WORDS}))[0]


async def _socket(mesh: Mesh, key: str) -> int:
    return await _upgrade(mesh, key, "/v1/chat/stream")


async def _events(mesh: Mesh, key: str) -> int:
    return await _upgrade(mesh, key, "/v1/events/stream")


async def _server_sent(mesh: Mesh, key: str) -> int:
    url, headers = f"{mesh.process.url}/v1/events/stream", {"authorization": f"Bearer {key}"}
    async with mesh.http.get(url, headers=headers) as response:
        response.close()
        return response.status


async def _grpc_events(mesh: Mesh, key: str) -> int:
    async with open_channel(mesh.process.target) as channel:
        call = EventServiceStub(channel).Subscribe(SubscribeRequest(), metadata=bearer(key))
        status = await _status(call.read())
        call.cancel()
        return status


async def _grpc_webhooks(mesh: Mesh, key: str) -> int:
    async with open_channel(mesh.process.target) as channel:
        request = webhook_pb2.ListWebhooksRequest()
        return await _status(WebhookServiceStub(channel).ListWebhooks(request, metadata=bearer(key)))


async def _upgrade(mesh: Mesh, key: str, path: str) -> int:
    try:
        async with mesh.http.ws_connect(mesh.process.url + path, headers={"authorization": f"Bearer {key}"}):
            return 200
    except aiohttp.WSServerHandshakeError as error:
        return error.status


_HTTP = {"OK": 200, "NOT_FOUND": 200, "UNAUTHENTICATED": 401, "PERMISSION_DENIED": 403}


async def _grpc_chat(mesh: Mesh, key: str) -> int:
    return _HTTP[await mesh.chat(key)]


async def _grpc_count(mesh: Mesh, key: str) -> int:
    async with open_channel(mesh.process.target) as channel:
        stub = ChatServiceStub(channel)
        return await _status(stub.CountTokens(CountTokensRequest(request=asked()), metadata=bearer(key)))


async def _grpc_keys(mesh: Mesh, key: str) -> int:
    async with open_channel(mesh.process.target) as channel:
        return await _status(KeyServiceStub(channel).ListKeys(key_pb2.ListKeysRequest(), metadata=bearer(key)))


async def _status(call: Any) -> int:
    try:
        await call
    except grpc.aio.AioRpcError as error:
        return _HTTP[error.code().name]
    return 200


def _got(path: str) -> "Door":
    async def ask(mesh: Mesh, key: str) -> int:
        return (await mesh.rest("GET", path, key))[0]

    return ask


async def _key(mesh: Mesh, key: str) -> int:
    status, answer = await mesh.rest("POST", "/v1/keys", key, {})
    if status == 200:
        mesh.secrets.append(answer["secret"])
    return status


async def _cost(mesh: Mesh, key: str) -> int:
    words = [{"role": "ROLE_USER", "parts": [{"text": {"text": "hello"}}]}]
    return (await mesh.rest("POST", "/v1/usage:estimate", key, {"chat": {"model": MODEL, "messages": words}}))[0]


async def _explain(mesh: Mesh, key: str) -> int:
    return (await mesh.rest("POST", "/v1/router:explain", key, {"model": MODEL}))[0]


async def _file(mesh: Mesh, key: str) -> int:
    # Without a purpose, which is told to those who may ask.
    status, _ = await mesh.rest("POST", "/v1/files?filename=a.txt", key, {})
    return 200 if status == 400 else status


async def _grpc_files(mesh: Mesh, key: str) -> int:
    async with open_channel(mesh.process.target) as channel:
        return await _status(FileServiceStub(channel).ListFiles(ListFilesRequest(), metadata=bearer(key)))


Door = Callable[[Mesh, str], Awaitable[int]]
DOORS: dict[str, tuple[str, Door]] = {
    "POST /v1/chat": ("chat", _rest_chat),
    "POST /v1/chat, streamed": ("chat", _stream),
    "POST /v1/chat/completions": ("chat", _openai),
    "POST /v1/messages": ("chat", _anthropic),
    "POST /v1/messages/count_tokens": ("chat", _count),
    "POST /v1/router:explain": ("chat", _explain),
    "POST /v1/usage:estimate": ("chat", _cost),
    "WS /v1/chat/stream": ("chat", _socket),
    "gRPC Chat": ("chat", _grpc_chat),
    "gRPC CountTokens": ("chat", _grpc_count),
    "POST /v1/embeddings": ("embeddings", _openai_embedding),
    "gRPC Embed": ("embeddings", _grpc_embedding),
    "WS /v1/events/stream": ("", _events),
    "GET /v1/events/stream": ("", _server_sent),
    "gRPC Subscribe": ("", _grpc_events),
    "GET /v1/models": ("", _got("/v1/models")),
    "GET /v1/models/{model}": ("", _got(f"/v1/models/{MODEL}")),
    "GET /v1/router/backends": ("", _got("/v1/router/backends")),
    "GET /v1/health/providers": ("", _got("/v1/health/providers")),
    "GET /v1/files": ("files", _got("/v1/files")),
    "POST /v1/files": ("files", _file),
    "gRPC ListFiles": ("files", _grpc_files),
    "GET /v1/keys": ("admin", _got("/v1/keys")),
    "POST /v1/keys": ("admin", _key),
    "gRPC ListKeys": ("admin", _grpc_keys),
    "GET /v1/webhooks": ("admin", _got("/v1/webhooks")),
    "gRPC ListWebhooks": ("admin", _grpc_webhooks),
}
"""Every way in, and the scope that it needs."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    here = Path(__file__).parent
    for item in items:
        if here in item.path.parents and isinstance(item, pytest.Function):
            if inspect.iscoroutinefunction(item.function):
                item.add_marker(pytest.mark.asyncio(loop_scope="session"), append=False)
            item.add_marker(pytest.mark.timeout(120))


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def mesh(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Mesh]:
    """The mesh of all tests."""
    folder = tmp_path_factory.mktemp("identity")
    made: Any = jwt.get_algorithm_by_name("EdDSA")
    (folder / "jwks.json").write_text(f'{{"keys": [{made.to_jwk(PROVIDER.public_key())}]}}')
    async with MeshProcess(folder, CONFIG, {"MAESTRO_KEY": ROOT}) as process, aiohttp.ClientSession() as http:
        yield Mesh(process, http)
