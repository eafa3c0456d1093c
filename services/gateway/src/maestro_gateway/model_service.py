"""The models of the whole mesh: `maestro.llm.v1.ModelService`, and REST."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from google.api.httpbody_pb2 import HttpBody

from maestro.gateway.v1.http_pb2 import GetModelRequest
from maestro.gateway.v1.http_pb2 import ListModelsRequest as ListRequest
from maestro.llm.v1.model_pb2 import GetInfoRequest, GetInfoResponse, ListModelsRequest, ListModelsResponse
from maestro.llm.v1.model_pb2_grpc import ModelServiceServicer
from maestro_gateway.anthropic.service import anthropic_facade
from maestro_gateway.facade import Facade
from maestro_gateway.identity import current_caller
from maestro_gateway.json_codec.answer import encode_error
from maestro_gateway.json_codec.models import encode_model, encode_models, models_of
from maestro_gateway.mesh import Mesh
from maestro_gateway.openai.answer import encode_error as encode_openai_error
from maestro_sdk.adapter.servicer import SPI_VERSION
from maestro_sdk.mesh.dispatch import TableSource

_PAGE = 1000


class ModelService(ModelServiceServicer):
    """Answers from the table."""

    def __init__(self, source: TableSource) -> None:
        self._source = source
        try:
            self._version = version("maestro-gateway")
        except PackageNotFoundError:
            self._version = "0"

    async def ListModels(self, request: ListModelsRequest, context: Any) -> ListModelsResponse:
        size = request.page_size or _PAGE
        models = [model for model in models_of(self._source.table) if model.id > request.page_token]
        more = len(models) > size
        return ListModelsResponse(models=models[:size], next_page_token=models[size - 1].id if more else "")

    async def GetInfo(self, request: GetInfoRequest, context: Any) -> GetInfoResponse:
        table = self._source.table
        return GetInfoResponse(
            name="gateway",
            version=self._version,
            spi_versions=[SPI_VERSION],
            ready=table.version != 0,
            not_ready_reason="" if table.version else "no route table has arrived yet; is the router running?",
            providers=sorted({backend.provider for backend in table.backends.values()}),
        )


class ModelRest:
    """The list of models, and one of them, over HTTP: one shape for all clients, but errors in their own.

    Anthropic's clients are known by the version that they name, OpenAI's by the headers of their SDK. To anybody else
    the list is the mesh's, and one model OpenAI's.
    """

    def __init__(self, mesh: Mesh, *, max_body: int, ping: float) -> None:
        """`max_body` in bytes, `ping` in seconds."""
        self._source = mesh.source
        self._own = Facade(mesh, encode_error, max_body=max_body, ping=ping)
        self._openai = Facade(mesh, encode_openai_error, max_body=max_body, ping=ping)
        self._anthropic = anthropic_facade(mesh, max_body=max_body, ping=ping)

    async def list(self, request: ListRequest, context: Any) -> HttpBody:
        """The models by pages, with all routes and aliases."""

        async def answer() -> bytes:
            return encode_models(self._source.table, request)

        openai = current_caller().header("x-stainless-lang")
        return await self._facade_for(self._openai if openai else self._own).answer(context, answer)

    async def get(self, request: GetModelRequest, context: Any) -> HttpBody:
        """What a name stands for."""

        async def answer() -> bytes:
            return encode_model(self._source.table, request.model)

        return await self._facade_for(self._openai).answer(context, answer)

    def _facade_for(self, others: Facade) -> Facade:
        return self._anthropic if current_caller().header("anthropic-version") else others
