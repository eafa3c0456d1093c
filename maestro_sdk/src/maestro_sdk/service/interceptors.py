"""The one server interceptor: identity, authentication, validation, and errors as statuses with details.

It stands on the path of every call, so each method is wrapped once and the wrapped handler is kept. What it gives a
handler: `tracing.current_call()` is set, the request keeps the rules of the contract, and any `MaestroError` that it
raises, before or after its first message, ends the call with exactly one status. Any other exception is logged and
answered as `Internal` without its text.
"""

from __future__ import annotations

import asyncio
import inspect
import logging
import math
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import aclosing, suppress
from dataclasses import replace
from typing import Any, ParamSpec, TypeAlias, cast

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.message import DecodeError

from maestro_sdk.errors import (
    STATUS_DETAILS_KEY,
    Internal,
    InvalidRequest,
    MaestroError,
    UpstreamError,
    from_rpc_error,
    to_status,
)
from maestro_sdk.service.telemetry import redacted
from maestro_sdk.service.validation import VALIDATED, has_rules, validate, validator
from maestro_sdk.tracing import Call, call_from_metadata, current_call, enter_call

__all__ = ["Admit", "Authenticate", "MeshInterceptor", "abort", "returns_last", "validate"]

Metadata: TypeAlias = tuple[tuple[str, str | bytes], ...]
Authenticate: TypeAlias = Callable[[Metadata, str], str | Awaitable[str]]
"""`authenticate(metadata, "/package.Service/Method")` returns the caller's tenant, or raises `Unauthenticated`.

It gives an awaitable only when somebody has to be asked: nearly every call is known at once.
"""
Admit: TypeAlias = Callable[[Metadata], None]
"""`admit(metadata)` raises `Unauthenticated` for a caller that is no service of the mesh."""
Handler: TypeAlias = "grpc.RpcMethodHandler[Any, Any]"
Behaviour: TypeAlias = Callable[[Any, Any], Awaitable[Any]]
Arguments = ParamSpec("Arguments")
Parse: TypeAlias = Callable[[bytes], Any]

_log = logging.getLogger(__name__)
_OPEN = ("/grpc.health.v1.", "/grpc.reflection.")
"""Services that need no key: a load balancer has none."""
_ENDLESS = frozenset({"/grpc.health.v1.Health/Watch", "/grpc.reflection.v1alpha.ServerReflection/ServerReflectionInfo"})
_DRAINING = "the server is shutting down"
_READ_ON = 1.0
"""Seconds for which the rest of a refused stream of requests is read on."""
_READ_ON_BYTES = 64 * 2**20
_QUOTED = ("upstream_", "filtered")
"""Starts of the names under which errors hold a provider's own words."""
_LONGEST = 1000
"""Characters of a message that a status carries: metadata is bounded at 8 KiB by default everywhere."""


def returns_last(method: Callable[Arguments, Awaitable[Any]]) -> Callable[Arguments, Awaitable[None]]:
    """Marks a server-streaming method that writes its messages serialized and returns the last one.

    gRPC sends that one and the status together: an answer of a single message costs one operation less.
    """
    cast("Any", method).returns_last = True
    return method


class MeshInterceptor(grpc.aio.ServerInterceptor):
    """`authenticate` may be missing: then callers are services of the mesh, as `admit` finds.

    The tenant is the one that they name, and a request that they validated is not validated again.
    """

    def __init__(
        self,
        *,
        authenticate: Authenticate | None = None,
        admit: Admit | None = None,
        endless: Iterable[str] = (),
        spans: bool = False,
    ) -> None:
        """`endless` are methods whose streams never end by themselves: a drain ends them. `spans`: spans are made."""
        if authenticate is not None:
            # Whoever calls, nobody validated it before: the first request need not wait for what every one needs.
            validator()
        self._authenticate = authenticate
        self._admit = admit
        self._endless = _ENDLESS | frozenset(endless)
        self._spans = spans
        # By method, and whether the request has to be validated.
        self._handlers: dict[tuple[str, bool], Handler] = {}
        # Every call that runs, and whether its method is endless.
        self._running: dict[asyncio.Task[Any], bool] = {}
        self._ended: set[asyncio.Task[Any]] = set()
        self._draining = False
        self.arrived = 0
        """Calls that came, without those that ask how the service is."""

    async def intercept_service(self, continuation: Any, handler_call_details: Any) -> Handler | None:
        method: str = handler_call_details.method
        metadata: Metadata = handler_call_details.invocation_metadata
        call = call_from_metadata(metadata)
        kind = (method, self._authenticate is not None or VALIDATED not in metadata)
        handler = self._handlers.get(kind)
        if handler is None:
            original = await continuation(handler_call_details)
            if original is None:
                return None
            handler = self._handlers[kind] = self._wrapped(*kind, original)
        if not method.startswith(_OPEN):
            self.arrived += 1
            try:
                if self._authenticate is not None:
                    tenant = self._authenticate(metadata, method)
                    if not isinstance(tenant, str):
                        tenant = await tenant
                    call = Call(call.request_id, tenant, call.traceparent)
                elif self._admit is not None:
                    self._admit(metadata)
            except Exception as error:  # noqa: BLE001 - whatever it is, the caller doesn't get in
                # The request isn't even read.
                enter_call(Call(call.request_id, "", call.traceparent))
                return _rejecting(handler, error)
        # gRPC runs interceptor and handler in one task, made for this call: the handler sees it, nobody else does.
        enter_call(call)
        return handler

    def end_endless(self) -> None:
        """Ends streams that never end by themselves, later ones too, with UNAVAILABLE: their callers go elsewhere."""
        self._draining = True
        self._end([task for task, endless in self._running.items() if endless])

    def end_all(self) -> None:
        """Ends every call with UNAVAILABLE. gRPC itself would say CANCELLED, as if the callers had gone away."""
        self._end(list(self._running))

    def _end(self, tasks: Iterable[asyncio.Task[Any]]) -> None:
        for task in tasks:
            self._ended.add(task)
            task.cancel()

    def _wrapped(self, method: str, unchecked: bool, handler: Handler) -> Handler:
        spec = cast("Any", handler)
        inner = spec.stream_stream or spec.stream_unary or spec.unary_stream or spec.unary_unary
        many: bool = spec.request_streaming
        # gRPC itself would answer bytes that are no such message with UNKNOWN, and log them as a fault of ours.
        parse = None if many else spec.request_deserializer
        checks = unchecked and _has_rules(method)
        behaviour = self._behaviour(method, inner, parse, many=many, checks=checks)
        if getattr(inner, "returns_last", False):
            # One response or many is the same on the wire: to this server it is a unary method that also writes.
            return grpc.unary_unary_rpc_method_handler(behaviour, None, spec.response_serializer)
        return _handler_like(handler, behaviour, reads=many)

    def _behaviour(self, method: str, inner: Any, parse: Parse | None, *, many: bool, checks: bool) -> Behaviour:
        """The handler's behaviour as one coroutine that lets only aborts and the caller's leaving through to gRPC."""
        if inspect.isasyncgenfunction(inner):
            inner = _writing(inner)
        elif not inspect.iscoroutinefunction(inner):
            raise TypeError(f"the handler of {method} is not asynchronous")
        endless, spans, running = method in self._endless, self._spans, self._running

        async def behave(request: Any, context: Any) -> Any:
            task = cast("asyncio.Task[Any]", asyncio.current_task())
            running[task] = endless
            sent = request if many else None
            try:
                if endless and self._draining:
                    raise UpstreamError(_DRAINING)
                if spans:
                    _follow_span()
                if parse is not None:
                    request = _parsed(parse, request)
                if checks:
                    if many:
                        request = _checked(request)
                    else:
                        validate(request)
                return await inner(request, context)
            except grpc.aio.AbortError:
                raise
            except grpc.aio.InternalError:
                # Nothing can be written any more: the caller went away this moment. gRPC would log it as a fault.
                raise asyncio.CancelledError from None
            except asyncio.CancelledError:
                if task not in self._ended:
                    raise
                task.uncancel()
                await abort(context, UpstreamError(_DRAINING))
            except Exception as error:  # noqa: BLE001 - the border of the service
                if sent is not None:
                    await _read_on(sent)
                await abort(context, error)
            finally:
                del running[task]
                self._ended.discard(task)

        return behave


def _parsed(parse: Parse, data: bytes) -> Any:
    try:
        return parse(data)
    except DecodeError as error:
        raise InvalidRequest(f"the bytes are no message of this method: {error}") from None


async def abort(context: Any, error: Exception) -> None:
    """Ends the call with the status of `error` by raising gRPC's own abort.

    An unexpected error is logged here; the caller learns nothing but where to look.
    """
    known = _meaning(error)
    if known is None:
        call = current_call()
        request_id = call.request_id if call else "-"
        _log.error("unexpected error while serving a request", exc_info=error)
        known = Internal(f"internal error; the log of the service tells more under {request_id}")
    status = to_status(hushed(_bounded(known)))
    # For those who don't read `RetryInfo`: whole seconds, as over HTTP.
    later = () if known.retry_after is None else (("retry-after", str(math.ceil(known.retry_after))),)
    metadata = (*(context.trailing_metadata() or ()), *later, (STATUS_DETAILS_KEY, status.SerializeToString()))
    try:
        await context.abort(known.code, status.message, metadata)
    except asyncio.InvalidStateError:
        # The caller went away meanwhile: there is nobody to tell.
        _log.debug("a call ended before its status %s could be sent", known.reason)


def _meaning(error: BaseException) -> MaestroError | None:
    """The error to tell: itself, that of a call to another service, or the first of a group that holds only such."""
    if isinstance(error, MaestroError):
        return error
    if isinstance(error, grpc.RpcError):
        return from_rpc_error(error)
    if isinstance(error, BaseExceptionGroup):
        group = cast("BaseExceptionGroup[BaseException]", error)
        meanings = [_meaning(inner) for inner in group.exceptions if not isinstance(inner, asyncio.CancelledError)]
        return meanings[0] if meanings and None not in meanings else None
    return None


def hushed(error: MaestroError) -> MaestroError:
    """The error without any key: providers quote the one that they refuse, wherever they have words of their own."""
    return type(error)(
        redacted(error.message),
        retry_after=error.retry_after,
        violations=[replace(v, message=redacted(v.message)) for v in error.violations],
        # Other names are our own words, and models may be called like keys.
        metadata={key: redacted(value) if key.startswith(_QUOTED) else value for key, value in error.metadata.items()},
        retryable=error.retryable,
        failover=error.failover,
        counts_against_health=error.counts_against_health,
    )


def _bounded(error: MaestroError) -> MaestroError:
    """The error, cut to what fits into metadata."""
    size = len(error.message) + sum(len(v.field) + len(v.message) for v in error.violations)
    size += sum(len(key) + len(value) for key, value in error.metadata.items())
    if size <= _LONGEST:
        return error
    return type(error)(
        error.message[:_LONGEST],
        retry_after=error.retry_after,
        violations=[replace(v, field=v.field[:200], message=v.message[:120]) for v in error.violations[:8]],
        metadata={key[:64]: value[:200] for key, value in list(error.metadata.items())[:16]},
        retryable=error.retryable,
        failover=error.failover,
        counts_against_health=error.counts_against_health,
    )


def _has_rules(method: str) -> bool:
    """Whether requests of a method are ours and have rules to keep."""
    service, _, name = method.removeprefix("/").rpartition("/")
    if not service.startswith("maestro."):
        return False
    try:
        descriptor = descriptor_pool.Default().FindServiceByName(service).FindMethodByName(name)
    except KeyError:
        return False
    return descriptor.input_type.full_name.startswith("maestro.") and has_rules(descriptor.input_type)


async def _checked(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        validate(request)
        yield request


async def _read_on(requests: AsyncIterator[Any]) -> None:
    """Reads the rest of a stream that is refused, for a while.

    A client whose message can't be written any more because the call has ended tells its caller that, not the status.
    """
    size = 0
    # Whatever else is wrong with it: what was wrong first is told.
    with suppress(Exception):
        async with asyncio.timeout(_READ_ON):
            async for request in requests:
                size += request.ByteSize()
                if size > _READ_ON_BYTES:
                    return


def _writing(generator: Callable[[Any, Any], Any]) -> Behaviour:
    """An asynchronous generator as a coroutine that writes; the generator is closed here and now when the call ends."""

    async def behave(request: Any, context: Any) -> None:
        async with aclosing(generator(request, context)) as responses:
            async for response in responses:
                await context.write(response)

    return behave


def _rejecting(handler: Handler, error: Exception) -> Handler:
    """A handler of the same shape that tells only the error."""

    async def behave(request: Any, context: Any) -> None:
        await abort(context, error)

    return _handler_like(handler, behave, reads=False)


def _handler_like(handler: Handler, behaviour: Behaviour, *, reads: bool = True) -> Handler:
    spec = cast("Any", handler)
    make: Any = {
        (False, False): grpc.unary_unary_rpc_method_handler,
        (False, True): grpc.unary_stream_rpc_method_handler,
        (True, False): grpc.stream_unary_rpc_method_handler,
        (True, True): grpc.stream_stream_rpc_method_handler,
    }[bool(spec.request_streaming), bool(spec.response_streaming)]
    return make(behaviour, spec.request_deserializer if reads else None, spec.response_serializer)


def _follow_span() -> None:
    """Lets what this call sends on name the server's span as its parent."""
    from opentelemetry import trace

    context, call = trace.get_current_span().get_span_context(), current_call()
    if context.is_valid and call is not None:
        flags = f"{int(context.trace_flags):02x}"
        traceparent = f"00-{context.trace_id:032x}-{context.span_id:016x}-{flags}"
        enter_call(replace(call, traceparent=traceparent))
