"""What was used and what it cost, as callers may ask for it."""

from __future__ import annotations

import time
from collections.abc import Iterator

from maestro.usage.v1.usage_pb2 import QueryUsageRequest, QueryUsageResponse
from maestro_gateway.identity.principal import OPERATOR, Principal, admitted
from maestro_gateway.ledger.book import Ledger
from maestro_gateway.ledger.query import EVERY, TENANT, Answer, Query
from maestro_gateway.ledger.table import csv_pieces
from maestro_sdk.errors import InvalidRequest, NoBackend, PermissionDenied, Violation
from maestro_sdk.service.gateways import is_tenant

_LIMIT = 45.0
"""Seconds for one answer, over however many tenants."""


class Usage:
    """Answers those who were admitted: for their own tenant, or, with the scope `operator`, for any."""

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    async def query(self, request: QueryUsageRequest) -> QueryUsageResponse:
        """The page that was asked for. Raises what refuses the question, and `NoBackend` without NATS."""
        _, answer = await self._answer(request)
        return answer.message()

    async def export(self, request: QueryUsageRequest) -> Iterator[bytes]:
        """All rows as comma-separated values, in pieces. Raises what refuses the question."""
        for field in ("page_size", "page_token"):
            if getattr(request, field):
                raise InvalidRequest.at(field, "a table of comma-separated values has no pages")
        query, answer = await self._answer(request)
        return csv_pieces(query.words, answer.rows)

    async def _answer(self, request: QueryUsageRequest) -> tuple[Query, Answer]:
        caller, begun = admitted(), time.monotonic()
        tenant = _tenant(request, caller)
        query = Query.of(request, time.time_ns())
        answer = Answer(query)
        tenants = await self._ledger.tenants() if tenant == EVERY else [tenant]
        for name in tenants:
            left = _LIMIT - (time.monotonic() - begun)
            if left <= 0:
                raise NoBackend("usage of so many tenants takes longer; ask again, it goes on", retry_after=1.0)
            tally = await self._ledger.tally(name, query.start, query.end, view=query.view, timeout=left)
            answer.add(name, tally)
        return query, answer


def _tenant(request: QueryUsageRequest, caller: Principal) -> str:
    """The tenant that is meant, or `EVERY`. Raises `InvalidRequest` and `PermissionDenied`."""
    asked, operator = request.tenant, OPERATOR in caller.scopes
    if TENANT in request.group_by and not operator:
        raise _denied(f"group_by[{list(request.group_by).index(TENANT)}]", "needs the scope 'operator'")
    if not asked:
        return EVERY if TENANT in request.group_by else caller.tenant
    if asked != caller.tenant and not operator:
        raise _denied("tenant", "another tenant than the key's own needs the scope 'operator'")
    if asked != EVERY and not is_tenant(asked):
        raise InvalidRequest.at("tenant", f"{asked!r} is not a tenant: letters, digits, - and _, 64 at most")
    return asked


def _denied(field: str, message: str) -> PermissionDenied:
    return PermissionDenied(f"{field}: {message}", violations=[Violation(field, message)])
