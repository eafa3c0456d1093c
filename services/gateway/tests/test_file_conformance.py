"""`FileService` of the gateway keeps what the contract says of files, by the cases that adapters have to pass."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from maestro.llm.v1.model_pb2 import Model
from maestro_gateway.files import Files, FileService
from maestro_gateway.files.depot import Depot
from maestro_gateway.identity import Keys
from maestro_gateway.identity.door import authenticator
from maestro_gateway.identity.keys import configured
from maestro_sdk.conformance import filing
from maestro_sdk.conformance.case import Case
from maestro_sdk.conformance.target import Target
from maestro_sdk.service.channel import open_channel
from maestro_sdk.service.files import FilesConfig
from maestro_sdk.service.interceptors import MeshInterceptor
from maestro_sdk.testing.nats import NatsServer
from maestro_sdk.testing.servers import serve

KEY = "mk-files-0123456789"


@pytest.fixture
async def target(tmp_path: Path) -> AsyncIterator[Target]:
    server = NatsServer(tmp_path / "nats")
    await server.start()
    try:
        depot = Depot(server.url)
        interceptor = MeshInterceptor(authenticate=authenticator(Keys([configured("acme", KEY, ["files"])])))
        async with depot.connected():
            service = FileService(Files(depot, FilesConfig()))
            async with serve(service, interceptors=[interceptor]) as address, open_channel(address) as channel:
                target = Target(address, channel, 10.0, KEY)
                # Files of the mesh are of no provider.
                target.model = Model(id="the mesh")
                yield target
    finally:
        await server.kill()


@pytest.mark.parametrize(
    "case",
    [filing.files, filing.file_ranges, filing.file_checks, filing.file_repetition, filing.file_refusals],
    ids=lambda case: case.name,
)
async def test_the_contract_of_files(target: Target, case: Case) -> None:
    assert await case.check(target)
