"""What a gateway has in doubt stands in NATS, too: should it be gone for good, another one has it told anew.

Its own disk tells its next life. But a gateway that lost the store alone, and whose disk goes with it, leaves nobody
who knows. So each of them writes its doubts down under a name of its own, and again and again while it has some.
Whoever sees that they stay as they are takes them over. No two clocks are compared, and that two take them over does no
harm: counters are told anew twice.
"""

from __future__ import annotations

import asyncio
import json
import logging
import secrets
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import nats.js.errors
from nats.js import api

from maestro_gateway.budgets.doubts import Doubts
from maestro_gateway.ledger.scan import FAILURES
from maestro_gateway.ledger.stream import ask
from maestro_sdk.service.bus import Client, heed_cancellation

log = logging.getLogger(__name__)

STREAM = "MAESTRO_DOUBTS"
_SUBJECTS = "maestro.doubts"
_ANSWER = 5.0
_KEPT = 40 * 86400.0
"""Seconds after which every period is over that anybody had in doubt."""
_LASTING = 20.0
"""Seconds after which doubts that nobody wrote again have no owner."""
_MOST = 5000
"""Names that are written at a time: a message has to be small. The others follow once some are settled."""


class Wills:
    """The doubts of this gateway for the others, and theirs for it."""

    def __init__(self, client: Callable[[], Client | None], name: str, doubts: Doubts, lasting: float = _LASTING):
        """`client` gives the connection while there is one; `name` is for people who look; `lasting` in seconds."""
        self._client = client
        self._doubts = doubts
        self._lasting = lasting
        # Another one in each life: what an earlier one left is taken over like anybody's.
        self._subject = f"{_SUBJECTS}.{name}-{secrets.token_hex(4)}"
        self._written: Sequence[str] = ()
        self._due = 0.0
        # By subject: the sequence that was seen there, since when.
        self._seen: dict[str, tuple[int, float]] = {}

    async def tend(self) -> None:
        """Writes and reads until cancelled."""
        while True:
            await asyncio.sleep(self._lasting / 40)
            client = self._client()
            if client is None:
                continue
            try:
                heed_cancellation()
                await self._look(client)
            except FAILURES as error:
                log.debug("doubts are not written down in NATS: %r", error)
            except Exception:  # whatever it is: the next one may go well
                log.exception("doubts can't be written down in NATS")

    async def _look(self, client: Client) -> None:
        now = asyncio.get_running_loop().time()
        names = self._doubts.names[:_MOST]
        if now < self._due and list(self._written) == names:
            return
        js: Any = client.jetstream(timeout=_ANSWER)
        info: dict[str, Any] = await ask(client, f"STREAM.INFO.{STREAM}", {"subjects_filter": f"{_SUBJECTS}.>"})
        if "error" in info and names:
            # Nobody had any doubts so far.
            await js.add_stream(_stream())
        if names:
            await js.publish(self._subject, json.dumps(names).encode(), stream=STREAM)
        elif self._written:
            await js.purge_stream(STREAM, subject=self._subject)
        self._written, self._due = names, now + self._lasting / 4
        state: dict[str, Any] = info.get("state") or {}
        found: dict[str, int] = state.get("subjects") or {}
        self._seen = {subject: seen for subject, seen in self._seen.items() if subject in found}
        for subject in found:
            if subject != self._subject:
                await self._take_over(js, subject, now)

    async def _take_over(self, js: Any, subject: str, now: float) -> None:
        """Doubts what somebody left who does not write any more."""
        try:
            message = await js.get_last_msg(STREAM, subject)
        except nats.js.errors.NotFoundError:
            return
        sequence, since = self._seen.get(subject, (0, now))
        if message.seq != sequence:
            self._seen[subject] = (message.seq, now)
        elif now - since > self._lasting:
            names: list[str] = json.loads(message.data or b"[]")
            log.warning("%s is gone, and left %d counters of budgets in doubt", subject, len(names))
            self._doubts.add(names)
            # Not what its owner wrote meanwhile: it was only slow.
            await js.purge_stream(STREAM, subject=subject, seq=message.seq + 1)


def _stream() -> api.StreamConfig:
    return api.StreamConfig(
        name=STREAM,
        subjects=[f"{_SUBJECTS}.*"],
        storage=api.StorageType.FILE,
        max_msgs_per_subject=1,
        max_age=_KEPT,
    )


@asynccontextmanager
async def leaving_wills(client: Callable[[], Client | None], name: str, doubts: Doubts) -> AsyncGenerator[None]:
    """Writes down and takes over doubts meanwhile: for gateways that count together."""
    task = asyncio.create_task(Wills(client, name, doubts).tend(), name="doubts of others")
    try:
        yield
    finally:
        task.cancel()
        await asyncio.wait((task,))
