"""Acts of administration as events, so that the audit tells who changed what."""

from __future__ import annotations

from collections.abc import Callable

from maestro.event.v1.event_pb2 import AdminActed, Event
from maestro_gateway.identity.caller import current_caller
from maestro_gateway.identity.principal import admitted
from maestro_gateway.mesh import calling
from maestro_sdk.service.events import new_event


class Acts:
    """Tells of acts of the current caller; `publish` takes the events."""

    def __init__(self, publish: Callable[[Event], None]) -> None:
        self._publish = publish

    def note(self, action: str, target: str, tenant: str) -> None:
        """The caller did `action` ("rotate") to `target` ("key/ID") of a tenant, in whose audit it stands."""
        acted = AdminActed(
            request_id=calling().request_id,
            action=action,
            target=target,
            key_id=admitted().key_id,
            caller=current_caller().message(),
        )
        self._publish(new_event(acted, target, tenant=tenant))
