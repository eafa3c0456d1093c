"""A provider's account with a batch API, which tells what it was sent."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections import Counter
from collections.abc import Callable, Sequence
from decimal import Decimal
from typing import Any

from maestro_sdk.testing import openai_chat
from maestro_sdk.testing.chaos.provider import text_of
from maestro_sdk.testing.faults import FaultServer, Seen, Step, Wait
from maestro_sdk.testing.openai_auxiliary import OpenAIAuxiliary, StoredBatch
from maestro_sdk.testing.wire import Answer, Tokens

CHEAP = "openai/gpt-5.6-luna"
"""Has a batch API, at half the price."""
PRICE = Decimal("0.20") / 10**6, Decimal("1.20") / 10**6
_MARK = re.compile(r"\[(r\d+)\]")


class Wire(OpenAIAuxiliary):
    """Takes a batch at once, and tells that after `late` seconds."""

    late = 0.0

    def _create_batch(self, seen: Seen) -> Sequence[Step]:
        return [Wait(self.late), *super()._create_batch(seen)]


class Account:
    """The provider's account. `answered` counts answers of batches by mark; `failing` are marks with a bad status."""

    def __init__(self, server: FaultServer) -> None:
        self.answered: Counter[str] = Counter()
        self.failing: dict[str, int] = {}
        self.wire = Wire(server, answers=self._answer)

    def batches(self, mark: str) -> list[StoredBatch]:
        """The batches that hold a question with that mark."""
        found = [batch for batch in self.wire.batches.values() if batch.input_file_id in self.wire.files]
        return [batch for batch in found if f"[{mark}]".encode() in self.wire.files[batch.input_file_id].content]

    async def one(self, mark: str) -> StoredBatch:
        """The batch with that mark, as soon as the provider has it."""
        return (await until(lambda: self.batches(mark)))[0]

    def _answer(self, body: Any) -> tuple[int, Any]:
        found = _MARK.search(json.dumps(body))
        mark = found[1] if found else ""
        if mark in self.failing:
            return self.failing[mark], {"error": {"message": "not now", "type": "server_error", "code": None}}
        self.answered[mark] += 1
        seen = Seen("POST", openai_chat.PATH, "", {}, json.dumps(body).encode())
        answer = Answer(pieces=(text_of(mark),), tokens=Tokens(input=100, output=10))
        return 200, openai_chat.WIRE.document(answer, seen)


async def until(look: Callable[[], Any], timeout: float = 30.0) -> Any:
    """What `look` gives, as soon as it is something."""
    end = time.monotonic() + timeout
    while not (found := look()):
        assert time.monotonic() < end, "it never came"
        await asyncio.sleep(0.02)
    return found
