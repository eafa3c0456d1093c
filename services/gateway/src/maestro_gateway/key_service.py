"""`maestro.gateway.v1.KeyService`: keys are made, listed, rotated and revoked."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from maestro.gateway.v1.key_pb2 import (
    CreateKeyRequest,
    CreateKeyResponse,
    Key,
    ListKeysRequest,
    ListKeysResponse,
    RevokeKeyRequest,
    RotateKeyRequest,
    RotateKeyResponse,
)
from maestro.gateway.v1.key_pb2_grpc import KeyServiceServicer
from maestro_gateway.audit.acts import Acts
from maestro_gateway.identity.principal import OPERATOR, Principal, admitted
from maestro_gateway.identity.record import KeyRecord, key_id_of, request_digest
from maestro_gateway.identity.ring import KeyRing
from maestro_gateway.identity.secret import HINT, digest, new_secret
from maestro_sdk.errors import Conflict, InvalidRequest, NotFound, PermissionDenied, Violation
from maestro_sdk.service.gateways import SCOPES, USUAL_SCOPES, is_tenant

log = logging.getLogger(__name__)

MOST = 1000
"""Keys of a tenant that may be good at the same time."""
_PAGE = 100
_DAY = 86400.0
_LAST = 253402300799.0
"""The last second that a timestamp can tell; one behind it, rounded, would be told to nobody."""
_EVERY = "-"


class KeyService(KeyServiceServicer):
    """Keeps keys in a ring. The interceptor lets nobody in without the scope `admin`."""

    def __init__(self, ring: KeyRing, acts: Acts | None = None) -> None:
        """`acts` is told of every key that is made or changed."""
        self._ring = ring
        self._acts = acts

    async def CreateKey(self, request: CreateKeyRequest, context: Any) -> CreateKeyResponse:
        caller, now = admitted(), time.time()
        tenant = _tenant(request.tenant, caller)
        record, secret = _made(request, tenant, caller, now)
        if sum(not known.is_over(now) for known in self._ring.of_tenant(tenant)) >= MOST:
            raise Conflict(f"the tenant has {MOST} keys that are good; revoke some first")
        await self._ring.create(record)
        log.info("key %s of tenant %s was made by %s", record.key_id, tenant, caller.key_id)
        self._note("create", record)
        return CreateKeyResponse(key=self._told(record, caller), secret=secret)

    async def ListKeys(self, request: ListKeysRequest, context: Any) -> ListKeysResponse:
        caller = admitted()
        every = request.tenant == _EVERY and OPERATOR in caller.scopes
        tenant = None if every else _tenant(request.tenant, caller)
        size = request.page_size or _PAGE
        found = [record for record in self._ring.of_tenant(tenant) if record.key_id > request.page_token]
        page = found[:size]
        return ListKeysResponse(
            keys=[self._told(record, caller) for record in page],
            next_page_token=page[-1].key_id if len(found) > size else "",
        )

    async def RotateKey(self, request: RotateKeyRequest, context: Any) -> RotateKeyResponse:
        caller, now = admitted(), time.time()
        grace = request.grace.ToNanoseconds() / 1e9 if request.HasField("grace") else _DAY
        asked = request_digest(request.key_id, request.request_id) if request.request_id else ""
        secret = ""

        def rotate(record: KeyRecord) -> KeyRecord:
            nonlocal secret
            _own(record, caller)
            # Whoever gets its secret may ask for all that it may ask for.
            for _ in _beyond(record.personas, record.skills, caller):
                raise _denied("key_id", "this key may not ask for all that that one may, so it can't get its secret")
            if record.is_over(now):
                raise InvalidRequest.at("key_id", f"the key {record.key_id} has ended; make a new one")
            if asked and record.request == asked:
                raise Conflict(
                    f"this request rotated the key {record.key_id} already; its secret was shown then and can't be "
                    "shown again: rotate with another request_id to get a new one"
                )
            changed, secret = record.rotate(now, grace, asked)
            return changed

        record = await self._ring.change(request.key_id, rotate)
        log.info("key %s of tenant %s was rotated by %s", record.key_id, record.tenant, caller.key_id)
        self._note("rotate", record)
        return RotateKeyResponse(key=self._told(record, caller), secret=secret)

    async def RevokeKey(self, request: RevokeKeyRequest, context: Any) -> Key:
        caller, now = admitted(), time.time()

        def revoke(record: KeyRecord) -> KeyRecord:
            _own(record, caller)
            return record if record.revoked else replace(record, revoked=now)

        record = await self._ring.change(request.key_id, revoke)
        log.info("key %s of tenant %s was revoked by %s", record.key_id, record.tenant, caller.key_id)
        self._note("revoke", record)
        return self._told(record, caller)

    def _note(self, action: str, record: KeyRecord) -> None:
        if self._acts is not None:
            self._acts.note(action, f"key/{record.key_id}", record.tenant)

    def _told(self, record: KeyRecord, caller: Principal) -> Key:
        used = self._ring.used.get(record.key_id, 0.0)
        return record.message(time.time(), used, with_tenant=OPERATOR in caller.scopes)


def _made(request: CreateKeyRequest, tenant: str, caller: Principal, now: float) -> tuple[KeyRecord, str]:
    """The new key and its secret."""
    for index, scope in enumerate(request.scopes):
        if scope not in SCOPES:
            raise InvalidRequest.at(f"scopes[{index}]", f"{scope!r} is not a scope; there are {', '.join(SCOPES)}")
        if scope == OPERATOR and OPERATOR not in caller.scopes:
            raise _denied(f"scopes[{index}]", "only a key with the scope 'operator' can give it")
    for field, allowed in _beyond(request.personas, request.skills, caller):
        raise _denied(
            field, f"the key that makes it may only ask for {', '.join(sorted(allowed))}, and can't give more"
        )
    expires = 0.0
    if request.HasField("expire_time"):
        expires = min(request.expire_time.ToNanoseconds() / 1e9, _LAST)
        if expires <= now:
            raise InvalidRequest.at("expire_time", "lies in the past: the key would never be good")
    secret = new_secret()
    record = KeyRecord(
        key_id=key_id_of(tenant, request.request_id),
        tenant=tenant,
        digest=digest(secret).hex(),
        hint=secret[:HINT],
        # Each once, in the order in which they are always told.
        scopes=tuple(scope for scope in SCOPES if scope in (request.scopes or USUAL_SCOPES)),
        created=now,
        creator=caller.key_id,
        display_name=request.display_name,
        description=request.description,
        personas=tuple(dict.fromkeys(request.personas)),
        skills=tuple(dict.fromkeys(request.skills)),
        expires=expires,
    )
    return record, secret


def _beyond(personas: Sequence[str], skills: Sequence[str], caller: Principal) -> Iterator[tuple[str, frozenset[str]]]:
    """The fields with which a key could ask for more than the caller, and what the caller may ask for."""
    for field, asked, allowed in (("personas", personas, caller.personas), ("skills", skills, caller.skills)):
        if allowed and not asked:
            yield field, allowed  # none named: all could be asked for
        for index, name in enumerate(asked):
            if allowed and name not in allowed:
                yield f"{field}[{index}]", allowed


def _tenant(asked: str, caller: Principal) -> str:
    """The tenant that is meant. Raises `InvalidRequest` and `PermissionDenied`."""
    if not asked or asked == caller.tenant:
        return caller.tenant
    if OPERATOR not in caller.scopes:
        raise _denied("tenant", "another tenant than the key's own needs the scope 'operator'")
    if not is_tenant(asked):
        raise InvalidRequest.at("tenant", f"{asked!r} is not a tenant: letters, digits, - and _, 64 at most")
    return asked


def _own(record: KeyRecord, caller: Principal) -> None:
    """Raises unless the caller may change this key."""
    if OPERATOR in caller.scopes:
        return
    if record.tenant != caller.tenant:
        # As if there were none: who is a customer of this mesh is nobody's business.
        raise NotFound(f"there is no key {record.key_id!r}")
    if OPERATOR in record.scopes:
        # Whoever gets its secret has its scope.
        raise _denied("key_id", "only a key with the scope 'operator' can change one that has it")


def _denied(field: str, message: str) -> PermissionDenied:
    return PermissionDenied(f"{field}: {message}", violations=[Violation(field, message)])
