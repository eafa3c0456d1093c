"""The stream of the ledger. NATS itself copies the ends of requests into it from the stream of events.

So nothing more is published for it, what waits on a disk while NATS is away gets there with the events, and it outlives
the stream of events: when that one is made anew, NATS goes on with the new one.
"""

from __future__ import annotations

import json
from typing import Any, cast

from nats.js import api

from maestro_sdk.service import bus
from maestro_sdk.service.event_kinds import DUPLICATE_WINDOW

STREAM = "MAESTRO_LEDGER"
BUCKET = "MAESTRO_USAGE"
"""Holds sums over what is in the stream; it can be lost at any time, and is then made anew."""
KINDS = ("request.completed", "request.failed", "request.denied", "admin.acted")
"""What the ledger holds of all events: money reads the first two, the audit all of them."""
_ANSWER = 5.0


async def ensure_ledger(client: bus.Client, retention: float) -> None:
    """Makes stream and bucket or brings them up to date; whoever comes first does it. `retention` in seconds.

    Only what concerns the ledger is changed: replicas, placement and the like stay as an operator set them. A kind that
    a newer version added is left in.
    """
    age = int(retention * 1e9)
    answer = await ask(client, f"STREAM.INFO.{STREAM}")
    found: dict[str, Any] | None = answer.get("config")
    if found is None:
        await _made(client, f"STREAM.CREATE.{STREAM}", _wanted(age))
    else:
        changed = _brought_up_to_date(found, age)
        if changed != found:
            await _made(client, f"STREAM.UPDATE.{STREAM}", changed)
    await _ensure_bucket(client, retention)


def _wanted(age: int) -> dict[str, Any]:
    return {
        "name": STREAM,
        "storage": "file",
        "retention": "limits",
        "discard": "old",
        "compression": "s2",
        "max_age": age,
        "duplicate_window": int(DUPLICATE_WINDOW * 1e9),
        # One source with several filters: so one sequence of the events tells how far the copy is.
        "sources": [{"name": bus.STREAM, "subject_transforms": [_filter(kind) for kind in KINDS]}],
    }


def _filter(kind: str) -> dict[str, str]:
    # NATS takes several filters of one source only as changes of subjects; these change nothing.
    return {"src": f"maestro.events.*.{kind}", "dest": f"maestro.events.{{{{wildcard(1)}}}}.{kind}"}


def _brought_up_to_date(found: dict[str, Any], age: int) -> dict[str, Any]:
    sources = cast("list[dict[str, Any]]", found.get("sources") or [])
    source: dict[str, Any] = {"name": bus.STREAM}
    for each in sources:
        if each.get("name") == bus.STREAM:
            source |= each
    filters = [*cast("list[dict[str, str]]", source.get("subject_transforms") or [])]
    known = {each.get("src") for each in filters}
    filters += [_filter(kind) for kind in KINDS if _filter(kind)["src"] not in known]
    source["subject_transforms"] = filters
    others = [each for each in sources if each.get("name") != bus.STREAM]
    return {**found, "max_age": age, "sources": [source, *others]}


async def _ensure_bucket(client: bus.Client, retention: float) -> None:
    js = client.jetstream(timeout=_ANSWER)
    info = await ask(client, f"STREAM.INFO.KV_{BUCKET}")
    if "config" not in info:
        await js.create_key_value(api.KeyValueConfig(bucket=BUCKET, history=1, ttl=retention))
    elif info["config"].get("max_age") != int(retention * 1e9):
        await _made(client, f"STREAM.UPDATE.KV_{BUCKET}", {**info["config"], "max_age": int(retention * 1e9)})


async def _made(client: bus.Client, what: str, config: dict[str, Any]) -> None:
    answer = await ask(client, what, config)
    if "error" in answer:
        raise RuntimeError(f"{what}: {answer['error'].get('description')}")


async def ask(client: bus.Client, what: str, body: Any = None) -> dict[str, Any]:
    """The answer of JetStream's API; one that refuses holds "error"."""
    # Not by the client's own types: they leave fields out that a newer server, or an operator, set.
    data = b"" if body is None else json.dumps(body).encode()
    message = await client.request(f"$JS.API.{what}", data, timeout=_ANSWER)
    return json.loads(message.data)
