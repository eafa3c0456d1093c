"""The bearer token of Google's API: from credentials, renewed in a thread, kept until shortly before it expires."""

from __future__ import annotations

import asyncio
import datetime
import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from maestro_adapter_vertex.models import PROVIDER
from maestro_adapter_vertex.settings import VertexSettings
from maestro_sdk.errors import MaestroError, ProviderAuth, UpstreamError

SCOPES = ("https://www.googleapis.com/auth/cloud-platform",)
EARLY = 240.0
"""Seconds before its end from which on a token is renewed."""
LAST = 60.0
"""Seconds before its end up to which a token is used while another one is fetched."""
PATIENCE = 10
"""Seconds that Google's library gets: by itself it would wait for minutes."""
AGAIN = 30.0
"""Seconds after which credentials that could not be loaded are tried again to tell whether the adapter is ready."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Token:
    """A bearer token; `expires` is Unix time, None where nothing is known. `pays` is the project to bill, if any."""

    text: str
    expires: float | None = None
    pays: str = ""

    def fresh(self, now: float) -> bool:
        """Whether it can be used for a while."""
        return self.expires is None or self.expires - now > EARLY

    def usable(self, now: float) -> bool:
        """Whether it can be used still."""
        return self.expires is None or self.expires - now > LAST

    def headers(self) -> dict[str, str]:
        """What a call with it says."""
        headers = {"authorization": f"Bearer {self.text}"}
        return {**headers, "x-goog-user-project": self.pays} if self.pays else headers


class TokenSource:
    """Gives tokens. However many calls want one at once, it is fetched once; and none of them stops the fetching."""

    def __init__(self, settings: VertexSettings) -> None:
        self._settings = settings
        self._credentials: Any = None
        self._token: Token | None = None
        self._fetching: asyncio.Task[Token] | None = None
        self._refusal = ""
        self._refused_at = 0.0

    @property
    def renewable(self) -> bool:
        """Whether a token that was refused can be replaced by another."""
        return not self._fixed()

    async def get(self) -> Token:
        """A token that is good now. Raises `ProviderAuth`, or `UpstreamError` when Google can't be asked for one."""
        fixed = self._fixed()
        if fixed:
            return Token(fixed)
        token, now = self._token, time.time()
        if token is not None and token.fresh(now):
            return token
        if self._fetching is None:
            self._fetching = asyncio.create_task(self._fetch())
            self._fetching.add_done_callback(self._fetched)
        if token is not None and token.usable(now):
            # Nobody waits for what is not needed yet, or fails with it.
            return token
        return await asyncio.shield(self._fetching)

    def drop(self, token: Token) -> None:
        """Forgets a token that was refused, unless it has been replaced already."""
        if self._token is token:
            self._token = None

    async def check(self) -> str:
        """Why there are no credentials and what to do about it; empty when there are. Nothing is sent for it."""
        if self._fixed() or self._credentials is not None:
            return ""
        if self._refusal and time.monotonic() - self._refused_at < AGAIN:
            return self._refusal
        try:
            return await _in_thread(self._find)
        except MaestroError as error:
            return error.message

    async def close(self) -> None:
        """Gives up a token that is under way: nobody needs it any more."""
        if self._fetching is not None:
            self._fetching.cancel()
            with suppress(MaestroError, asyncio.CancelledError):
                await self._fetching

    def _fixed(self) -> str:
        secret = self._settings.access_token
        return (secret.get() or "") if secret is not None else ""

    def _fetched(self, task: asyncio.Task[Token]) -> None:
        self._fetching = None
        if not task.cancelled():
            task.exception()  # Those who wait have it; maybe nobody does any more.

    async def _fetch(self) -> Token:
        self._token = await _in_thread(self._renew)
        return self._token

    def _renew(self) -> Token:
        """Fetches a token; blocks."""
        kept = self._credentials
        if kept is not None:
            try:
                return _refresh(kept)
            except ProviderAuth:
                # They may have been replaced since they were read.
                self._credentials = None
        found = self._load()
        token = _refresh(found)
        self._credentials = found
        return token

    def _find(self) -> str:
        """Why there are no credentials; blocks. What it finds is kept even when nobody waits any more."""
        try:
            self._credentials = self._load()
        except ProviderAuth as error:
            self._refusal, self._refused_at = error.message, time.monotonic()
            return error.message
        return ""

    def _load(self) -> Any:
        """Reads the credentials; blocks. Raises `ProviderAuth` that says what to do."""
        # Imported on first use: it takes a while, and an access token needs none of it.
        import google.auth
        from google.auth.exceptions import GoogleAuthError

        auth: Any = google.auth
        secret = self._settings.credentials
        value = (secret.get() or "") if secret is not None else ""
        try:
            if not value:
                return auth.default(scopes=SCOPES)[0]
            text = value if value.startswith("{") else Path(value).read_text(encoding="utf-8")
            return _read(json.loads(text))
        except (GoogleAuthError, OSError, ValueError, TypeError, KeyError) as error:
            # A fault of JSON, or of a key in it, would quote the text and with it the secret.
            told = isinstance(error, GoogleAuthError | OSError)
            why = str(error) if told else "they are not a credentials file in JSON"
            message = f"there are no usable Google credentials: {why}; {self._advice()}"
            raise ProviderAuth(message, metadata={"provider": PROVIDER}) from None

    def _advice(self) -> str:
        secret = self._settings.credentials
        if secret is not None and secret.env:
            where = f"set {secret.env} to the path of a credentials file"
        elif secret is not None:
            where = f"put the credentials, or their path, into {secret.file}"
        else:
            where = "set adapters.vertex.settings.credentials"
        return f"{where}, or run `gcloud auth application-default login`"


def _read(info: dict[str, Any]) -> Any:
    """Credentials of the kinds that Google's tools write, each by the reader of its kind."""
    from google.auth import aws, external_account_authorized_user, identity_pool, impersonated_credentials, pluggable
    from google.auth.exceptions import MalformedError
    from google.oauth2 import credentials, service_account

    # The library has no types.
    person: Any = credentials.Credentials
    service: Any = service_account.Credentials
    borrowed: Any = impersonated_credentials.Credentials
    outsider: Any = external_account_authorized_user.Credentials
    match info.get("type"):
        case "authorized_user":
            read = person.from_authorized_user_info
        case "service_account":
            read = service.from_service_account_info
        case "impersonated_service_account":
            read = borrowed.from_impersonated_service_account_info
        case "external_account_authorized_user":
            read = outsider.from_info
        case "external_account":
            source: dict[str, Any] = info.get("credential_source", {})
            kinds: Any = aws if "environment_id" in source else pluggable if "executable" in source else identity_pool
            read = kinds.Credentials.from_info
        case other:
            raise MalformedError(f"their type is {other!r}, which is none of Google's")
    return read(info, scopes=SCOPES)


def _refresh(credentials: Any) -> Token:
    """A token for them; blocks. Raises `ProviderAuth`, or `UpstreamError` when Google can't be asked."""
    from google.auth.exceptions import GoogleAuthError, TransportError
    from google.auth.transport.requests import Request

    metadata = {"provider": PROVIDER}
    try:
        credentials.refresh(partial(Request(), timeout=PATIENCE))
    except TransportError as error:
        raise UpstreamError(f"Google can't be asked for a token: {error}", metadata=metadata) from error
    except GoogleAuthError as error:
        if getattr(error, "retryable", False):
            raise UpstreamError(f"Google gave no token: {error}", metadata=metadata) from error
        message = f"Google gives no token for the adapter's credentials: {error}"
        raise ProviderAuth(message, metadata=metadata) from error
    expiry: datetime.datetime | None = credentials.expiry
    # google-auth tells UTC without a zone.
    expires = None if expiry is None else expiry.replace(tzinfo=datetime.UTC).timestamp()
    return Token(credentials.token, expires, getattr(credentials, "quota_project_id", None) or "")


async def _in_thread(call: Callable[[], Result]) -> Result:
    """What `call` returns, run beside the loop. Raises `UpstreamError` when that takes more than `PATIENCE` seconds.

    The end of the process does not wait for the thread, as it would for one of `asyncio.to_thread`.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Result] = loop.create_future()

    def tell(outcome: Callable[[], None]) -> None:
        # The loop may be closed by now.
        with suppress(RuntimeError):
            loop.call_soon_threadsafe(lambda: None if done.done() else outcome())

    def work() -> None:
        try:
            result = call()
        except Exception as error:  # noqa: BLE001 - it is raised where the result is waited for
            tell(partial(done.set_exception, error))
        else:
            tell(partial(done.set_result, result))

    threading.Thread(target=work, name="google-auth", daemon=True).start()
    try:
        async with asyncio.timeout(PATIENCE):
            return await done
    except TimeoutError as error:
        message = f"Google's library had no answer within {PATIENCE:g} seconds"
        raise UpstreamError(message, metadata={"provider": PROVIDER}) from error
