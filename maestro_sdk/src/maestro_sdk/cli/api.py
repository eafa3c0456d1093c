"""The mesh's REST interface as the commands use it: small, synchronous, quick to import."""

from __future__ import annotations

import http.client
import json
from typing import Any, cast
from urllib.parse import urlsplit


class ApiError(Exception):
    """A request that failed: `status` is the HTTP status, 0 when nobody answered; the text is for a person."""

    def __init__(self, message: str, status: int = 0, reason: str = "") -> None:
        super().__init__(message)
        self.status = status
        self.reason = reason


class Api:
    """A mesh at `url`, asked with `key` as bearer. A request may take `timeout` seconds."""

    def __init__(self, url: str, key: str | None, *, timeout: float = 10.0) -> None:
        self.url = url.rstrip("/")
        self._key = key
        self._timeout = timeout

    def get(self, path: str) -> Any:
        """The JSON answer of a GET. Raises `ApiError`."""
        return self._read(self.get_bytes(path))

    def get_bytes(self, path: str) -> bytes:
        """The answer of a GET as it is. Raises `ApiError`."""
        return self._ask("GET", path, None)

    def post(self, path: str, body: Any = None) -> Any:
        """The JSON answer of a POST of JSON. Raises `ApiError`."""
        return self._read(self._ask("POST", path, None if body is None else json.dumps(body).encode()))

    def send(self, path: str, data: bytes, content_type: str) -> Any:
        """The JSON answer of a POST of bytes. Raises `ApiError`."""
        return self._read(self._ask("POST", path, data, content_type))

    def _read(self, data: bytes) -> Any:
        try:
            return json.loads(data)
        except ValueError:
            raise ApiError(f"{self.url} answers with something that is no JSON: is it a mesh?") from None

    def _ask(self, method: str, path: str, body: bytes | None, content_type: str = "application/json") -> bytes:
        try:
            parts = urlsplit(self.url)
            kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
            connection = kind(parts.hostname or "", parts.port, timeout=self._timeout)
        except (ValueError, http.client.InvalidURL) as error:
            raise ApiError(f"{self.url} is no address: {error}") from None
        headers = {"content-type": content_type, "connection": "close"}
        if self._key:
            if not (self._key.isascii() and self._key.isprintable()):
                raise ApiError("the key has characters that no key has")
            headers["authorization"] = f"Bearer {self._key}"
        try:
            connection.request(method, parts.path + path, body, headers)
            response = connection.getresponse()
            status, data = response.status, response.read()
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(f"{self.url} does not answer: {error}") from None
        finally:
            connection.close()
        if status >= 400:
            raise _error(status, _json(data), data)
        return data


def _json(data: bytes) -> Any:
    try:
        return json.loads(data)
    except ValueError:
        return None


def _error(status: int, answer: Any, data: bytes) -> ApiError:
    error = cast("dict[str, Any]", answer).get("error") if isinstance(answer, dict) else None
    if isinstance(error, dict):
        found = cast("dict[str, Any]", error)
        return ApiError(str(found.get("message", "")), status, str(found.get("reason", "")))
    return ApiError(data.decode(errors="replace").strip()[:200] or f"HTTP status {status}", status)
