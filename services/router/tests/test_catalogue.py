"""What the router takes of what adapters tell of themselves."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from grpc_health.v1 import health, health_pb2

from maestro.llm.v1.model_pb2 import GetInfoRequest, GetInfoResponse, ListModelsRequest, ListModelsResponse, Model
from maestro.llm.v1.model_pb2_grpc import ModelServiceServicer
from maestro.llm.v1.usage_pb2 import Price
from maestro.router.v1 import router_pb2 as pb
from maestro_router.catalogue import AdapterWatch, answers, mend
from maestro_router.compile import Adapter
from maestro_sdk.testing.scripted import scripted_model
from maestro_sdk.testing.servers import free_port, serve


@pytest.mark.parametrize("amount", ["3,00", "-1", "NaN", "inf", "1e9", "", "x", "9" * 5000])
def test_a_price_that_is_none_counts_as_unknown(amount: str):
    model = scripted_model()
    model.price.CopyFrom(Price(input=amount, output="1", effective_date="2026-01-01"))
    assert "price" in mend(model)
    assert not model.HasField("price")


def test_an_announced_price_that_is_none_is_left_out():
    model = Model(id="a/b", provider="a", name="b")
    model.announced_prices.append(Price(effective_date="2999-01-01", input="cheap", output="1"))
    model.announced_prices.append(Price(effective_date="2999-02-01", input="1", output="1"))
    assert "announced price" in mend(model)
    assert [price.input for price in model.announced_prices] == ["1"]


@pytest.mark.parametrize("name", ["a b", "a\nb", "\x1b[31mred", "\u202egpt", "", "n" * 255])
def test_a_model_with_a_name_that_nobody_can_ask_for_is_left_out(name: str):
    assert "left out" in mend(Model(id=f"a/{name}", provider="a", name=name))


@pytest.mark.parametrize("name", ["llama3.2:3b", "org/model@v1", "模型-7b", "Ü", "n" * 254])
def test_a_model_with_a_strange_name_is_one(name: str):
    assert mend(Model(id=f"a/{name}", provider="a", name=name)) == ""


@pytest.mark.parametrize("model", [Model(id="a/b", provider="a"), Model(id="b", name="b"), Model()])
def test_a_model_without_a_proper_id_is_left_out(model: Model):
    assert "left out" in mend(model)


def test_a_good_model_stays_as_it_is():
    model = scripted_model()
    model.price.CopyFrom(Price(input="0.30", output="12", effective_date="2026-01-01"))
    before = model.SerializeToString(deterministic=True)
    assert mend(model) == ""
    assert model.SerializeToString(deterministic=True) == before


class Endless(ModelServiceServicer):
    """Has one more page, always."""

    def __init__(self) -> None:
        self.pages = 0

    async def GetInfo(self, request: GetInfoRequest, context: Any) -> GetInfoResponse:
        return GetInfoResponse(name="endless", version="1", spi_versions=["maestro.llm.v1"], ready=True)

    async def ListModels(self, request: ListModelsRequest, context: Any) -> ListModelsResponse:
        self.pages += 1
        models = [scripted_model(f"s/{self.pages}-{number}") for number in range(2000)]
        return ListModelsResponse(models=models, next_page_token="more")


class Listing(Endless):
    """Has one page."""

    def __init__(self, models: list[Model]) -> None:
        super().__init__()
        self.models = models
        self.trouble = ""

    async def GetInfo(self, request: GetInfoRequest, context: Any) -> GetInfoResponse:
        info = await super().GetInfo(request, context)
        info.ready, info.not_ready_reason = not self.trouble, self.trouble
        return info

    async def ListModels(self, request: ListModelsRequest, context: Any) -> ListModelsResponse:
        return ListModelsResponse(models=self.models)


async def first_view(adapter: Adapter) -> Adapter:
    """What a watch sees first."""
    seen: list[Adapter] = []
    watch = AdapterWatch(adapter, 60.0, seen.append)
    running = asyncio.create_task(watch.run())
    async with asyncio.timeout(10):
        while not seen:
            await asyncio.sleep(0.01)
    running.cancel()
    await asyncio.wait((running,))
    return seen[0]


async def test_a_list_without_an_end_is_given_up():
    statuses: Any = vars(health)["aio"].HealthServicer()
    await statuses.set("", health_pb2.HealthCheckResponse.SERVING)
    endless = Endless()
    async with serve(endless, statuses) as address:
        seen = await first_view(Adapter("endless", address))
    assert seen.state == pb.ADAPTER_STATE_DOWN
    assert "is too long: more than 10000 entries" in seen.reason
    assert endless.pages <= 2 * 6  # a second try may have begun


async def test_a_long_reason_is_cut():
    """It stands at each model in everybody's table."""
    statuses: Any = vars(health)["aio"].HealthServicer()
    await statuses.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
    listing = Listing([scripted_model("s/one")])
    listing.trouble = "no key " * 10_000
    async with serve(listing, statuses) as address:
        seen = await first_view(Adapter("wordy", address))
    assert seen.state == pb.ADAPTER_STATE_UNCONFIGURED
    assert seen.reason == listing.trouble[:500]


async def test_what_an_announced_adapter_may_claim_is_bounded():
    """Everybody's table holds it: one that nobody configured must not make the table too large to be sent."""
    statuses: Any = vars(health)["aio"].HealthServicer()
    await statuses.set("", health_pb2.HealthCheckResponse.SERVING)
    fat = scripted_model("s/fat")
    fat.tags.append("x" * 300_000)
    for models, reason in (
        ([scripted_model(f"s/{number}") for number in range(1001)], "more than 1000 entries"),
        ([fat], "more than 204800 bytes"),
        ([scripted_model(f"s/{number}") for number in range(500)], ""),
    ):
        async with serve(Listing(models), statuses) as address:
            seen = await first_view(Adapter("bold", address, announced=True))
        assert seen.state == (pb.ADAPTER_STATE_DOWN if reason else pb.ADAPTER_STATE_SERVING)
        assert reason in seen.reason
        assert len(seen.models) == (0 if reason else 500)


async def test_who_is_asked_whether_it_serves():
    statuses: Any = vars(health)["aio"].HealthServicer()
    await statuses.set("", health_pb2.HealthCheckResponse.SERVING)
    async with serve(statuses) as address:
        assert await answers(address)
        await statuses.set("", health_pb2.HealthCheckResponse.NOT_SERVING)
        assert not await answers(address)
    assert not await answers(f"127.0.0.1:{free_port()}", 0.5)
