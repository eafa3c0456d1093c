"""A third party's emulator of the provider: what it understands of our requests, and we of its answers.

The emulator is patched: it announces text and reasoning with `contentBlockStart {"start": {}}`, which Bedrock never
does and AWS's own SDK refuses to read. Its errors have no `x-amzn-errortype`, so only their status counts.
"""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import AsyncIterator

import pytest
import pytest_asyncio

from maestro_sdk.testing.emulated import HELLO, Emulated, script
from maestro_sdk.testing.servers import Aimock, find_aimock

WRONG = "return events;"
RIGHT = 'return events.filter((e) => !(e.eventType === "contentBlockStart" && !e.payload.start.toolUse));'

# One emulator for all tests: starting it takes longer than they do.
pytestmark = pytest.mark.asyncio(loop_scope="module")

REFUSALS = {"limit": (429, "error"), "busy": (503, "error"), "broken": (500, "error"), "key": (403, "error")}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def emulator(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[str]:
    original, copy = find_aimock().parent, tmp_path_factory.mktemp("aimock")
    shutil.copytree(original, copy / "dist", ignore=shutil.ignore_patterns("*.map", "*.cjs", "*.cts", "*.d.ts"))
    shutil.copy(original.parent / "package.json", copy)
    wrong = copy / "dist" / "bedrock-converse.js"
    source = wrong.read_text()
    assert WRONG in source
    wrong.write_text(source.replace(WRONG, RIGHT))
    async with Aimock(script(REFUSALS, call_ids="tooluse_"), chunk=5, script=copy / "dist" / "cli.js") as mock:
        yield mock.url


async def test_the_patch_makes_it_readable_for_aws(emulator: str) -> None:
    import boto3

    def read() -> str:
        client = boto3.client(
            "bedrock-runtime",
            region_name="us-east-1",
            endpoint_url=emulator,
            aws_access_key_id="k",
            aws_secret_access_key="s",
        )
        turn = {"role": "user", "content": [{"text": "hello"}]}
        events = client.converse_stream(modelId="amazon.nova-lite-v1:0", messages=[turn])["stream"]
        return "".join(found.get("contentBlockDelta", {}).get("delta", {}).get("text", "") for found in events)

    assert await asyncio.to_thread(read) == HELLO


class TestEmulator(Emulated):
    """Bedrock's wire."""
