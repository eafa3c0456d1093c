"""AWS's signature, version 4, of a POST with JSON in it. Pure.

The signature covers the path as it goes over the wire, encoded once more; host, content type, date and session token;
and the body by its hash. The key derives from the secret, the day, the region and the service, so it holds for a day.
botocore, which takes several times as long, judges this in the tests.
"""

from __future__ import annotations

import datetime
import hmac
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from hashlib import sha256
from urllib.parse import quote, urlsplit

SERVICE = "bedrock"
CONTENT_TYPE = "application/json"

_DEFAULT_PORTS = {"http": 80, "https": 443}


@dataclass(frozen=True, slots=True)
class Keys:
    """An access key; `token` is None for keys without a session."""

    key_id: str
    secret: str = field(repr=False)
    token: str | None = field(default=None, repr=False)


def sign(url: str, body: bytes, keys: Keys, region: str, moment: datetime.datetime) -> Mapping[str, str]:
    """The headers that the POST needs beside `host`, names in lower case; `moment` is in UTC."""
    host, path = _place(url)
    stamp = moment.strftime("%Y%m%dT%H%M%SZ")
    scope = f"{stamp[:8]}/{region}/{SERVICE}/aws4_request"
    headers = {"content-type": CONTENT_TYPE, "x-amz-date": stamp}
    signed = "content-type;host;x-amz-date"
    canonical = f"content-type:{CONTENT_TYPE}\nhost:{host}\nx-amz-date:{stamp}\n"
    if keys.token:
        headers["x-amz-security-token"] = keys.token
        signed += ";x-amz-security-token"
        canonical += f"x-amz-security-token:{keys.token}\n"
    request = f"POST\n{path}\n\n{canonical}\n{signed}\n{sha256(body).hexdigest()}"
    text = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{sha256(request.encode()).hexdigest()}"
    signature = hmac.digest(_key(keys.secret, stamp[:8], region), text.encode(), sha256).hex()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={keys.key_id}/{scope}, SignedHeaders={signed}, Signature={signature}"
    )
    return headers


@lru_cache(maxsize=256)
def _place(url: str) -> tuple[str, str]:
    """The host as the client sends it, and the path as it is signed."""
    parts = urlsplit(url)
    host = (parts.hostname or "").lower()
    if ":" in host:
        host = f"[{host}]"
    if parts.port is not None and parts.port != _DEFAULT_PORTS.get(parts.scheme):
        host = f"{host}:{parts.port}"
    return host, quote(parts.path or "/", safe="/~")


@lru_cache(maxsize=16)
def _key(secret: str, day: str, region: str) -> bytes:
    key = f"AWS4{secret}".encode()
    for part in (day, region, SERVICE, "aws4_request"):
        key = hmac.digest(key, part.encode(), sha256)
    return key
