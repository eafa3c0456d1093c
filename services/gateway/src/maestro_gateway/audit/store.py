"""Where recorded content lies: a stream of NATS in which each tenant's is gone after a time of its own."""

from __future__ import annotations

import hashlib
import time
import zlib
from dataclasses import dataclass
from typing import Any

import nats.errors
import nats.js.errors
from nats.js import api

from maestro_sdk.errors import NoBackend, NotFound
from maestro_sdk.service.bus import Client

STREAM = "MAESTRO_CONTENT"
_SUBJECTS = "maestro.content.>"
_ANSWER = 5.0
_PIECE = 512 * 1024
"""Bytes of one message: NATS takes a mebibyte unless it is told otherwise."""
_PIECES, _DIGEST, _TIME, _EXPIRES = "Maestro-Pieces", "Maestro-Digest", "Maestro-Time", "Maestro-Expires"


@dataclass(frozen=True, slots=True)
class Kept:
    """Recorded content; times are nanoseconds of Unix time."""

    content: bytes
    digest: str
    time: int
    expires: int


async def ensure_store(client: Client) -> None:
    """Makes the stream; whoever comes first does it."""
    js = client.jetstream(timeout=_ANSWER)
    try:
        await js.stream_info(STREAM)
    except nats.js.errors.NotFoundError:
        await js.add_stream(
            api.StreamConfig(
                name=STREAM,
                subjects=[_SUBJECTS],
                storage=api.StorageType.FILE,
                discard=api.DiscardPolicy.OLD,
                allow_direct=True,
                allow_msg_ttl=True,
            )
        )


async def put(client: Client, tenant: str, request_id: str, kept: Kept) -> None:
    """Stores content until it expires. Raises errors of NATS."""
    js = client.jetstream(timeout=_ANSWER)
    left = max(1.0, (kept.expires - time.time_ns()) / 1e9)
    packed = zlib.compress(kept.content, 1)
    pieces = [packed[at : at + _PIECE] for at in range(0, len(packed), _PIECE)]
    subject = _subject(tenant, request_id)
    # The first piece comes last: whoever finds it finds all of them.
    for number in range(len(pieces) - 1, 0, -1):
        await js.publish(_subject_of_piece(subject, kept.digest, number), pieces[number], msg_ttl=left)
    headers = {
        _PIECES: str(len(pieces)),
        _DIGEST: kept.digest,
        _TIME: str(kept.time),
        _EXPIRES: str(kept.expires),
    }
    await js.publish(subject, pieces[0], headers=headers, msg_ttl=left)


async def take(client: Client, tenant: str, request_id: str) -> Kept:
    """What was recorded last of a tenant's request. Raises `NotFound`, `NoBackend` and errors of NATS."""
    subject = _subject(tenant, request_id)
    first = await _last(client, subject)
    if first is None:
        raise NotFound(
            f"no content of request {request_id} is kept; it is recorded only for tenants that chose so "
            "(tenants.NAME.audit.content), and kept for a time"
        )
    headers: dict[str, str] = first.headers or {}
    digest = headers.get(_DIGEST, "")
    packed = [first.data or b""]
    for number in range(1, int(headers.get(_PIECES, "1"))):
        message = await _last(client, _subject_of_piece(subject, digest, number))
        if message is None:
            raise NotFound(f"the content of request {request_id} is being removed")
        packed.append(message.data or b"")
    try:
        content = zlib.decompress(b"".join(packed))
    except zlib.error:
        raise NoBackend(f"the content of request {request_id} is damaged") from None
    return Kept(content, digest, int(headers.get(_TIME, "0")), int(headers.get(_EXPIRES, "0")))


async def _last(client: Client, subject: str) -> Any:
    try:
        return await client.jetstream(timeout=_ANSWER).get_last_msg(STREAM, subject, direct=True)
    except (nats.js.errors.NotFoundError, nats.js.errors.NoStreamResponseError, nats.errors.NoRespondersError):
        # Without a stream nothing was ever recorded.
        return None


def _subject(tenant: str, request_id: str) -> str:
    # Identifiers of callers may hold dots.
    return f"maestro.content.{tenant}.{hashlib.sha256(request_id.encode()).hexdigest()[:32]}"


def _subject_of_piece(subject: str, digest: str, number: int) -> str:
    return f"{subject}.{digest[:32]}.{number}"
