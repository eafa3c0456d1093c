"""One gateway of three dies under load: only what it had in hand is lost, and each caller hears of it."""

from maestro_sdk.testing.chaos.load import Load

from .conftest import KEY, MODEL, Mesh

CLIENTS = 32
ROUNDS = 2


async def test_a_killed_gateway_takes_nothing_with_it_but_what_it_had_in_hand(mesh: Mesh, figures: list[str]):
    for number in range(ROUNDS):
        name = ("gateway", "gateway-2", "gateway-3")[number % 3]
        await mesh.whole()
        async with Load(mesh.url, KEY, MODEL, CLIENTS, pause=0.005) as load:
            await load.answers(100)
            known = len(load.shown)
            before = mesh.kill(name)
            gone = await mesh.gone(before)
            noticed = await mesh.noticed(before)
            await load.answers(200)
            await mesh.process.wait_restarted(before)
            await load.answers(100)
        failed = [shown for shown in load.shown if not shown.answered]
        assert [shown for shown in load.shown[:known] if not shown.answered] == []
        assert all(shown.failure != "nothing" for shown in failed), "everybody is told"
        # What a connection of the dying process took is lost with it. Envoy may hand on more until it has seen the end
        # of the connection, but of each client one request at most: it has seen that end when it tells of a loss.
        told = [
            f"{shown.door}: {shown.failure}, from {shown.began - gone:+.3f} s to {shown.ended - gone:+.3f} s"
            for shown in failed
        ]
        told.append(f"Envoy had no connection to it at {noticed - gone:+.3f} s at the latest")
        assert [shown for shown in failed if shown.began > noticed] == [], told
        assert sum(shown.began > gone for shown in failed) <= CLIENTS, told
        last = max((shown.ended - gone for shown in failed), default=0.0)
        figures.append(
            f"kill -9 {name} of 3 under {CLIENTS} clients: {len(failed)} of {CLIENTS} in flight cut with an error, the "
            f"last after {last * 1000:.0f} ms; {len(load.shown) - known} later requests, 0 failed"
        )
