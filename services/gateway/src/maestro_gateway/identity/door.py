"""The door of the gateway: who comes in by gRPC and REST, and the keys that it knows while the gateway runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, TypeAlias

from maestro_gateway.identity.caller import Caller, enter_caller
from maestro_gateway.identity.keys import Expired, Keys, Unfamiliar, configured, key_in
from maestro_gateway.identity.principal import Principal, enter
from maestro_gateway.identity.ring import KeyRing
from maestro_gateway.identity.scopes import scope_of_method
from maestro_sdk.errors import MaestroError
from maestro_sdk.service.interceptors import Authenticate, Metadata
from maestro_sdk.service.settings import Config
from maestro_sdk.tracing import call_from_metadata

if TYPE_CHECKING:
    from maestro_gateway.identity.key_set import KeySet
    from maestro_gateway.identity.tokens import TokenVerifier

log = logging.getLogger(__name__)

_FACADES = tuple(f"/maestro.gateway.v1.{name}/" for name in ("HttpService", "OpenAIService", "AnthropicService"))
"""Services that answer in HTTP bodies: they refuse by themselves, in the shape of their API."""
_PATIENCE = 2.0
"""Seconds that a starting gateway waits for the keys that NATS holds."""


Refused: TypeAlias = Callable[[MaestroError, Principal | None, str], None]
"""(why, whose key it was if that is known, request id) is told of each call that is not let in."""


def tell_nobody(error: MaestroError, principal: Principal | None, request_id: str) -> None:
    """Tells nobody of a refusal."""


def authenticator(keys: Keys, refused: Refused = tell_nobody) -> Authenticate:
    """What finds the tenant of a gRPC call whose key has the scope of the method, and sets its principal.

    Calls of REST come through without a tenant; why stands in `admitted`. `refused` is told of those not let in.
    """

    def admit(principal: Principal, method: str, metadata: Metadata) -> str:
        try:
            principal.require(scope_of_method(method))
        except MaestroError as error:
            return refuse(error, method, metadata, principal)
        enter(principal)
        return principal.tenant

    def refuse(error: MaestroError, method: str, metadata: Metadata, principal: Principal | None = None) -> str:
        enter(error)
        refused(error, owner_of(error, principal), call_from_metadata(metadata).request_id)
        if method.startswith(_FACADES):
            return ""
        raise error

    async def learn(key: str, method: str, metadata: Metadata) -> str:
        try:
            principal = await keys.learn(key)
        except MaestroError as error:
            return refuse(error, method, metadata)
        return admit(principal, method, metadata)

    def authenticate(metadata: Metadata, method: str) -> str | Awaitable[str]:
        headers = {name: value for name, value in metadata if isinstance(value, str)}
        enter_caller(Caller(headers, method))
        try:
            principal = keys.authenticate(headers)
        except Unfamiliar:
            return learn(key_in(headers), method, metadata)
        except MaestroError as error:
            return refuse(error, method, metadata)
        return admit(principal, method, metadata)

    return authenticate


def owner_of(error: MaestroError, principal: Principal | None) -> Principal | None:
    """Whose key was refused, as far as that is known."""
    return error.principal if isinstance(error, Expired) else principal


@asynccontextmanager
async def identities(config: Config) -> AsyncGenerator[tuple[Keys, KeyRing]]:
    """The keys in force, and the ring that those stand in which were made; both kept up to date meanwhile."""
    folder = config.data / "gateway"
    key_set, tokens = _of_tokens(config)
    keys = Keys(_configured(config), tokens)
    ring = KeyRing(config.nats.url, folder / "keys.json", keys)
    ring.load()
    running = [asyncio.create_task(ring.run(), name="follow the keys")]
    try:
        if key_set is not None:
            await key_set.open()
            running.append(asyncio.create_task(key_set.run(), name="follow the keys of tokens"))
        for task in running:
            task.add_done_callback(_tell_end)
        await ring.settle(_PATIENCE)
        yield keys, ring
    finally:
        for task in running:
            task.cancel()
        # Not a task group: it would wrap what the gateway itself raises.
        await asyncio.gather(*running, return_exceptions=True)


def _of_tokens(config: Config) -> tuple[KeySet | None, TokenVerifier | None]:
    """What verifies the tokens of an identity provider, where one is configured."""
    jwt = config.gateway.jwt
    if jwt is None:
        return None, None
    # Imported here: 9 MB of cryptography that only they need.
    from maestro_gateway.identity.key_set import KeySet
    from maestro_gateway.identity.tokens import TokenVerifier

    key_set = KeySet(jwt, config.data / "gateway" / "jwks.json")
    return key_set, TokenVerifier(jwt, key_set)


def _tell_end(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        log.critical("the task to %s ended; restart this gateway", task.get_name(), exc_info=error)


def _configured(config: Config) -> Iterator[Principal]:
    for index, entry in enumerate(config.gateway.keys):
        key = entry.key.get()
        if key is None:
            source = entry.key.env or entry.key.file
            log.warning("gateway.keys[%d]: %s is not set, so tenant %s has no key", index, source, entry.tenant)
        else:
            yield configured(
                entry.tenant, key, entry.scopes, name=entry.name, personas=entry.personas, skills=entry.skills
            )
