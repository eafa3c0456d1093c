"""`maestro.llm.v1.ModelService` of the whole mesh."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version
from typing import Any

from maestro.llm.v1.model_pb2 import GetInfoRequest, GetInfoResponse, ListModelsRequest, ListModelsResponse
from maestro.llm.v1.model_pb2_grpc import ModelServiceServicer
from maestro_gateway.json_codec.mesh import models_of
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
