"""Which scope every method needs that the mesh knows: a new one has to be thought of here, or this fails."""

from __future__ import annotations

from pathlib import Path

from google.protobuf.descriptor_pb2 import FileDescriptorSet

from maestro_gateway.identity.scopes import scope_of_method, scope_of_path

ROOT = Path(__file__).resolve().parents[2]
ADMIN, ANY, OPERATOR = "admin", "", "operator"
WANTED = {
    "maestro.llm.v1.ModelService": ANY,
    "maestro.llm.v1.ChatService": "chat",
    "maestro.llm.v1.EmbeddingService": "embeddings",
    "maestro.llm.v1.BatchService": "jobs",
    "maestro.llm.v1.FileService": "files",
    "maestro.job.v1.JobService": "jobs",
    "maestro.event.v1.EventService": ANY,
    "maestro.tool.v1.ToolService": "tools",
    "maestro.tool.v1.SchemaService": "tools",
    "maestro.memory.v1.MemoryService": "tools",
    "maestro.usage.v1.UsageService": ADMIN,
    "maestro.usage.v1.UsageService/EstimateCost": "chat",
    "maestro.gateway.v1.KeyService": ADMIN,
    "maestro.gateway.v1.WebhookService": ADMIN,
    "maestro.gateway.v1.StreamService": "chat",
    "maestro.gateway.v1.AnthropicService": "chat",
    "maestro.gateway.v1.OpenAIService": "chat",
    "maestro.gateway.v1.OpenAIService/CreateEmbedding": "embeddings",
    "maestro.gateway.v1.HttpService/Chat": "chat",
    "maestro.gateway.v1.HttpService/EstimateChat": "chat",
    "maestro.gateway.v1.HttpService/FollowChat": "chat",
    "maestro.gateway.v1.HttpService/EndChat": "chat",
    "maestro.gateway.v1.HttpService/Explain": "chat",
    "maestro.gateway.v1.HttpService/ListModels": ANY,
    "maestro.gateway.v1.HttpService/GetModel": ANY,
    "maestro.gateway.v1.HttpService/ListBackends": ANY,
    "maestro.gateway.v1.HttpService/GetProviderHealth": ANY,
    "maestro.gateway.v1.HttpService/ExportUsage": ADMIN,
    "maestro.gateway.v1.HttpService/CreateJob": "jobs",
    "maestro.gateway.v1.HttpService/ListJobResults": "jobs",
    "maestro.gateway.v1.HttpService/CancelJob": "jobs",
    "maestro.gateway.v1.HttpService/EstimateCost": "chat",
    "maestro.gateway.v1.HttpService/CreateKey": ADMIN,
    "maestro.gateway.v1.HttpService/RotateKey": ADMIN,
    "maestro.gateway.v1.HttpService/RevokeKey": ADMIN,
    "maestro.gateway.v1.HttpService/ReplayDeadLetters": ADMIN,
    "maestro.gateway.v1.HttpService/TestWebhook": ADMIN,
    # Of the mesh's own members; no gateway serves them.
    "maestro.router.v1.RouterService": OPERATOR,
    "maestro.llm.v1.StandingCallService": OPERATOR,
}


def test_every_method_has_the_scope_that_was_decided() -> None:
    methods = [
        f"{file.package}.{service.name}/{method.name}"
        for file in FileDescriptorSet.FromString((ROOT / "envoy/maestro.binpb").read_bytes()).file
        for service in file.service
        for method in service.method
    ]
    undecided = [name for name in methods if not {name, name.partition("/")[0]} & WANTED.keys()]
    assert undecided == []
    wanted = {name: WANTED.get(name, WANTED.get(name.partition("/")[0])) for name in methods}
    assert {name: scope_of_method(f"/{name}") for name in methods} == wanted


def test_paths_of_the_http_port_have_the_scope_of_their_methods() -> None:
    same = {
        "/v1/chat/stream": "maestro.llm.v1.ChatService",
        "/v1/events/stream": "maestro.event.v1.EventService",
        "/v1/files": "maestro.llm.v1.FileService",
        "/v1/files/any": "maestro.llm.v1.FileService",
        "/v1/files/any/content": "maestro.llm.v1.FileService",
    }
    assert {path: scope_of_path(path) for path in same} == {path: WANTED[name] for path, name in same.items()}
    for path in ("/v1/filesystem", "/v1/chat/stream/", "/v1/events", "/", "/v1/files.x"):
        assert scope_of_path(path) == OPERATOR
