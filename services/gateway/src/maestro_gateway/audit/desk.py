"""What the audit answers to those who ask, each for their own tenant."""

from __future__ import annotations

from maestro.usage.v1.usage_pb2 import (
    GetRequestContentRequest,
    GetRequestContentResponse,
    ListAuditRecordsRequest,
    ListAuditRecordsResponse,
)
from maestro_gateway.audit.listing import AuditLog
from maestro_gateway.audit.store import take
from maestro_gateway.audit.wire import Wire
from maestro_gateway.identity.principal import OPERATOR, admitted
from maestro_gateway.ledger.scan import FAILURES
from maestro_sdk.errors import NoBackend, PermissionDenied, Violation


class AuditDesk:
    """Answers for `UsageService`, of which the interceptor asks the scope `admin`."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self._log = AuditLog(wire)

    async def list_records(self, request: ListAuditRecordsRequest) -> ListAuditRecordsResponse:
        """The caller's records, newest first; those of another tenant for operators only."""
        caller = admitted()
        tenant = request.tenant or caller.tenant
        if tenant != caller.tenant and OPERATOR not in caller.scopes:
            # Whether there is such a tenant makes no difference.
            message = "another tenant than the key's own needs the scope 'operator'"
            raise PermissionDenied(f"tenant: {message}", violations=[Violation("tenant", message)])
        return await self._log.list(tenant, request)

    async def content(self, request: GetRequestContentRequest) -> GetRequestContentResponse:
        """What was recorded of one of the caller's own requests. Raises `NotFound` and `NoBackend`."""
        client = await self._wire.client()
        try:
            kept = await take(client, admitted().tenant, request.request_id)
        except FAILURES as error:
            reason = "NATS does not answer" if isinstance(error, TimeoutError) else repr(error)
            raise NoBackend(f"recorded content can't be read now: {reason}", retry_after=1.0) from None
        response = GetRequestContentResponse(
            request_id=request.request_id, content_digest=kept.digest, content_json=kept.content.decode()
        )
        response.time.FromNanoseconds(kept.time)
        response.expire_time.FromNanoseconds(kept.expires)
        return response
