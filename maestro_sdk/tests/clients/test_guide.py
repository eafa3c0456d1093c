"""The examples of docs/sdk.md run as they stand, each in a program of its own whose every warning is an error."""

import asyncio
import os
import re
import sys
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro_sdk.adapter.servicer import ChatServicer
from maestro_sdk.testing.scripted import ScriptedProvider, answer, scripted_model
from maestro_sdk.testing.servers import serve

MODEL = "local/offline"
GUIDE = Path(__file__).parents[3] / "docs" / "sdk.md"
EXAMPLES = re.findall(r"```python\n(.*?)```", GUIDE.read_text(encoding="utf-8"), re.DOTALL)


class Assistant(ScriptedProvider):
    """Answers what the examples ask: a call for a tool, JSON for a schema, a greeting otherwise."""

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        if request.tools and len(request.messages) == 1:
            yield answer(calls=[("c1", request.tools[0].name, '{"city":"Oslo"}')], model=MODEL)
        elif request.HasField("response_format"):
            yield answer('{"city":', '"Oslo"}', model=MODEL)
        else:
            yield answer("Hello", " there.", model=MODEL)


@pytest.mark.parametrize(
    ("number", "output"),
    [
        (0, ["Hello there."]),
        (1, ["Hello there. stop 2 unknown", "Hello there."]),
        (2, ["Oslo"]),
        (3, ["Hello there.", "(stop)"]),
        (4, ["['Hello there.', 'Hello there.', 'Hello there.']", "Hello there."]),
        (5, ["Hello there. 2 answers"]),
        (6, []),
        (7, []),
        (
            8,
            [
                "['temperature: must be greater than or equal to 0 and less than or equal to 2']",
                "NOT_FOUND False order-17",
            ],
        ),
    ],
)
async def test_an_example_does_what_it_shows(number: int, output: list[str]):
    assert len(EXAMPLES) == 9
    async with serve(ChatServicer(Assistant(models=[scripted_model(MODEL)]))) as address:
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-W", "error", "-c", EXAMPLES[number]),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            env={**os.environ, "MAESTRO_URL": f"http://{address}", "GRPC_VERBOSITY": "NONE"},
        )
        async with asyncio.timeout(30):
            out, errors = await process.communicate()
    assert (process.returncode, errors.decode()) == (0, "")
    assert out.decode().splitlines() == output
