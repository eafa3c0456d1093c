"""The key of an answer: whose it is, which route gave it, and everything that shapes it. Pure."""

from __future__ import annotations

import hashlib

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.embedding_pb2 import EmbedRequest

IRRELEVANT = ("metadata", "routing.session_key")
"""Fields of a request that shape no answer: labels, and where a session should go. All others are part of the key."""


def key_of(tenant: str, request: ChatRequest | EmbedRequest, seal: bytes, variant: str) -> str:
    """The key of the answer to a request; `seal` is that of its route, `variant` the side of the route's experiment.

    A request with fields that this version does not know has a key of its own, too: they are part of its bytes.
    """
    plain = type(request).FromString(request.SerializeToString())
    plain.ClearField("metadata")
    plain.routing.ClearField("session_key")
    digest = hashlib.blake2b(digest_size=32, person=b"maestro answer")
    name = type(request).DESCRIPTOR.name
    for data in (tenant.encode(), name.encode(), seal, variant.encode(), plain.SerializeToString(deterministic=True)):
        # Each with its length: no two lists of parts run together into the same bytes.
        digest.update(b"%d:" % len(data))
        digest.update(data)
    return digest.hexdigest()
