"""The section of a tenant that says where its events are delivered to."""

from __future__ import annotations

import ipaddress
import re
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import Field, field_validator

from maestro_sdk.service.event_kinds import unknown_kinds
from maestro_sdk.service.values import Duration, Secret, Settings

_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,62}")
_UNPRINTABLE = re.compile(r"[^!-~]")


class WebhookConfig(Settings):
    """One webhook. Its secrets are `whsec_` and 24 to 64 bytes in base64.

    While receivers change over to a new secret, `old_secret` signs too. An event that is not taken is tried again after
    `back_off`, then after four times as long, up to `longest_back_off`; after `attempts` it is a dead letter.
    `ordered`: one event after the other, each waits until the one before is taken or given up; else up to `at_once` of
    each gateway at the same time.
    """

    url: str
    secret: Secret
    old_secret: Secret | None = None
    kinds: tuple[str, ...] = ()
    timeout: Annotated[Duration, Field(ge=0.1, le=60)] = 10.0
    attempts: Annotated[int, Field(ge=1, le=50)] = 10
    back_off: Annotated[Duration, Field(ge=0.01, le=3600)] = 1.0
    longest_back_off: Annotated[Duration, Field(ge=0.01, le=86400)] = 6 * 3600.0
    ordered: bool = False
    at_once: Annotated[int, Field(ge=1, le=64)] = 8

    @field_validator("url")
    @classmethod
    def _check_url(cls, value: str) -> str:
        # Without the value in any message: the query may hold a secret of the receiver.
        try:
            url = urlsplit(value)
            plain = url.scheme in {"http", "https"} and bool(url.hostname) and url.port != 0
        except ValueError:
            url, plain = urlsplit(""), False
        if not plain or url.fragment or _UNPRINTABLE.search(value):
            raise ValueError("is not an address such as https://host/path")
        if url.username is not None or url.password is not None:
            raise ValueError("holds a user or a password, which never stand in the file")
        if url.scheme != "https" and not _is_loopback(url.hostname or ""):
            raise ValueError("has to be https: events tell who asks for what, and what it costs")
        return value

    @field_validator("kinds")
    @classmethod
    def _check_kinds(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for index, wrong in unknown_kinds(value):
            raise ValueError(f"{value[index]!r} {wrong}")
        return value


def check_names(value: dict[str, WebhookConfig]) -> dict[str, WebhookConfig]:
    """The webhooks of a tenant, when all their names are good. Raises `ValueError`."""
    for name in value:
        if not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is not a name: lower-case letters, digits, - and _, 63 at most")
    return value


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
