"""What of the events is wanted, as the three doors ask for it, and who may ask."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from maestro.event.v1.event_pb2 import Event, SubscribeRequest
from maestro_gateway.identity import Principal
from maestro_gateway.identity.principal import ADMIN, OPERATOR
from maestro_sdk.errors import InvalidRequest, PermissionDenied, Violation
from maestro_sdk.service.event_kinds import belongs, unknown_kinds
from maestro_sdk.service.events import MESH
from maestro_sdk.service.gateways import is_tenant
from maestro_sdk.service.interceptors import validate

_PARAMETERS = ("kinds", "job", "after", "tenant", "access_token")
_NUMBER = re.compile(r"[0-9]{1,19}")
_NAMES = {"job_id": "job", "after_sequence": "after"}


@dataclass(frozen=True, slots=True)
class Query:
    """What of the events is wanted.

    `kinds` are kinds or families, none means all; `after` is None for the events from now on; `tenant` is empty for
    the caller's own.
    """

    kinds: tuple[str, ...] = ()
    job: str = ""
    after: int | None = None
    tenant: str = ""

    def passes(self, event: Event) -> bool:
        """Whether it is wanted, all filters taken together."""
        kind = event.kind
        if self.kinds and kind not in self.kinds and f"{kind.partition('.')[0]}.*" not in self.kinds:
            return False
        return not self.job or belongs(event, self.job)


def read_parameters(items: Iterable[tuple[str, str]], last_event_id: str = "") -> Query:
    """The query of an HTTP request: `kinds=request.*,job.completed`, `job=ID`, `after=SEQUENCE`, `tenant=NAME`.

    `last_event_id` is the header of that name: the place where a browser that comes back was, before any `after`.
    Raises `InvalidRequest`.
    """
    kinds: list[str] = []
    job, tenant, after = "", "", None
    for name, value in items:
        match name:
            case "kinds":
                kinds += [kind.strip() for kind in value.split(",") if kind.strip()]
            case "job":
                job = value
            case "after":
                after = _sequence("after", value)
            case "tenant":
                tenant = value
            case "access_token":
                pass
            case _:
                raise InvalidRequest.at(name[:64], f"is no parameter here; there are {', '.join(_PARAMETERS)}")
    if last_event_id:
        after = _sequence("last-event-id", last_event_id)
    _check_kinds(kinds)
    try:
        validate(SubscribeRequest(kinds=kinds, job_id=job, after_sequence=after, tenant=tenant))
    except InvalidRequest as error:
        names = [Violation(_NAMES.get(found.field, found.field), found.message) for found in error.violations]
        raise InvalidRequest("; ".join(f"{n.field}: {n.message}" for n in names), violations=names) from None
    return Query(tuple(kinds), job, after, tenant)


def read_request(request: SubscribeRequest) -> Query:
    """The query of a message that keeps the rules of the contract. Raises `InvalidRequest`."""
    _check_kinds(request.kinds)
    after = request.after_sequence if request.HasField("after_sequence") else None
    return Query(tuple(request.kinds), request.job_id, after, request.tenant)


def tenant_of(query: Query, principal: Principal) -> str:
    """The tenant whose events are meant, or the mesh. Raises `PermissionDenied` and `InvalidRequest`."""
    asked = query.tenant
    if not asked or asked == principal.tenant:
        return principal.tenant
    if OPERATOR not in principal.scopes:
        # The same for every name: who is a customer of this mesh is nobody's business.
        message = "another tenant than the key's own needs the scope 'operator'"
        raise PermissionDenied(f"tenant: {message}", violations=[Violation("tenant", message)])
    if asked != MESH and not is_tenant(asked):
        raise InvalidRequest.at("tenant", f"{asked!r} is neither a tenant nor {MESH}")
    return asked


def sees_callers(principal: Principal) -> bool:
    """Whether a reader may know from where requests came."""
    return ADMIN in principal.scopes or OPERATOR in principal.scopes


def _sequence(name: str, value: str) -> int:
    if not _NUMBER.fullmatch(value):
        raise InvalidRequest.at(name, "must be a sequence, a whole number of at least 0")
    return int(value)


def _check_kinds(kinds: Sequence[str]) -> None:
    for index, wrong in unknown_kinds(kinds):
        raise InvalidRequest.at(f"kinds[{index}]", wrong)
