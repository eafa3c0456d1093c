"""Publishes from a line of input on until it is killed, and says what: one identifier a line.

Arguments: address of NATS, spool, and 1, or 0 to deliver only what earlier lives left.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import sys
from pathlib import Path

from maestro.event.v1 import event_pb2
from maestro_sdk.service.event_publisher import EventPublisher
from maestro_sdk.service.events import new_event

_KIND = "request.completed"


async def main(url: str, spool: str, goes_on: str) -> None:
    async with EventPublisher(url, Path(spool), queue=500, durable=(_KIND,)) as publisher:
        for number in itertools.count() if goes_on == "1" else ():
            # Each has one of those beside it that may be lost.
            publisher.publish(new_event(event_pb2.RequestStarted(), "request/x", tenant="other"))
            event = new_event(event_pb2.RequestCompleted(request_id=f"r{number}" * 20), "request/x", tenant="acme")
            publisher.publish(event)
            os.write(1, f"{event.id}\n".encode())
            if number % 20 == 0:
                await asyncio.sleep(0.001)
        await publisher.flush(30)
        print(publisher.counters)


sys.stdin.readline()
asyncio.run(main(*sys.argv[1:]))
