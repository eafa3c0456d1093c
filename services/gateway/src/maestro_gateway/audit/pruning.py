"""Takes away what is older than its tenant keeps it: the beginning of a chain, never its newest record."""

from __future__ import annotations

import datetime
import json
import time
from collections.abc import Callable
from contextlib import aclosing

from maestro_gateway.audit.chain import ANSWER, STREAM, SUBJECTS, subject_of
from maestro_gateway.ledger.scan import scan
from maestro_sdk.service.bus import Client, heed_cancellation


async def prune(client: Client, retention: Callable[[str], float]) -> None:
    """Prunes every chain. `retention` gives seconds for a tenant. Raises errors of NATS."""
    js = client.jetstream(timeout=ANSWER)
    for tenant in await _tenants(client):
        heed_cancellation()
        subject = subject_of(tenant)
        oldest = datetime.datetime.fromtimestamp(max(0.0, time.time() - retention(tenant)), datetime.UTC)
        first = 0
        async with aclosing(scan(client, STREAM, [subject], oldest)) as batches:
            async for batch in batches:
                first = batch[0].sequence
                break
        if not first:
            first = (await js.get_last_msg(STREAM, subject)).seq or 0
        if first > 1:
            await js.purge_stream(STREAM, seq=first, subject=subject)


async def _tenants(client: Client) -> list[str]:
    """Those that have a chain."""
    found: list[str] = []
    while True:
        body = json.dumps({"subjects_filter": SUBJECTS, "offset": len(found)}).encode()
        answer = json.loads((await client.request(f"$JS.API.STREAM.INFO.{STREAM}", body, timeout=ANSWER)).data)
        subjects: dict[str, int] = answer["state"].get("subjects") or {}
        found += [subject.rpartition(".")[2] for subject in subjects]
        if not subjects or len(found) >= int(answer.get("total", 0)):
            return found
