"""Secrets of keys: how they are made, and how they are known again without being kept.

`mk_live_` + 43 letters and digits, which are 256 random bits, + 6 that are a CRC-32 of all before them. The prefix lets
scanners find keys in code and logs; the checksum lets them tell a key from what only looks like one, and lets us say
that a key was cut or mistyped. With 256 random bits a plain SHA-256 is as good as a slow hash: nothing can be guessed.
"""

from __future__ import annotations

import hashlib
import secrets
import string
import zlib

PREFIX = "mk_live_"
_DIGITS = string.digits + string.ascii_uppercase + string.ascii_lowercase
_BODY, _CHECK = 43, 6
LENGTH = len(PREFIX) + _BODY + _CHECK
HINT = len(PREFIX) + 4
"""Characters of a secret that may be shown: they leave 232 bits to guess."""


def new_secret() -> str:
    """A new secret."""
    body = PREFIX + _base62(secrets.randbits(256), _BODY)
    return body + _base62(zlib.crc32(body.encode()), _CHECK)


def is_whole(secret: str) -> bool:
    """Whether a text with the prefix is a secret in full; anything else with the prefix was cut or mistyped."""
    body, check = secret[:-_CHECK], secret[-_CHECK:]
    return len(secret) == LENGTH and check == _base62(zlib.crc32(body.encode("utf-8", "surrogateescape")), _CHECK)


def digest(secret: str) -> bytes:
    """The SHA-256 by which a secret is known."""
    return hashlib.sha256(secret.encode("utf-8", "surrogateescape")).digest()


def _base62(number: int, length: int) -> str:
    found = ""
    for _ in range(length):
        number, rest = divmod(number, 62)
        found = _DIGITS[rest] + found
    return found
