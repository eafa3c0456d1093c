"""Bearer tokens for Azure from a callable that the operator names, as `azure-identity` makes them.

A module of the operator's own on the Python path, and `token_provider: "acme_identity:token"` in the settings:

    from azure.identity import DefaultAzureCredential, get_bearer_token_provider
    token = get_bearer_token_provider(DefaultAzureCredential(), "https://cognitiveservices.azure.com/.default")

The callable takes nothing, returns the token, and is asked before every call; so it has to keep a token until shortly
before that expires, as those of `azure-identity` do. It may be async; one that is not runs in a thread.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
from collections.abc import Awaitable, Callable, Mapping
from typing import cast

from maestro_sdk.errors import ProviderAuth

Source = Callable[[], "str | Awaitable[str]"]


class TokenProvider:
    """Asks a callable for tokens. Its failures are `ProviderAuth`, and never show what it said: that may hold keys."""

    def __init__(self, source: Source) -> None:
        self._source = source
        call = getattr(source, "__call__", None)  # noqa: B004 - an object may have an async __call__
        self._is_async = inspect.iscoroutinefunction(source) or inspect.iscoroutinefunction(call)

    async def token(self) -> str:
        """A token that is valid now."""
        found: object
        try:
            found = self._source() if self._is_async else await asyncio.to_thread(self._source)
            if inspect.isawaitable(found):
                found = cast("object", await found)
        except Exception as error:
            said = f"the token provider failed with {type(error).__name__}"
            raise ProviderAuth(said, metadata={"provider": "azure"}) from error
        if not isinstance(found, str) or not found:
            said = f"the token provider gave {type(found).__name__}, not a token"
            raise ProviderAuth(said, metadata={"provider": "azure"})
        return found

    async def headers(self) -> Mapping[str, str]:
        """The headers that carry the token."""
        return {"authorization": f"Bearer {await self.token()}"}


def load_source(reference: str) -> Source:
    """The callable that `module:function` names. Raises `ValueError` saying what is wrong."""
    module_name, _, name = reference.partition(":")
    try:
        found: object = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"{reference} can't be loaded: {error}") from error
    if not callable(found):
        raise ValueError(f"{reference} is a {type(found).__name__}, not a callable")
    return cast("Source", found)
