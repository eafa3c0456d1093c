"""The client of callers for embeddings: texts, tokens or pictures in, vectors out. Conventions as in `llm_client`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from types import TracebackType
from typing import Any, Literal, Self, TypeAlias, TypedDict, Unpack

from maestro.llm.v1.chat_pb2 import Routing
from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedPurpose, EmbedRequest, EmbedResponse
from maestro_sdk.connection import DEFAULT_TIMEOUT, Connection

EmbedInputs: TypeAlias = str | EmbedInput | Iterable[str | EmbedInput] | EmbedRequest
"""What to embed: one text or input, several, or a whole request."""

Purpose: TypeAlias = Literal["search_query", "search_document", "similarity", "classification", "clustering"]

_EMBED = "/maestro.llm.v1.EmbeddingService/Embed"


class EmbedFields(TypedDict, total=False):
    """Fields of `EmbedRequest`; what is missing or None stays unset."""

    model: str | None
    dimensions: int | None
    purpose: Purpose | None
    truncate: bool | None
    normalize: bool | None
    routing: Routing | None
    strict: bool | None
    metadata: Mapping[str, str] | None
    provider_options: Mapping[str, Mapping[str, Any]] | None


_KNOWN = frozenset(EmbedFields.__annotations__)


class EmbeddingClient:
    """A client for one gateway or adapter. Close it, or use it as a context manager."""

    def __init__(
        self,
        target: str | None = None,
        key: str | None = None,
        *,
        model: str = "",
        timeout: float | None = DEFAULT_TIMEOUT,
        roots: bytes | None = None,
    ) -> None:
        """Parameters as for `LLMClient`."""
        self._connection = Connection(target, key=key, timeout=timeout, roots=roots)
        self._model = model

    async def embed(
        self,
        inputs: EmbedInputs,
        *,
        timeout: float | None = None,
        request_id: str = "",
        **fields: Unpack[EmbedFields],
    ) -> EmbedResponse:
        """One vector per input; `vectors_of` reads them. `timeout` and `request_id` as in `LLMClient.chat`."""
        request = embed_request(inputs, **fields)
        request.model = request.model or self._model
        return await self._connection.call(_EMBED, request, EmbedResponse, timeout=timeout, request_id=request_id)

    async def close(self) -> None:
        """Closes the connection; calls that still run end with `Cancelled`."""
        await self._connection.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()


def embed_request(inputs: EmbedInputs, **fields: Unpack[EmbedFields]) -> EmbedRequest:
    """A new request. An `EmbedRequest` given as `inputs` is copied; each field given replaces its own. Raises
    `TypeError` for an unknown field and `ValueError` for an unknown purpose.
    """
    unknown = fields.keys() - _KNOWN
    if unknown:
        raise TypeError(f"a request has no field {', '.join(sorted(unknown))}; it has: {', '.join(sorted(_KNOWN))}")
    request = EmbedRequest()
    match inputs:
        case EmbedRequest():
            request.CopyFrom(inputs)
        case str() | EmbedInput():
            request.inputs.append(_input(inputs))
        case _:
            request.inputs.extend(_input(one) for one in inputs)
    for name, value in fields.items():
        if value is not None:
            _set_field(request, name, value)
    return request


def vectors_of(response: EmbedResponse) -> list[list[float]]:
    """The vectors in the order of the inputs."""
    return [list(one.values) for one in sorted(response.embeddings, key=lambda one: one.index)]


def _input(one: str | EmbedInput) -> EmbedInput:
    return EmbedInput(text=one) if isinstance(one, str) else one


def _set_field(request: EmbedRequest, name: str, value: Any) -> None:
    match name:
        case "purpose":
            purposes = {
                word.removeprefix("EMBED_PURPOSE_").lower(): number for word, number in EmbedPurpose.items() if number
            }
            if value not in purposes:
                raise ValueError(f"purpose: {value!r} is none of {', '.join(purposes)}")
            request.purpose = purposes[value]
        case "routing":
            request.routing.CopyFrom(value)
        case "metadata":
            request.ClearField("metadata")
            request.metadata.update(value)
        case "provider_options":
            request.ClearField("provider_options")
            for provider, options in value.items():
                request.provider_options[provider].update(dict(options))
        case _:
            setattr(request, name, value)
