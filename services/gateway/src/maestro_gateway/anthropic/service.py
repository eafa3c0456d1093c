"""`maestro.gateway.v1.AnthropicService`: Anthropic's API behind Envoy's transcoder."""

from __future__ import annotations

from typing import Any

import orjson
from google.api.httpbody_pb2 import HttpBody

from maestro.gateway.v1.anthropic_pb2_grpc import AnthropicServiceServicer
from maestro.llm.v1.chat_pb2 import CountTokensRequest
from maestro_gateway.anthropic.answer import STATUSES, encode_error, encode_message
from maestro_gateway.anthropic.request import decode_message
from maestro_gateway.anthropic.stream import MessageEvents
from maestro_gateway.chat_service import ChatService
from maestro_gateway.dialect import warnings_data
from maestro_gateway.facade import JSON, Facade
from maestro_gateway.limits import anthropic_headers
from maestro_gateway.mesh import Mesh
from maestro_sdk.errors import InvalidRequest
from maestro_sdk.service.interceptors import returns_last
from maestro_sdk.tracing import REQUEST_ID_KEY

_VERSIONS = ("2026-10-21", "2023-06-01")
"""What they differ in, sampling parameters, is taken of both: other providers obey them."""


def anthropic_facade(mesh: Mesh, *, max_body: int, ping: float) -> Facade:
    """Answers in HTTP bodies with Anthropic's errors and headers. `max_body` in bytes, `ping` in seconds."""
    return Facade(
        mesh,
        encode_error,
        max_body=max_body,
        ping=ping,
        statuses=STATUSES,
        id_headers=("request-id", REQUEST_ID_KEY),
        limit_headers=anthropic_headers,
    )


class AnthropicService(AnthropicServiceServicer):
    """Answers Anthropic's clients."""

    def __init__(self, mesh: Mesh, *, max_body: int, ping: float) -> None:
        """`max_body` in bytes, `ping` in seconds."""
        self._facade = anthropic_facade(mesh, max_body=max_body, ping=ping)
        self._chats = ChatService(mesh)

    @returns_last
    async def CreateMessage(self, request: HttpBody, context: Any) -> HttpBody:
        facade = self._facade

        async def answer() -> HttpBody:
            headers = _check_version(context)
            asked = decode_message(facade.measure(request), betas=headers.get("anthropic-beta", ""))
            if asked.stream:
                return await facade.stream(asked.request, MessageEvents(asked), context)
            response, route = await facade.complete(asked.request, context)
            return HttpBody(content_type=JSON, data=encode_message(response, asked, route))

        return await facade.answer(context, answer)

    async def CountMessageTokens(self, request: HttpBody, context: Any) -> HttpBody:
        facade = self._facade

        async def answer() -> bytes:
            headers = _check_version(context)
            asked = decode_message(facade.measure(request), counted=True, betas=headers.get("anthropic-beta", ""))
            counted = await self._chats.CountTokens(CountTokensRequest(request=asked.request), context)
            facts = {
                "provider": counted.provider,
                "model": counted.model,
                "estimated": counted.estimated,
                "warnings": warnings_data(asked.unknown, (), counted.provider, ()),
            }
            return orjson.dumps({"input_tokens": counted.input_tokens, "maestro": facts})

        return await facade.answer(context, answer)


def _check_version(context: Any) -> dict[str, str]:
    """The headers. Refuses versions of the API that are not served; none means the latest."""
    headers: dict[str, str] = dict(context.invocation_metadata())
    version = headers.get("anthropic-version", _VERSIONS[0])
    if version not in _VERSIONS:
        served = " or ".join(_VERSIONS)
        raise InvalidRequest.at("anthropic-version", f"{str(version)[:32]!r} is not served here; send {served}")
    return headers
