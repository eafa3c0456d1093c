"""The provider's own SDK, for what is no chat: batches and files. Imported on first use; chat never needs it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from maestro_adapter_claude.failure import to_error
from maestro_adapter_claude.models import PROVIDER
from maestro_adapter_claude.settings import ClaudeSettings
from maestro_sdk.errors import MaestroError, ProviderAuth, StreamBroken, Timeout, UpstreamError

if TYPE_CHECKING:
    from anthropic import AsyncAnthropic


class Sdk:
    """One client of the SDK, without its retries and its tracing: both are the mesh's."""

    def __init__(self, settings: ClaudeSettings) -> None:
        self._settings = settings
        self._client: AsyncAnthropic | None = None
        self._key = ""
        self._opening = asyncio.Lock()

    @asynccontextmanager
    async def open(self) -> AsyncGenerator[AsyncAnthropic]:
        """The client. What it raises within the context becomes an error of the contract."""
        client = await self._open()
        # Loaded by now, since there is a client.
        anthropic: Any = import_module("anthropic")
        transport: Any = import_module("httpx2")
        try:
            yield client
        except anthropic.APIStatusError as error:
            headers = {name.lower(): value for name, value in error.response.headers.items()}
            raise to_error(error.status_code, error.response.content, headers) from error
        except (anthropic.APITimeoutError, transport.TimeoutException) as error:
            raise _about(Timeout("the provider did not answer in time")) from error
        except anthropic.APIConnectionError as error:
            cause = error.__cause__ or error
            raise _about(UpstreamError(f"the call to the provider failed: {cause}")) from error
        except transport.HTTPError as error:
            raise _about(StreamBroken(f"the provider's answer was cut: {error}")) from error
        except anthropic.AnthropicError as error:
            raise _about(UpstreamError(f"the provider's answer can't be read: {error}")) from error

    async def close(self) -> None:
        """Closes its connections."""
        if self._client is not None:
            await self._client.close()

    async def _open(self) -> AsyncAnthropic:
        """The client, made anew when the key changed: connections stay."""
        settings = self._settings
        key = settings.api_key.get()
        if not key:
            raise ProviderAuth(settings.missing_key(), metadata={"provider": PROVIDER})
        async with self._opening:
            client = self._client
            if client is None:
                # It takes seconds; answers under way go on meanwhile.
                anthropic: Any = await asyncio.to_thread(import_module, "anthropic")
                timeout = anthropic.Timeout(settings.read_timeout, connect=settings.connect_timeout)
                headers = {"anthropic-version": settings.api_version, "user-agent": "maestro-adapter-claude"}
                if settings.betas:
                    headers["anthropic-beta"] = ",".join(settings.betas)
                client = anthropic.AsyncAnthropic(
                    api_key=key,
                    base_url=settings.base_url,
                    timeout=timeout,
                    max_retries=0,
                    open_telemetry=False,
                    default_headers=headers,
                )
            elif key != self._key:
                client = client.with_options(api_key=key)
            self._client, self._key = client, key
            return client


def _about(error: MaestroError) -> MaestroError:
    error.metadata["provider"] = PROVIDER
    return error
