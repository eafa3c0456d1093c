"""Bearer tokens for Azure from a callable that the operator names, as `azure-identity` makes them.

A module of the operator's own on the Python path, and `token_provider: "acme_identity:token"` in the settings:

    from azure.identity import DefaultAzureCredential, get_bearer_token_provider
    token = get_bearer_token_provider(DefaultAzureCredential(), "https://cognitiveservices.azure.com/.default")

The callable takes nothing, returns the token, and is asked before every call; so it has to keep a token until shortly
before that expires, as those of `azure-identity` do. It may be async; one that is not runs in a thread, once for calls
that come meanwhile.
"""

from __future__ import annotations

import asyncio
import importlib
import inspect
import re
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import cast

from maestro_sdk.errors import ProviderAuth

Source = Callable[[], "str | Awaitable[str]"]


PATIENCE = 30.0
"""Seconds that a callable has for a token."""
_TOKEN = re.compile(r"[!-~]+")
"""What a header can carry."""


class TokenProvider:
    """Asks a callable for tokens. Its failures are `ProviderAuth`, and never show what it said: that may hold keys."""

    def __init__(self, source: Source, patience: float = PATIENCE) -> None:
        self._source = source
        self._patience = patience
        call = getattr(source, "__call__", None)  # noqa: B004 - an object may have an async __call__
        self._is_async = inspect.iscoroutinefunction(source) or inspect.iscoroutinefunction(call)
        self._asked: asyncio.Future[tuple[object, BaseException | None]] | None = None

    async def token(self) -> str:
        """A token that is valid now."""
        found: object
        limit = asyncio.timeout(self._patience)
        try:
            async with limit:
                found = self._source() if self._is_async else await self._ask()
                if inspect.isawaitable(found):
                    found = cast("object", await found)
        except (Exception, SystemExit) as error:
            why = f"failed with {type(error).__name__}"
            if limit.expired():
                # Its thread can't be ended; the next call begins another one.
                self._asked, why = None, f"gave no token within {self._patience:g} s"
            raise ProviderAuth(f"the token provider {why}", metadata={"provider": "azure"}) from error
        token = found.strip() if isinstance(found, str) else ""
        if not _TOKEN.fullmatch(token):
            what = "what no header can carry" if token else f"{type(found).__name__}, not a token"
            raise ProviderAuth(f"the token provider gave {what}", metadata={"provider": "azure"})
        return token

    async def _ask(self) -> object:
        """What the callable returns in a thread of its own.

        Not in the pool's: one that hangs would take threads from everything else, and hold up the process's end.
        """
        if self._asked is None or self._asked.done():
            self._asked = asyncio.get_running_loop().create_future()
            threading.Thread(target=self._work, args=(self._asked,), name="token provider", daemon=True).start()
        asked = self._asked
        # Whoever leaves while it waits must not take the token from the others.
        await asyncio.wait([asked])
        found, error = asked.result()
        if error is not None:
            raise error
        return found

    def _work(self, asked: asyncio.Future[tuple[object, BaseException | None]]) -> None:
        try:
            outcome: tuple[object, BaseException | None] = (self._source(), None)
        except BaseException as error:  # noqa: BLE001 - it is raised where the token is waited for
            outcome = (None, error)
        # The loop may have ended meanwhile.
        with suppress(RuntimeError):
            asked.get_loop().call_soon_threadsafe(asked.set_result, outcome)

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
    except (Exception, SystemExit) as error:
        # What a module says while it fails may hold keys.
        raise ValueError(f"{reference} can't be loaded: its module failed with {type(error).__name__}") from error
    if not callable(found):
        raise ValueError(f"{reference} is a {type(found).__name__}, not a callable")
    return cast("Source", found)
