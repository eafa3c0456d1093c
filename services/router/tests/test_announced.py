"""How announcements are read, and who of several stands for a name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from maestro.llm.v1.model_pb2 import Model
from maestro.llm.v1.usage_pb2 import Price
from maestro.router.v1 import router_pb2 as pb
from maestro_router.announced import LONGEST, Candidate, Malformed, Standing, cheapest, choose, read
from maestro_router.compile import Adapter
from maestro_sdk.testing.scripted import scripted_model


def announce(**fields: Any) -> bytes:
    given: dict[str, Any] = {"name": "echo", "address": "10.0.0.7:50070", "instance": "one", **fields}
    return pb.AdapterAnnouncement(**given).SerializeToString()


@pytest.mark.parametrize(
    "address", ["10.0.0.7:50070", "echo.adapters.svc.cluster.local:1", "localhost:65535", "[::1]:50070", "a_b-c:80"]
)
def test_good_addresses_are_taken(address: str):
    assert read(announce(address=address, regions=["eu"])).address == address


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"\xff\xff\xff", "is no maestro.router.v1.AdapterAnnouncement"),
        (b'{"name": "echo"}', "is no maestro.router.v1.AdapterAnnouncement"),
        (b"", "name"),
        (announce(name=""), "name"),
        (announce(name="a:b"), "name"),
        (announce(name="a\nb"), "name"),
        (announce(name="x" * 64), "name"),
        (announce(address=""), "not host:port"),
        (announce(address="10.0.0.7"), "not host:port"),
        (announce(address="10.0.0.7:0"), "not host:port"),
        (announce(address="10.0.0.7:70000"), "not host:port"),
        (announce(address="unix:/run/docker.sock:1"), "not host:port"),
        (announce(address="http://10.0.0.7:80"), "not host:port"),
        (announce(address="dns:///elsewhere:80"), "not host:port"),
        (announce(address="10.0.0.7:٣٤"), "not host:port"),
        (announce(address="0.0.0.0:50070"), "a whole machine"),
        (announce(address="[::]:50070"), "a whole machine"),
        (announce(instance=""), "instance"),
        (announce(instance="i" * 129), "instance"),
        (announce(regions=["eu"] * 33), "regions"),
        (announce(regions=["e" * 129]), "regions"),
        (announce(regions=["e" * 128] * 40), f"{LONGEST} at most"),
        (b"\0" * 1_000_000, f"{LONGEST} at most"),
    ],
)
def test_what_is_no_announcement_is_told_in_few_words(data: bytes, why: str):
    with pytest.raises(Malformed) as caught:
        read(data)
    assert why in str(caught.value)
    assert len(str(caught.value)) < 200
    assert str(caught.value).isprintable()


def candidate(address: str, standing: Standing, state: pb.AdapterState.ValueType) -> Candidate:
    view = Adapter("echo", address, state, "", models=[scripted_model()], providers=["scripted"], since=5.0)
    return Candidate("echo", address, "one", view, standing)


UP, DOWN = pb.ADAPTER_STATE_SERVING, pb.ADAPTER_STATE_DOWN
ADMITTED, WAITING, VERIFYING, REFUSED = Standing.ADMITTED, Standing.WAITING, Standing.VERIFYING, Standing.REFUSED


@pytest.mark.parametrize(
    ("among", "current", "chosen"),
    [
        ([], None, None),
        ([(WAITING, UP)], None, 0),
        ([(WAITING, UP), (ADMITTED, UP)], None, 1),
        ([(ADMITTED, UP), (ADMITTED, UP)], 0, 0),
        ([(ADMITTED, UP), (ADMITTED, UP)], 1, 1),
        ([(ADMITTED, DOWN), (ADMITTED, UP)], 0, 1),
        ([(ADMITTED, DOWN), (VERIFYING, UP)], 0, 0),
        ([(ADMITTED, DOWN), (REFUSED, UP)], 0, 0),
        ([(REFUSED, UP), (ADMITTED, DOWN)], 0, 0),
        ([(ADMITTED, DOWN), (ADMITTED, DOWN)], 1, 1),
        ([(REFUSED, UP), (ADMITTED, UP), (ADMITTED, UP)], 0, 1),
    ],
)
def test_who_serves_stays_and_who_does_not_gives_way(
    among: list[tuple[Standing, pb.AdapterState.ValueType]], current: int | None, chosen: int | None
):
    candidates = [candidate(f"h{number}:1", *each) for number, each in enumerate(among)]
    before = None if current is None else candidates[current]
    assert choose(candidates, before) is (None if chosen is None else candidates[chosen])


def test_one_who_is_gone_is_never_chosen():
    gone, here = candidate("h0:1", ADMITTED, UP), candidate("h1:1", WAITING, UP)
    assert choose([here], gone) is here
    assert choose([], gone) is None


@pytest.mark.parametrize(
    ("standing", "state", "models"),
    [
        (ADMITTED, UP, 1),
        (WAITING, UP, 0),
        (VERIFYING, pb.ADAPTER_STATE_VERIFYING, 0),
        (REFUSED, pb.ADAPTER_STATE_REFUSED, 0),
    ],
)
def test_models_are_shown_only_of_the_admitted(standing: Standing, state: pb.AdapterState.ValueType, models: int):
    shown = candidate("h:1", standing, UP).shown()
    assert (shown.state, len(shown.models), len(shown.providers), bool(shown.since)) == (
        state,
        models,
        models,
        bool(models),
    )


def priced(name: str, price: tuple[str, str] | None) -> Model:
    model = scripted_model(f"scripted/{name}")
    if price is not None:
        model.price.CopyFrom(Price(input=price[0], output=price[1], effective_date="2026-01-01"))
    return model


def test_the_cheapest_model_that_chats_is_asked():
    silent = priced("embedder", ("0.01", "0"))
    del silent.features[:]
    models = [priced("large", ("10", "30")), priced("small", ("0.3", "1.2")), priced("odd", None), silent]
    adapter = Adapter("echo", "h:1", models=models)
    assert cheapest(adapter) == "scripted/small"
    assert cheapest(replace(adapter, models=[priced("odd", None)])) == "scripted/odd"
    assert cheapest(replace(adapter, models=[silent])) == ""
