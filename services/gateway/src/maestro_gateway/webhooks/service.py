"""`maestro.gateway.v1.WebhookService`: what became of the webhooks of a tenant, and dead letters once more."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import nats.js.errors

from maestro.gateway.v1.webhook_pb2 import (
    WEBHOOK_STATE_ACTIVE,
    WEBHOOK_STATE_BROKEN,
    WEBHOOK_STATE_GONE,
    DeadLetter,
    ListDeadLettersRequest,
    ListDeadLettersResponse,
    ListWebhooksRequest,
    ListWebhooksResponse,
    ReplayDeadLettersRequest,
    ReplayDeadLettersResponse,
    TestWebhookRequest,
    TestWebhookResponse,
    Webhook,
)
from maestro.gateway.v1.webhook_pb2_grpc import WebhookServiceServicer
from maestro_gateway.identity import admitted
from maestro_gateway.identity.principal import OPERATOR
from maestro_gateway.webhooks import letters
from maestro_gateway.webhooks.hook import Hook
from maestro_gateway.webhooks.office import Office
from maestro_gateway.webhooks.outcome import Failed, Gone, Outcome, Taken
from maestro_gateway.webhooks.worker import FAILURES
from maestro_sdk.errors import InvalidRequest, NoBackend, NotFound, PermissionDenied, Violation
from maestro_sdk.service.bus import STREAM, Client
from maestro_sdk.service.gateways import is_tenant

_PAGE = 100
_TIME = 30.0
"""Seconds that one replay may take: REST waits for 60."""


class WebhookService(WebhookServiceServicer):
    """Looks at an office. The interceptor lets nobody in without the scope `admin`."""

    def __init__(self, office: Office) -> None:
        self._office = office

    async def ListWebhooks(self, request: ListWebhooksRequest, context: Any) -> ListWebhooksResponse:
        tenant = _tenant(request.tenant)
        hooks = sorted(
            (hook for hook in self._office.hooks.values() if hook.tenant == tenant), key=lambda hook: hook.name
        )
        if not hooks:
            return ListWebhooksResponse()
        async with self._nats() as client:
            return ListWebhooksResponse(webhooks=[await _told(client, hook) for hook in hooks])

    async def ListDeadLetters(self, request: ListDeadLettersRequest, context: Any) -> ListDeadLettersResponse:
        tenant = _tenant(request.tenant)
        size = request.page_size or _PAGE
        async with self._nats() as client:
            page, more = await letters.page(client, tenant, request.webhook, int(request.page_token or 0), size)
        if not page and not request.page_token:
            # Those of a webhook that left the configuration can be read as long as they are kept.
            self._hook(tenant, request.webhook)
        return ListDeadLettersResponse(
            letters=[_letter(each) for each in page],
            next_page_token=str(page[-1].number) if page and more else "",
        )

    async def ReplayDeadLetters(self, request: ReplayDeadLettersRequest, context: Any) -> ReplayDeadLettersResponse:
        hook = self._hook(_tenant(request.tenant), request.webhook)
        end = time.monotonic() + _TIME
        answer = ReplayDeadLettersResponse()
        async with self._nats() as client:
            for letter in await _wanted(client, hook, request.numbers):
                if time.monotonic() > end:
                    answer.reason = f"the {_TIME:.0f} s of one replay are over; ask again for the rest"
                    break
                outcome = await self._office.courier.carry(hook, letter.event)
                if not isinstance(outcome, Taken):
                    answer.reason = _reason(outcome)
                    break
                await letters.remove(client, letter.number)
                answer.delivered += 1
            answer.left = await letters.count(client, hook.tenant, hook.name)
        return answer

    async def TestWebhook(self, request: TestWebhookRequest, context: Any) -> TestWebhookResponse:
        hook = self._hook(_tenant(request.tenant), request.webhook)
        begun = time.monotonic()
        outcome = await self._office.courier.try_out(hook)
        answer = TestWebhookResponse(reason=_reason(outcome), delivered=isinstance(outcome, Taken))
        answer.latency.FromNanoseconds(int((time.monotonic() - begun) * 1e9))
        if outcome.status is not None:
            answer.status = outcome.status
        if answer.delivered:
            async with self._nats() as client:
                if await letters.is_gone(client, hook):
                    await letters.forget_gone(client, hook.tenant, hook.name)
        return answer

    def _hook(self, tenant: str, name: str) -> Hook:
        found = self._office.hooks.get((tenant, name))
        if found is None:
            raise NotFound(f"there is no webhook {name!r}")
        return found

    @asynccontextmanager
    async def _nats(self) -> AsyncGenerator[Client]:
        """The connection, with the streams of webhooks on it. Raises `NoBackend`, also for what fails in the block."""
        reader = self._office.reader
        if reader.trouble:
            raise NoBackend(f"webhooks can't be looked at now: {reader.trouble}", retry_after=1.0)
        try:
            client, _ = await reader.connection()
            await letters.prepare(client)
            yield client
        except FAILURES as error:
            raise NoBackend(
                f"webhooks can't be looked at now: NATS does not answer ({type(error).__name__})", retry_after=1.0
            ) from None


def _tenant(asked: str) -> str:
    """The tenant that is meant. Raises `PermissionDenied` and `InvalidRequest`."""
    caller = admitted()
    if not asked or asked == caller.tenant:
        return caller.tenant
    if OPERATOR not in caller.scopes:
        message = "another tenant than the key's own needs the scope 'operator'"
        raise PermissionDenied(f"tenant: {message}", violations=[Violation("tenant", message)])
    if not is_tenant(asked):
        raise InvalidRequest.at("tenant", f"{asked!r} is not a tenant: letters, digits, - and _, 64 at most")
    return asked


async def _wanted(client: Client, hook: Hook, numbers: Sequence[int]) -> list[letters.Letter]:
    """The letters with these numbers, or the oldest ones."""
    if not numbers:
        return (await letters.page(client, hook.tenant, hook.name, 0, _PAGE))[0]
    found = [await letters.one(client, hook.tenant, hook.name, number) for number in sorted(set(numbers))]
    return [letter for letter in found if letter is not None]


async def _told(client: Client, hook: Hook) -> Webhook:
    told = Webhook(name=hook.name, tenant=hook.tenant, url=hook.address, kinds=hook.config.kinds)
    told.state = WEBHOOK_STATE_ACTIVE
    if trouble := hook.trouble():
        told.state, told.reason = WEBHOOK_STATE_BROKEN, trouble
    elif await letters.is_gone(client, hook):
        told.state, told.reason = WEBHOOK_STATE_GONE, "its receiver ended it by the status 410"
    try:
        info = await client.jetstream(timeout=5).consumer_info(STREAM, hook.consumer)
        told.waiting, told.retrying = info.num_pending or 0, info.num_ack_pending or 0
    except nats.js.errors.NotFoundError:
        told.reason = told.reason or "it was just made"
    told.dead = await letters.count(client, hook.tenant, hook.name)
    return told


def _letter(letter: letters.Letter) -> DeadLetter:
    told = DeadLetter(number=letter.number, event=letter.event, attempts=letter.attempts, reason=letter.reason)
    if letter.status is not None:
        told.last_status = letter.status
    told.time.FromNanoseconds(int(letter.time * 1e9))
    return told


def _reason(outcome: Outcome) -> str:
    match outcome:
        case Taken():
            return ""
        case Gone():
            return "it answered 410: it wants nothing any more"
        case Failed(reason):
            return reason
