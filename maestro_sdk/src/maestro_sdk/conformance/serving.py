"""Core cases: what a server tells of itself before anybody chats."""

from __future__ import annotations

import asyncio
import re
from contextlib import suppress
from datetime import date
from decimal import Decimal, InvalidOperation
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2

from maestro.llm.v1.model_pb2 import Feature, GetInfoRequest, ListModelsRequest, Model, Support
from maestro.llm.v1.usage_pb2 import Price
from maestro_sdk.conformance.case import Subject, core
from maestro_sdk.conformance.outcome import Broken, expect
from maestro_sdk.conformance.target import Target, refusal_of

SPI_VERSION = "maestro.llm.v1"
SERVICES = ("maestro.llm.v1.ChatService", "maestro.llm.v1.ModelService")
_SERVING = health_pb2.HealthCheckResponse.SERVING
_REFLECTION = "/grpc.reflection.{}.ServerReflection/ServerReflectionInfo"
_SIDE_PRICES = (
    "cache_read",
    "cache_write_5m",
    "cache_write_1h",
    "reasoning",
    "minimum_charge",
    "input_character",
    "batch_factor",
)


@core(
    "health says SERVING",
    "grpc.health.v1.Health/Check answers SERVING for the server and ChatService",
    subject=Subject.SERVER,
)
async def health(target: Target) -> str:
    """Health is what routers and load balancers act on."""
    stub: Any = health_pb2_grpc.HealthStub(target.channel)  # its types know the blocking channel only
    for service in ("", SERVICES[0]):
        where = f"Health/Check({service!r})"
        try:
            answer = await stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        except grpc.aio.AioRpcError as error:
            raise Broken(str(refusal_of(error)), where) from error
        name = health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status)
        expect(answer.status == _SERVING, name, where)
    return "SERVING"


@core("reflection lists the services", "server reflection names ChatService and ModelService", subject=Subject.SERVER)
async def reflection(target: Target) -> str:
    """Reflection lets tools such as grpcurl speak to a server without its protos."""
    listed: set[str] = set()
    trouble = ""
    for version in ("v1", "v1alpha"):
        try:
            listed = await listed_services(target, version)
            break
        except grpc.aio.AioRpcError as error:
            trouble = str(refusal_of(error))
    where = "ServerReflection.list_services"
    expect(listed, trouble or "no service", where)
    missing = [name for name in SERVICES if name not in listed]
    expect(not missing, f"{', '.join(missing)} missing; listed: {', '.join(sorted(listed))}", where)
    return ", ".join(sorted(listed))


async def listed_services(target: Target, version: str) -> set[str]:
    # Both versions have the same messages under different names.
    call = target.channel.stream_stream(
        _REFLECTION.format(version),
        request_serializer=reflection_pb2.ServerReflectionRequest.SerializeToString,
        response_deserializer=reflection_pb2.ServerReflectionResponse.FromString,
    )

    names: set[str] = set()
    asked = call(timeout=5)
    # Written by hand: an iterator of requests would cancel the call, were it refused while the request goes out.
    with suppress(asyncio.InvalidStateError):
        await asked.write(reflection_pb2.ServerReflectionRequest(list_services=""))
        await asked.done_writing()
    async for answer in asked:
        names |= {service.name for service in answer.list_services_response.service}
    return names


@core(
    "GetInfo tells name, version and SPI version",
    f"model.proto GetInfoResponse: name, version and providers are required, spi_versions holds {SPI_VERSION}, ready",
    subject=Subject.SERVER,
)
async def info(target: Target) -> str:
    """A mismatch of versions must be seen before the first request."""
    try:
        told = await target.models.GetInfo(GetInfoRequest(), timeout=5, metadata=target.metadata)
    except grpc.aio.AioRpcError as error:
        raise Broken(str(refusal_of(error)), "GetInfo") from error
    expect(told.name, "empty", "GetInfo.name")
    expect(told.version, "empty", "GetInfo.version")
    expect(SPI_VERSION in told.spi_versions, f"{list(told.spi_versions)}", "GetInfo.spi_versions")
    expect(told.ready, f"not ready: {told.not_ready_reason or 'without a reason'}", "GetInfo.ready")
    expect(told.providers, "empty", "GetInfo.providers")
    return f"{told.name} {told.version}, {SPI_VERSION}"


@core(
    "ListModels is sane",
    'model.proto Model: id is "provider/name", each feature stands once with a support, prices are decimal text with '
    "a date; ListModelsResponse: ordered by id, pages lose nothing",
    subject=Subject.SERVER,
)
async def models(target: Target) -> str:
    """The router filters and prices by this list."""
    listed = await _page(target, ListModelsRequest())
    found = list(listed)
    expect(found, "no model", "ListModels")
    ids = [model.id for model in found]
    expect(ids == sorted(ids), f"not ordered by id: {', '.join(ids)[:200]}", "ListModels.models")
    expect(len(set(ids)) == len(ids), "an id stands twice", "ListModels.models")
    for model in found:
        _check_model(model)
    if target.info is not None:
        told = set(target.info.providers)
        strange = sorted({model.provider for model in found} - told)
        expect(not strange, f"GetInfo.providers lacks {', '.join(strange)}", "ListModels.models")
    paged: list[str] = []
    token = ""
    size = max(1, len(ids) // 2)
    for _ in range(len(ids) + 1):
        page = await target.models.ListModels(
            ListModelsRequest(page_size=size, page_token=token), timeout=5, metadata=target.metadata
        )
        paged += [model.id for model in page.models]
        token = page.next_page_token
        if not token:
            break
    expect(paged == ids, f"pages of {size} give {len(paged)} of {len(ids)} models", "ListModels.next_page_token")
    return f"{len(ids)} model{'s' if len(ids) > 1 else ''}"


async def _page(target: Target, request: ListModelsRequest) -> list[Model]:
    try:
        return list((await target.models.ListModels(request, timeout=5, metadata=target.metadata)).models)
    except grpc.aio.AioRpcError as error:
        raise Broken(str(refusal_of(error)), "ListModels") from error


def _check_model(model: Model) -> None:
    where = f"model {model.id!r}"
    expect(model.provider and model.name, "provider or name is empty", where)
    expect(model.id == f"{model.provider}/{model.name}", f'not "{model.provider}/{model.name}"', where)
    kinds = [entry.feature for entry in model.features]
    for entry in model.features:
        known = entry.feature in Feature.values() and entry.feature != Feature.FEATURE_UNSPECIFIED
        expect(known, f"feature {entry.feature} is none of the contract", where)
        name = Feature.Name(entry.feature)
        expect(kinds.count(entry.feature) == 1, f"{name} is declared {kinds.count(entry.feature)} times", where)
        stated = entry.support in Support.values() and entry.support != Support.SUPPORT_UNSPECIFIED
        expect(stated, f"{name} does not say how it is met", where)
    for name in ("context_window", "max_output_tokens"):
        if model.HasField(name):
            expect(getattr(model, name) > 0, f"{name} is {getattr(model, name)}; unknown is unset", where)
    if model.HasField("price"):
        _check_price(model.price, f"{where}, price")
    for index, price in enumerate(model.announced_prices):
        _check_price(price, f"{where}, announced_prices[{index}]")
    if model.retires:
        expect(_is_date(model.retires), f"retires is {model.retires!r}, not YYYY-MM-DD", where)


def _check_price(price: Price, where: str) -> None:
    expect(_is_date(price.effective_date), f"effective_date is {price.effective_date!r}, not YYYY-MM-DD", where)
    for name in ("input", "output", *_SIDE_PRICES):
        value = getattr(price, name)
        if value or name not in _SIDE_PRICES:
            expect(_is_amount(value), f"{name} is {value!r}, not decimal text", where)


def _is_date(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


def _is_amount(text: str) -> bool:
    try:
        return re.fullmatch(r"[0-9]+(\.[0-9]+)?", text) is not None and Decimal(text) >= 0
    except InvalidOperation:
        return False
