"""Who belongs to the mesh: by a certificate under every connection. Services are processes, certificates real."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import grpc
import pytest

from maestro.llm.v1 import chat_pb2_grpc
from maestro_sdk.errors import Unauthenticated, UpstreamError, from_rpc_error
from maestro_sdk.service.channel import open_channel
from maestro_sdk.service.config_file import ConfigError
from maestro_sdk.service.meshes import MeshTlsConfig
from maestro_sdk.service.peer import Certificates, Peer
from maestro_sdk.testing.authority import Authority
from maestro_sdk.testing.servers import free_port

from .test_run import REQUEST, process, told

ChatStub: Any = chat_pb2_grpc.ChatServiceStub
TOKEN = "t" * 32
MESH = "mesh.internal"
"""What the certificates of one of the meshes are made out to."""


def peer(tls: Mapping[str, str], *tokens: str, name: str = "") -> Peer:
    config = MeshTlsConfig.model_validate(dict(tls))
    return Peer(tokens, Certificates(*config.read(), name))


async def said(channel: grpc.aio.Channel) -> str:
    """OK, or the error of a chat."""
    async with channel:
        try:
            await ChatStub(channel).Chat(REQUEST, timeout=10)
        except grpc.aio.AioRpcError as error:
            return type(from_rpc_error(error)).__name__
    return "OK"


async def test_only_certificates_of_the_mesh_get_a_connection(tmp_path: Path) -> None:
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    own, other = ours.issue("adapter"), theirs.issue("adapter")
    address = f"127.0.0.1:{free_port()}"
    settings: dict[str, Any] = {"MAESTRO__MESH__TLS": json.dumps(own), "MAESTRO__GATEWAY__ADDRESS": address}
    async with process(tmp_path, **settings) as service:
        await told(service.child, "ready")
        refused = UpstreamError.__name__
        trusting = grpc.ssl_channel_credentials(await asyncio.to_thread(ours.file.read_bytes))
        mixed = own | {"certificate": other["certificate"], "key": other["key"]}
        async with asyncio.TaskGroup() as group:
            asked = {
                what: group.create_task(said(channel))
                for what, channel in {
                    "plaintext": open_channel(address),
                    "no certificate": open_channel(address, credentials=trusting),
                    "another authority": peer(other).open_channel(address),
                    "a certificate of another authority": peer(mixed).open_channel(address),
                    "a process of the mesh": peer(ours.issue("gateway")).open_channel(address),
                }.items()
            }
        assert {what: task.result() for what, task in asked.items()} == {
            "plaintext": refused,
            "no certificate": refused,
            "another authority": refused,
            "a certificate of another authority": refused,
            "a process of the mesh": "OK",
        }


async def test_a_server_of_another_authority_is_not_believed(tmp_path: Path) -> None:
    """It would take certificates of ours, and learn what tenants ask."""
    ours, theirs = Authority(tmp_path, "ours"), Authority(tmp_path, "theirs")
    address = f"127.0.0.1:{free_port()}"
    tls = theirs.issue("adapter") | {"authority": str(ours.file)}
    settings: dict[str, Any] = {"MAESTRO__MESH__TLS": json.dumps(tls), "MAESTRO__GATEWAY__ADDRESS": address}
    async with process(tmp_path, **settings) as service:
        await told(service.child, "ready")
        assert await said(peer(ours.issue("gateway")).open_channel(address)) == UpstreamError.__name__


async def test_one_name_for_all_servers_and_a_token_beside(tmp_path: Path) -> None:
    """It listens for other machines, under addresses that stand in no certificate."""
    ours = Authority(tmp_path, "ours")
    tls = ours.issue("adapter", [MESH])
    port = free_port()
    settings: dict[str, Any] = {
        "MAESTRO__MESH__TLS": json.dumps(tls),
        "MAESTRO__GATEWAY__ADDRESS": f"0.0.0.0:{port}",
    }
    async with process(tmp_path, MAESTRO_MESH_TOKEN=TOKEN, **settings) as service:
        await told(service.child, "ready")
        gateway, address = ours.issue("gateway", [MESH]), f"127.0.0.1:{port}"
        assert await said(peer(gateway, TOKEN, name=MESH).open_channel(address)) == "OK"
        assert await said(peer(gateway, name=MESH).open_channel(address)) == Unauthenticated.__name__
        assert await said(peer(gateway, TOKEN).open_channel(address)) == UpstreamError.__name__


@pytest.mark.parametrize("wrong", ["another key", "a broken key", "a broken certificate", "a broken authority"])
def test_files_that_do_not_fit_are_told(tmp_path: Path, wrong: str) -> None:
    authority = Authority(tmp_path)
    tls = authority.issue("adapter")
    what = wrong.rsplit(maxsplit=1)[-1]
    if wrong == "another key":
        tls |= {"key": authority.issue("gateway")["key"]}
    else:
        file = Path(tls[what])
        file.write_text(file.read_text().replace("\nM", "\nX", 1))
    with pytest.raises(ConfigError) as caught:
        MeshTlsConfig.model_validate(tls).read()
    [problem] = caught.value.problems
    assert problem.path == ("mesh.tls.authority" if what == "authority" else "mesh.tls.certificate")
    assert str(tls[what]) in problem.message
