"""Batches of jobs: which items go together, and how a batch is found again at a provider that keeps no names."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator
from dataclasses import replace

import pytest

from maestro.llm.v1.batch_pb2 import Batch, BatchItem, BatchItemResult, BatchState
from maestro.llm.v1.chat_pb2 import ChatResponse
from maestro.llm.v1.message_pb2 import Role
from maestro_gateway.jobs.bundle import MOST_BYTES, MOST_ITEMS, Bundle, Economy, bundle, is_named, may_be
from maestro_gateway.jobs.provider_batches import ProviderBatches
from maestro_sdk.adapter.batch_servicer import BatchServicer
from maestro_sdk.adapter.catalogue import Catalogue
from maestro_sdk.errors import NoBackend, UpstreamError
from maestro_sdk.mesh.backends import Backends
from maestro_sdk.mesh.table import Backend, compile_table
from maestro_sdk.testing import tables
from maestro_sdk.testing.obliging_batches import ObligingBatcher
from maestro_sdk.testing.scripted import ScriptedProvider
from maestro_sdk.testing.servers import serve


def backend(name: str = "a", address: str = "127.0.0.1:1") -> Backend:
    made = tables.backend(f"adapter-{name}", tables.model(f"{name}/model", "BATCH"), address)
    return next(iter(compile_table(tables.message([made], {})).backends.values()))


def test_items_of_one_backend_go_together_up_to_what_providers_take():
    one, two = backend("a"), backend("b")
    found = [(index, 100, one if index % 3 else two) for index in range(7)]
    made = bundle("job_0123", found)
    assert [(each.name, each.backend, each.indices) for each in made] == [
        ("maestro-0123-000", two.id, [0, 3, 6]),
        ("maestro-0123-001", one.id, [1, 2, 4, 5]),
    ]
    many = bundle("job_0123", [(index, 1, one) for index in range(MOST_ITEMS + 1)])
    assert [len(each.indices) for each in many] == [MOST_ITEMS, 1]
    large = bundle("job_0123", [(index, MOST_BYTES // 2, one) for index in range(5)])
    assert [each.indices for each in large] == [[0, 1], [2, 3], [4]]


def test_items_are_known_by_names_that_nobody_else_has():
    held = Bundle("maestro-0123-000", "b", "a/model", [0, 17])
    assert held.index_of(held.item_id(17)) == 17
    for strange in ("17", "maestro-0123-001-17", "maestro-0123-000-", "maestro-0123-000-x", "", "0"):
        assert held.index_of(strange) is None


def test_what_is_stored_comes_back():
    economy = Economy("gateway-1", 7.5, True, [Bundle("n", "b", "a/model", [1, 2], "open", "batch-1", 3.0)])
    assert Economy.decode(economy.encode(), 9) == replace(economy, revision=9)
    assert economy.left == 2


def test_whose_a_batch_is():
    held = Bundle("maestro-0123-000", "b", "a/model", [0, 1], tried=time.time())

    def told(**fields: object) -> Batch:
        batch = Batch(**fields)  # pyright: ignore[reportArgumentType] - fields of a batch, whichever they are
        batch.create_time.GetCurrentTime()
        return batch

    assert is_named(told(metadata={"maestro_batch": held.name}), held.name)
    assert is_named(told(display_name=held.name + "-f00d"), held.name)
    assert not is_named(told(display_name="maestro-0123-001"), held.name)
    assert may_be(told(counts={"total": 2}), held)
    assert may_be(told(), held), "one that is still being looked at tells no count"
    assert not may_be(told(counts={"total": 3}), held)
    assert not may_be(told(metadata={"owner": "somebody"}), held)
    old = told(counts={"total": 2})
    old.create_time.FromSeconds(int(held.tried) - 3600)
    assert not may_be(old, held)


async def test_items_that_cannot_be_read_start_nothing():
    async def answer(item: BatchItem) -> BatchItemResult:
        return BatchItemResult(item_id=item.item_id)

    async def items() -> AsyncIterator[BatchItem]:
        item = BatchItem(item_id="maestro-1-000-0")
        item.chat.messages.add(role=Role.ROLE_USER).parts.add().text.text = "hello"
        yield item
        raise NoBackend("NATS is away")

    batcher, channels = ObligingBatcher(answer), Backends()
    offered = ScriptedProvider(models=[tables.model("obliging/model", "BATCH")])
    async with serve(BatchServicer(batcher, Catalogue(offered))) as address:
        asked, batches = backend("obliging", address), ProviderBatches(channels)
        held = Bundle("maestro-1-000", "b", "obliging/model", [0], tried=time.time())
        with pytest.raises(UpstreamError):
            await batches.create(asked, held, items())
        assert await batches.find(asked, held) == (None, [])
    await channels.close()


class Nameless(ObligingBatcher):
    """Keeps no names, as some providers do."""

    def _tell(self, batch_id: str, running: object) -> Batch:
        batch = super()._tell(batch_id, running)  # pyright: ignore[reportArgumentType] - of the kind that it made
        batch.ClearField("display_name")
        batch.ClearField("metadata")
        return batch


async def test_a_batch_without_a_name_is_known_by_its_results():
    async def answer(item: BatchItem) -> BatchItemResult:
        return BatchItemResult(item_id=item.item_id, chat=ChatResponse(provider="obliging", model="model"))

    async def items(held: Bundle) -> AsyncIterator[BatchItem]:
        for index in held.indices:
            item = BatchItem(item_id=held.item_id(index))
            item.chat.model = held.model
            item.chat.messages.add(role=Role.ROLE_USER).parts.add().text.text = "hello"
            yield item

    offered = ScriptedProvider(models=[tables.model("obliging/model", "BATCH")])
    servicer = BatchServicer(Nameless(answer, takes=0.0), Catalogue(offered))
    channels = Backends()
    async with serve(servicer) as address:
        asked, batches = backend("obliging", address), ProviderBatches(channels)
        mine, other = (
            Bundle(f"maestro-{name}-000", "b", "obliging/model", [0, 1], tried=time.time()) for name in ("1", "2")
        )
        begun = [await batches.create(asked, held, items(held)) for held in (mine, other)]
        named, maybe = await batches.find(asked, mine)
        assert named is None
        assert {batch.batch_id for batch in maybe} == {batch.batch_id for batch in begun}
        owners: dict[str, str] = {}
        for batch in maybe:
            assert batch.state == BatchState.BATCH_STATE_COMPLETED
            results = [result async for result in batches.results(asked, batch.batch_id)]
            for held in (mine, other):
                if all(held.index_of(result.item_id) is not None for result in results):
                    owners[batch.batch_id] = held.name
        assert owners == {begun[0].batch_id: mine.name, begun[1].batch_id: other.name}
    await channels.close()
