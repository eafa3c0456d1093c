"""Signatures by the specification of Standard Webhooks: HMAC-SHA256 over identifier, time and body."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
from collections.abc import Iterable

_PREFIX = "whsec_"
_SHORTEST, _LONGEST = 24, 64


def decode_secret(text: str) -> bytes:
    """The bytes of a secret, written as `whsec_` and base64. Raises `ValueError`, without the secret."""
    if not text.startswith(_PREFIX):
        raise ValueError("its secret does not begin with whsec_")
    try:
        found = base64.b64decode(text.removeprefix(_PREFIX), validate=True)
    except binascii.Error:
        raise ValueError("its secret is no base64 behind whsec_") from None
    if not _SHORTEST <= len(found) <= _LONGEST:
        raise ValueError(f"its secret has {len(found)} bytes, not {_SHORTEST} to {_LONGEST}")
    return found


def signed(secrets: Iterable[bytes], message_id: str, timestamp: int, body: bytes) -> dict[str, str]:
    """The headers that prove a message: one signature by each secret. `timestamp` is Unix time in seconds."""
    content = f"{message_id}.{timestamp}.".encode() + body
    signatures = [base64.b64encode(hmac.new(secret, content, hashlib.sha256).digest()).decode() for secret in secrets]
    return {
        "webhook-id": message_id,
        "webhook-timestamp": str(timestamp),
        "webhook-signature": " ".join(f"v1,{signature}" for signature in signatures),
    }
