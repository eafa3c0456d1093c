"""What opens Bedrock's door: the region, and for each call an API key or a signature.

Credentials come from the settings, else from AWS's own chain: profile, web identity, the role of the machine or pod.
aiobotocore, which takes a second to import, is loaded only when the chain is asked.
"""

from __future__ import annotations

import asyncio
import datetime
import importlib
import os
import time
from collections.abc import Mapping
from typing import Any

from maestro_adapter_bedrock.settings import BedrockSettings
from maestro_adapter_bedrock.signature import Keys, sign
from maestro_sdk.errors import MaestroError, ProviderAuth

PATIENCE = 4.0
"""Seconds that AWS's chain gets: the metadata service of a machine that has none never answers."""
AGAIN = 15.0
"""Seconds after which a chain that found nothing is asked again."""

_NO_REGION = "there is no region: set adapters.bedrock.settings.region, or AWS_REGION, to one such as us-east-1"
_NO_KEYS = (
    "there are no credentials: set AWS_BEARER_TOKEN_BEDROCK to an API key of Bedrock, or AWS_ACCESS_KEY_ID and "
    "AWS_SECRET_ACCESS_KEY, or run where AWS's own chain finds some (AWS_PROFILE, a role)"
)


class Access:
    """The way in. Raises `ProviderAuth`, saying what to do, where there is none."""

    def __init__(self, settings: BedrockSettings) -> None:
        self._settings = settings
        self._session: Any = None
        self._chain: Any = None
        self._profile_region = ""
        self._missed_at = float("-inf")
        self._lock = asyncio.Lock()

    async def region(self) -> str:
        """The region: of the settings, the environment, or the profile."""
        found = self._settings.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")
        if found:
            return found
        if not self._profile_region:
            session = await self.session()
            try:
                self._profile_region = str(session.get_config_variable("region") or "")
            except Exception as error:
                # A profile that does not exist, a file that can't be read.
                raise ProviderAuth(f"{_NO_REGION}; AWS's configuration says: {_say(error)}") from error
        if not self._profile_region:
            raise ProviderAuth(_NO_REGION)
        return self._profile_region

    async def headers(self, url: str, body: bytes) -> Mapping[str, str]:
        """The headers that let a POST of `body` to `url` in: the key, or date and signature."""
        token = self._settings.bearer_token.get()
        if token:
            return {"authorization": f"Bearer {token}"}
        return sign(url, body, await self.keys(), await self.region(), datetime.datetime.now(datetime.UTC))

    async def check(self) -> str:
        """Why there is no way in, empty when there is one. Takes seconds at most."""
        try:
            await self.region()
            if not self._settings.bearer_token.get():
                await self.keys()
        except MaestroError as error:
            return error.message
        return ""

    def forget(self) -> None:
        """Lets the chain find credentials anew: those it found were refused."""
        # A session keeps what it found.
        self._chain = self._session = None

    async def renew(self, refused: Mapping[str, str]) -> bool:
        """Whether there are other keys than those of the `refused` headers.

        The chain is asked for some, once for however many calls were refused; keys of the settings are what they are.
        """
        if self._settings.bearer_token.get() or self._own_keys() is not None:
            return False
        chain = self._chain
        if _made_of(await self.keys(), refused) and self._chain is chain:
            self.forget()
        return not _made_of(await self.keys(), refused)

    async def session(self) -> Any:
        """An aiobotocore session, made on first use."""
        if self._session is None:
            # Imported beside the loop: that takes a second.
            module = await asyncio.to_thread(importlib.import_module, "aiobotocore.session")
            self._session = module.get_session()
        return self._session

    async def keys(self) -> Keys:
        """The keys that sign. Raises `ProviderAuth` where there are none."""
        own = self._own_keys()
        if own is not None:
            return own
        frozen = await self._from_chain()
        return Keys(frozen.access_key, frozen.secret_key, frozen.token)

    def _own_keys(self) -> Keys | None:
        settings = self._settings
        key_id, secret = settings.access_key_id.get(), settings.secret_access_key.get()
        return Keys(key_id, secret, settings.session_token.get()) if key_id and secret else None

    async def _from_chain(self) -> Any:
        """The chain's credentials, refreshed when their time is near. Raises `ProviderAuth` when it has none."""
        if self._chain is None:
            async with self._lock:
                if self._chain is None:
                    self._chain = await self._ask_chain()
        try:
            async with asyncio.timeout(PATIENCE):
                return await self._chain.get_frozen_credentials()
        except Exception as error:
            # Providers of the chain raise what they like: files, processes, HTTP.
            self.forget()
            raise ProviderAuth(f"AWS's credentials can't be refreshed: {_say(error)}") from error

    async def _ask_chain(self) -> Any:
        if time.monotonic() - self._missed_at < AGAIN:
            raise ProviderAuth(_NO_KEYS)
        try:
            async with asyncio.timeout(PATIENCE):
                found = await (await self.session()).get_credentials()
        except Exception as error:
            # As above; a profile that does not exist is among it.
            self._missed_at = time.monotonic()
            raise ProviderAuth(f"{_NO_KEYS}; it said: {_say(error)}") from error
        if found is None:
            self._missed_at = time.monotonic()
            raise ProviderAuth(_NO_KEYS)
        return found


def _made_of(keys: Keys, headers: Mapping[str, str]) -> bool:
    token = headers.get("x-amz-security-token")
    return f"Credential={keys.key_id}/" in headers["authorization"] and (keys.token or None) == token


def _say(error: BaseException) -> str:
    return str(error) or type(error).__name__
