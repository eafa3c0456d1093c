"""The public keys of an identity provider (JWKS): read from its URL or a file, kept for when it is away."""

from __future__ import annotations

import asyncio
import logging
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import aiohttp
import jwt
import orjson

from maestro_sdk.service.gateways import JwtConfig

log = logging.getLogger(__name__)

ALGORITHMS = frozenset({"RS256", "ES256", "EdDSA"})
_BETWEEN = 10.0
"""Seconds between two questions for a key that is not known: tokens with invented names cause no storm."""
_TIMEOUT = 5.0
_LARGEST = 1024 * 1024


class KeySet:
    """The keys as they were read last. Those of a provider that is away stay in force, over a restart too."""

    def __init__(self, config: JwtConfig, snapshot: Path) -> None:
        self._config = config
        self._snapshot = snapshot
        self._keys: dict[str, jwt.PyJWK] = {}
        self._asked = 0.0
        self._turn = asyncio.Lock()
        self.trouble = ""
        """Why the keys could not be read the last time; empty when they were."""

    def find(self, kid: str) -> jwt.PyJWK | None:
        """The key of that name; a token without a name is signed by the only key there is."""
        if kid or len(self._keys) != 1:
            return self._keys.get(kid)
        return next(iter(self._keys.values()))

    async def open(self) -> None:
        """Reads the keys for the first time: of the provider, or what it said last."""
        with suppress(OSError, ValueError):
            self._keys = keys_of(self._snapshot.read_bytes())
        await self._read()

    async def run(self) -> None:
        """Reads the keys anew from time to time, until cancelled."""
        while True:
            await asyncio.sleep(self._config.refresh)
            async with self._turn:
                await self._read()

    async def refresh(self) -> None:
        """Reads the keys again, unless that was just done."""
        async with self._turn:
            if time.monotonic() - self._asked >= _BETWEEN:
                await self._read()

    async def _read(self) -> None:
        self._asked = time.monotonic()
        try:
            data = await self._load()
            keys = keys_of(data)
        except (OSError, TimeoutError, aiohttp.ClientError, ValueError) as error:
            trouble = f"its keys can't be read: {str(error) or type(error).__name__}"
            if trouble != self.trouble:
                log.warning("gateway.jwt: %s", trouble)
            self.trouble = trouble
            return
        if self.trouble:
            log.info("gateway.jwt: the keys can be read again")
        self._keys, self.trouble = keys, ""
        if self._config.jwks_url is not None:
            try:
                await asyncio.to_thread(_keep, self._snapshot, data)
            except OSError as error:
                log.warning("gateway.jwt: the keys can't be kept in %s: %s", self._snapshot, error.strerror)

    async def _load(self) -> bytes:
        if self._config.jwks_file is not None:
            return await asyncio.to_thread(self._config.jwks_file.read_bytes)
        timeout = aiohttp.ClientTimeout(total=_TIMEOUT)
        async with (
            aiohttp.ClientSession(timeout=timeout, trust_env=True) as session,
            session.get(str(self._config.jwks_url), allow_redirects=False) as response,
        ):
            if response.status != 200:
                raise ValueError(f"HTTP status {response.status}")
            data = b""
            # One read gives what has come so far, which need not be all.
            while piece := await response.content.read(_LARGEST):
                data += piece
                if len(data) > _LARGEST:
                    raise ValueError(f"more than {_LARGEST} bytes")
            return data


def keys_of(data: bytes) -> dict[str, jwt.PyJWK]:
    """The keys of a set that can be used here, by name. Raises `ValueError` when there is none."""
    document: Any = orjson.loads(data)
    entries: Any = document.get("keys") if isinstance(document, dict) else None  # pyright: ignore[reportUnknownVariableType, reportUnknownMemberType]
    if not isinstance(entries, list):
        raise ValueError('is no set of keys: {"keys": […]}')
    found: dict[str, jwt.PyJWK] = {}
    for entry in entries:  # pyright: ignore[reportUnknownVariableType]
        try:
            # A key for encryption, a shared secret or one of another algorithm is the provider's own business.
            key = jwt.PyJWK.from_dict(entry)  # pyright: ignore[reportUnknownArgumentType]
        except (jwt.PyJWTError, ValueError, TypeError, AttributeError, KeyError):
            continue
        if key.algorithm_name in ALGORITHMS and key.public_key_use in (None, "sig"):
            found[key.key_id or ""] = key
    if not found:
        raise ValueError(f"holds no key for {', '.join(sorted(ALGORITHMS))}")
    return found


def _keep(path: Path, data: bytes) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.new")
    beside.write_bytes(data)
    beside.replace(path)
