"""The provider's own SDK, for what is not on the hot path: files and batches. It is imported on first use."""

from __future__ import annotations

import asyncio
import importlib
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from maestro_sdk.adapter.chat_completions import to_error
from maestro_sdk.errors import MaestroError, NotFound, StreamBroken, Timeout, UpstreamError

if TYPE_CHECKING:
    from openai import AsyncOpenAI

Make = Callable[[Any], "AsyncOpenAI"]
"""Makes the client from the module `openai`."""


class Sdk:
    """One client of the SDK, made on first use; its errors as those of the contract."""

    def __init__(self, provider: str, make: Make) -> None:
        self.provider = provider
        self._make = make
        self._client: AsyncOpenAI | None = None
        self._lock = asyncio.Lock()

    async def client(self) -> AsyncOpenAI:
        """The client, without retries: those belong to the mesh."""
        async with self._lock:
            if self._client is None:
                # The import takes a second or more: in a thread, so that streams under way go on.
                self._client = self._make(await asyncio.to_thread(importlib.import_module, "openai"))
            return self._client

    async def close(self) -> None:
        """Closes the client, if there is one."""
        if self._client is not None:
            await self._client.close()

    @contextmanager
    def errors(self, what: str = "") -> Generator[None]:
        """Raises what the SDK's errors mean; `what` names the thing that a 404 says is not there."""
        import httpx2  # here, as both are not loaded before their first use
        import openai

        try:
            yield
        except openai.APIStatusError as error:
            headers = {name.lower(): value for name, value in error.response.headers.items()}
            meaning = to_error(error.status_code, _content(error), headers, self.provider)
            if isinstance(meaning, NotFound) and what:
                meaning = NotFound(f"{self.provider} has no {what}", metadata=meaning.metadata)
            raise meaning from error
        except (openai.APITimeoutError, httpx2.TimeoutException) as error:
            raise Timeout(f"{self.provider} did not answer in time", metadata=self._where) from error
        except openai.APIConnectionError as error:
            why = str(error.__cause__ or error)
            raise UpstreamError(f"{self.provider} can't be reached: {why}", metadata=self._where) from error
        except openai.APIError as error:
            raise UpstreamError(f"{self.provider}: {error.message}", metadata=self._where) from error
        except httpx2.HTTPError as error:
            raise StreamBroken(f"{self.provider}'s answer was cut: {error}", metadata=self._where) from error
        except MaestroError:
            raise
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            # The SDK checks nothing: what is not what it should be shows when it is read.
            raise StreamBroken(f"{self.provider} sent what can't be read: {error}", metadata=self._where) from error

    @property
    def _where(self) -> dict[str, str]:
        return {"provider": self.provider}


def _content(error: Any) -> bytes:
    content: bytes = error.response.content
    return content
