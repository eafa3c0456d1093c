"""Which scope a method needs. What stands nowhere here needs the one of operators: nothing is open by oversight."""

from __future__ import annotations

from maestro_gateway.identity.principal import ADMIN, OPERATOR

ANY = ""
"""Any good key."""

_SERVICES = {
    "maestro.llm.v1.ChatService": "chat",
    "maestro.llm.v1.EmbeddingService": "embeddings",
    "maestro.llm.v1.ModelService": ANY,
    "maestro.llm.v1.BatchService": "jobs",
    "maestro.llm.v1.FileService": "files",
    "maestro.tool.v1.ToolService": "tools",
    "maestro.tool.v1.SchemaService": "tools",
    "maestro.memory.v1.MemoryService": "tools",
    "maestro.job.v1.JobService": "jobs",
    "maestro.event.v1.EventService": ANY,
    "maestro.usage.v1.UsageService": ADMIN,
    "maestro.gateway.v1.KeyService": ADMIN,
    "maestro.gateway.v1.StreamService": "chat",
    "maestro.gateway.v1.WebhookService": ADMIN,
    "maestro.gateway.v1.OpenAIService": "chat",
    "maestro.gateway.v1.AnthropicService": "chat",
}
"""Scope of every method of a service, unless it has one of its own."""
_METHODS = {
    "/maestro.gateway.v1.HttpService/Chat": "chat",
    "/maestro.gateway.v1.HttpService/FollowChat": "chat",
    "/maestro.gateway.v1.HttpService/EndChat": "chat",
    "/maestro.gateway.v1.HttpService/ListModels": ANY,
    "/maestro.gateway.v1.HttpService/GetModel": ANY,
    "/maestro.gateway.v1.HttpService/ListBackends": ANY,
    "/maestro.gateway.v1.HttpService/Explain": "chat",
    "/maestro.gateway.v1.HttpService/GetProviderHealth": ANY,
    "/maestro.gateway.v1.HttpService/ExportUsage": ADMIN,
    "/maestro.gateway.v1.HttpService/EstimateChat": "chat",
    "/maestro.gateway.v1.HttpService/CreateJob": "jobs",
    "/maestro.gateway.v1.HttpService/ListJobResults": "jobs",
    "/maestro.gateway.v1.HttpService/CancelJob": "jobs",
    "/maestro.gateway.v1.HttpService/EstimateCost": "chat",
    "/maestro.gateway.v1.HttpService/CreateKey": ADMIN,
    "/maestro.gateway.v1.HttpService/RotateKey": ADMIN,
    "/maestro.gateway.v1.HttpService/RevokeKey": ADMIN,
    "/maestro.gateway.v1.HttpService/ReplayDeadLetters": ADMIN,
    "/maestro.gateway.v1.HttpService/TestWebhook": ADMIN,
    "/maestro.gateway.v1.OpenAIService/CreateEmbedding": "embeddings",
    "/maestro.usage.v1.UsageService/EstimateCost": "chat",
}
_PATHS = {"/v1/chat/stream": "chat", "/v1/events/stream": ANY}
"""Of the HTTP port for WebSockets."""
_FILES = "/v1/files"


def scope_of_method(method: str) -> str:
    """The scope that "/package.Service/Method" needs."""
    found = _METHODS.get(method)
    if found is None:
        found = _SERVICES.get(method[1:].partition("/")[0], OPERATOR)
    return found


def scope_of_path(path: str) -> str:
    """The scope that a path of the HTTP port needs."""
    if path == _FILES or path.startswith(_FILES + "/"):
        return "files"
    return _PATHS.get(path, OPERATOR)
