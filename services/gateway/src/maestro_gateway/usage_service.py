"""`maestro.usage.v1.UsageService`: what was used and what it cost."""

from __future__ import annotations

from typing import Any

from maestro.usage.v1.usage_pb2 import (
    EstimateCostRequest,
    EstimateCostResponse,
    GetRequestContentRequest,
    GetRequestContentResponse,
    ListAuditRecordsRequest,
    ListAuditRecordsResponse,
    ListBudgetsRequest,
    ListBudgetsResponse,
    QueryUsageRequest,
    QueryUsageResponse,
)
from maestro.usage.v1.usage_pb2_grpc import UsageServiceServicer
from maestro_gateway.audit.desk import AuditDesk
from maestro_gateway.budgets.desk import BudgetDesk
from maestro_gateway.ledger import Usage


class UsageService(UsageServiceServicer):
    """Tells usage from the ledger. The interceptor lets nobody in without the scope `admin`."""

    def __init__(self, usage: Usage, audit: AuditDesk, budgets: BudgetDesk) -> None:
        """`audit` answers for what was done, `usage` for what was used, `budgets` for what may be."""
        self._usage = usage
        self._budgets = budgets
        self._audit = audit

    async def ListAuditRecords(self, request: ListAuditRecordsRequest, context: Any) -> ListAuditRecordsResponse:
        return await self._audit.list_records(request)

    async def GetRequestContent(self, request: GetRequestContentRequest, context: Any) -> GetRequestContentResponse:
        return await self._audit.content(request)

    async def QueryUsage(self, request: QueryUsageRequest, context: Any) -> QueryUsageResponse:
        return await self._usage.query(request)

    async def ListBudgets(self, request: ListBudgetsRequest, context: Any) -> ListBudgetsResponse:
        return await self._budgets.list_budgets(request)

    async def EstimateCost(self, request: EstimateCostRequest, context: Any) -> EstimateCostResponse:
        return self._budgets.estimate(request)
