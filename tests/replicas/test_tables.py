"""What one router learns, every gateway decides by, whichever router it follows."""

import asyncio
import time
from collections.abc import Callable

import orjson
from google.api.httpbody_pb2 import HttpBody
from google.protobuf.timestamp_pb2 import Timestamp

from maestro.router.v1 import router_pb2 as pb
from maestro.router.v1.router_pb2_grpc import RouterServiceStub

from .conftest import BACKEND, GATEWAYS, MODEL, ROUTERS, Mesh

ROUNDS = 10
LIMIT = 0.25


async def decided(mesh: Mesh, begun: float, fits: Callable[[dict[str, object]], bool]) -> float:
    """Seconds from `begun` until the decision of every gateway for the one backend fits."""
    request = HttpBody(content_type="application/json", data=orjson.dumps({"model": MODEL}))

    async def wait(gateway: str) -> float:
        while True:
            [candidate] = (await mesh.ask(gateway, "Explain", request))["candidates"]
            if fits(candidate):
                return time.monotonic()
            await asyncio.sleep(0.005)

    async with asyncio.timeout(10):
        return max(await asyncio.gather(*(wait(gateway) for gateway in GATEWAYS))) - begun


async def test_an_operators_word_to_one_router_reaches_all_gateways(mesh: Mesh, figures: list[str]):
    took: list[float] = []
    peer = mesh.process.peer
    async with (
        peer.open_channel(mesh.process.address(ROUTERS[0])) as one,
        peer.open_channel(mesh.process.address(ROUTERS[1])) as two,
    ):
        routers = RouterServiceStub(one), RouterServiceStub(two)
        for number in range(ROUNDS):
            told = pb.SetBackendStateRequest(
                backend_id=BACKEND, state=pb.BACKEND_STATE_DISABLED, reason=f"round {number}"
            )
            begun = time.monotonic()
            await routers[number % 2].SetBackendState(told)
            took.append(await decided(mesh, begun, lambda found: not found["kept"]))
            again = pb.SetBackendStateRequest(backend_id=BACKEND, state=pb.BACKEND_STATE_ACTIVE)
            begun = time.monotonic()
            await routers[(number + 1) % 2].SetBackendState(again)
            took.append(await decided(mesh, begun, lambda found: bool(found["kept"])))
    assert sorted(took)[len(took) // 2] <= LIMIT, took
    figures.append(
        f"table change at one of 2 routers to all 3 gateways, {len(took)} changes: "
        f"median {sorted(took)[len(took) // 2] * 1000:.0f} ms, longest {max(took) * 1000:.0f} ms"
    )


async def test_a_breaker_that_opened_at_one_gateway_is_open_at_all(mesh: Mesh, figures: list[str]):
    took: list[float] = []
    for number in range(ROUNDS):
        until = Timestamp()
        until.FromNanoseconds(int((time.time() + 0.4) * 1e9))
        opening = pb.Opening(scope=BACKEND, until=until, reason="5 failures in a row")
        async with mesh.process.peer.open_channel(mesh.process.address(ROUTERS[number % 2])) as channel:
            # The words of a gateway that follows this router.
            begun = time.monotonic()
            await RouterServiceStub(channel).Report(pb.ReportRequest(reporter="gateway", openings=[opening]))
            took.append(await decided(mesh, begun, lambda found: not found["kept"]))
        await decided(mesh, begun, lambda found: bool(found["kept"]))
    assert sorted(took)[len(took) // 2] <= LIMIT, took
    figures.append(
        f"breaker told to one of 2 routers, honoured by all 3 gateways, {len(took)} openings: "
        f"median {sorted(took)[len(took) // 2] * 1000:.0f} ms, longest {max(took) * 1000:.0f} ms"
    )


async def test_a_router_that_stops_answering_is_left(mesh: Mesh, figures: list[str]):
    """Its process is there and its connections stand: only that it says nothing tells."""
    name, other = ROUTERS
    address = mesh.process.address(other)
    stopped = mesh.process.members()[name].pid
    assert stopped is not None
    mesh.stop(stopped)
    try:
        took = await mesh.all_routers(lambda router: router["address"] == address and router["reachable"])
    finally:
        mesh.go_on(stopped)
    assert took < 10
    figures.append(f"a router that hangs: all gateways with the other one after {took:.1f} s")
    with_two = await mesh.all_routers(lambda router: not router["degraded"])
    assert with_two < 1
