"""Long calls end with their key, whatever the end of another one does."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack

from maestro_gateway.identity import Keys, Principal
from maestro_gateway.identity.sittings import Sittings


async def test_no_call_holds_up_the_end_of_another() -> None:
    made = {
        name: Principal("acme", f"key_{name}", frozenset({"chat"}), "key", credential=name.encode())
        for name in ("broken", "stuck", "fine", "kept")
    }
    keys = Keys(())

    def leave(*names: str) -> None:
        keys.replace({made[name].credential: made[name] for name in names})

    leave(*made)
    ended: list[str] = []
    fine, cut = asyncio.Event(), asyncio.Event()

    def broken() -> None:
        ended.append("broken")
        raise RuntimeError("it can't be ended")

    async def stuck() -> None:
        ended.append("stuck")
        try:
            # As a socket whose peer reads nothing.
            await asyncio.Event().wait()
        finally:
            cut.set()

    def end(name: str) -> None:
        ended.append(name)
        fine.set()

    async with asyncio.timeout(5):
        async with Sittings(keys) as sittings:
            with ExitStack() as stack:
                for name, dismiss in (
                    ("broken", broken),
                    ("stuck", stuck),
                    ("fine", lambda: end("fine")),
                    ("kept", lambda: end("kept")),
                ):
                    stack.enter_context(sittings.hold(made[name], dismiss))
                leave("fine", "kept")
                while ended != ["broken", "stuck"]:
                    await asyncio.sleep(0)
                leave("kept")
                await fine.wait()
        await cut.wait()
    assert ended == ["broken", "stuck", "fine"]
