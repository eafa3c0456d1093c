"""Bedrock's runtime in one region: signed POSTs, as one document or as a stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import orjson

from maestro_adapter_bedrock.access import Access
from maestro_adapter_bedrock.failure import to_error
from maestro_adapter_bedrock.settings import BedrockSettings
from maestro_sdk.adapter.http import HttpWire

REQUEST_ID = "x-amzn-requestid"


class Heard:
    """The headers of an answer, by lower-case names."""

    __slots__ = ("headers",)

    def __init__(self) -> None:
        self.headers: Mapping[str, str] = {}

    def hear(self, headers: Mapping[str, str]) -> None:
        """Takes them."""
        self.headers = {name.lower(): value for name, value in headers.items()}

    @property
    def response_id(self) -> str:
        """The answer's identifier, which AWS's support asks for; one of our own where a server gives none."""
        return self.headers.get(REQUEST_ID) or uuid4().hex


class Runtime:
    """Connections to the runtime's endpoint. Errors are those of the contract."""

    def __init__(self, base_url: str, access: Access, settings: BedrockSettings) -> None:
        self.wire = HttpWire(
            base_url,
            {"user-agent": "maestro-adapter-bedrock"},
            to_error,
            connect_timeout=settings.connect_timeout,
            read_timeout=settings.read_timeout,
        )
        self._base_url = base_url
        self._access = access

    async def headers(self, path: str, body: bytes) -> Mapping[str, str]:
        """The headers that let a POST of `body` in."""
        return await self._access.headers(self._base_url + path, body)

    async def post(self, path: str, value: Any, heard: Heard | None = None) -> bytes:
        """The answer to `value` as JSON; fragments of orjson may be in it."""
        body = orjson.dumps(value)
        return await self.wire.post(path, body, await self.headers(path, body), heard.hear if heard else None)
