"""How a caller's client reaches the mesh: address, key, TLS, deadline, identity of a call, and errors as
`MaestroError`.
"""

from __future__ import annotations

import asyncio
import ipaddress
import math
import os
import sys
from dataclasses import dataclass
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

import grpc
import grpc.aio
from google.protobuf.message import Message

from maestro_sdk.errors import Cancelled, MaestroError, Timeout, TooLarge, UpstreamError, from_rpc_error
from maestro_sdk.service.channel import MAX_MESSAGE
from maestro_sdk.tracing import (
    REQUEST_ID_KEY,
    TENANT_KEY,
    TRACEPARENT_KEY,
    call_from_metadata,
    outgoing_metadata,
)

DEFAULT_TARGET = "http://127.0.0.1:8080"
"""Where `maestro up` serves."""

DEFAULT_TIMEOUT = 600.0
"""Seconds that an answer may take as a whole, unless a client or a call says otherwise."""

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    # A model may think for minutes: pings find a dead peer and keep middleboxes from closing the connection.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    # Also the least time for one try to connect: a TLS handshake over a slow line needs more than the back-off.
    ("grpc.min_reconnect_backoff_ms", 5_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.use_local_subchannel_pool", 1),
)

_used_in = 0
"""Process in which a channel was opened; 0 while there was none."""

AnswerT = TypeVar("AnswerT", bound=Message)


@dataclass(frozen=True, slots=True)
class Target:
    """`address` as gRPC takes it; `secure` asks for TLS; `local` says that the address is on this machine."""

    address: str
    secure: bool
    local: bool


def parse_target(text: str) -> Target:
    """The target of "http://host:port", "https://host[:port]", "host:port", or of a gRPC name such as
    "unix:/run/mesh.sock" or "dns:///host:port". Raises `ValueError`.
    """
    text = text.strip()
    scheme, separator, _ = text.partition("://")
    if separator and scheme.lower() in {"http", "https"}:
        url = urlsplit(text)
        if url.username is not None:
            raise ValueError("the key of the mesh is given as `key`, not in the address")
        if url.path not in {"", "/"} or url.query or url.fragment:
            raise ValueError(f"{text!r}: gRPC knows no path; give host and port only")
        if not url.hostname:
            raise ValueError(f"{text!r} has no host")
        secure = url.scheme == "https"
        port = url.port if url.port is not None else (443 if secure else 80)
        host = f"[{url.hostname}]" if ":" in url.hostname else url.hostname
        return Target(f"{host}:{port}", secure, _is_loopback(url.hostname))
    if text.startswith(("dns:", "unix:", "unix-abstract:", "ipv4:", "ipv6:")):
        return Target(text, secure=False, local=text.startswith("unix"))
    host, _, port_text = text.rpartition(":")
    if separator or not host or not port_text.isdecimal() or "/" in text:
        raise ValueError(f'{text!r} is no address: give "http://host:port", "https://host" or "host:port"')
    return Target(text, secure=False, local=_is_loopback(host.strip("[]")))


class Connection:
    """A channel that opens on first use in the event loop that uses it, and the identity that goes with each call.

    A connection may be made anywhere, and may outlive an event loop: a second `asyncio.run` opens it anew. It serves
    one running loop at a time.
    """

    def __init__(
        self, target: str | None, *, key: str | None, timeout: float | None, roots: bytes | None = None
    ) -> None:
        """`target` falls back to MAESTRO_URL and then to `DEFAULT_TARGET`, `key` to MAESTRO_KEY. `timeout` in seconds,
        None for none. `roots`: PEM of the authorities to trust under https, instead of the public ones.
        """
        self.target = parse_target(target or os.environ.get("MAESTRO_URL") or DEFAULT_TARGET)
        found = (key if key is not None else os.environ.get("MAESTRO_KEY", "")).strip()
        if not found.isascii() or not found.isprintable():
            raise ValueError("the key has characters that no key has")
        if roots is not None and not self.target.secure:
            raise ValueError("`roots` are for https")
        self.timeout = timeout
        self.closed = False
        self._key = found
        self._roots = roots
        self._channel: grpc.aio.Channel | None = None
        self._methods: dict[str, Any] = {}
        self._loop: asyncio.AbstractEventLoop | None = None

    async def call(
        self, path: str, request: Message, answer: type[AnswerT], *, timeout: float | None = None, request_id: str = ""
    ) -> AnswerT:
        """The answer of a unary method, `path` as "/package.Service/Method". Raises `MaestroError`; cancelling cancels
        the call.
        """
        method = self._method(path, request, answer, stream=False)
        request_id, metadata = self._identity(request_id)
        try:
            return await method(request, timeout=self._deadline(timeout), metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise self.meaning(error, request_id) from error
        except asyncio.CancelledError:
            if self.closed and not being_cancelled():
                raise Cancelled("the client was closed during the call", metadata={"request_id": request_id}) from None
            raise

    def open(
        self, path: str, request: Message, message: type[Message], *, timeout: float | None = None, request_id: str = ""
    ) -> tuple[Any, str]:
        """A running call of a streaming method, and its request id."""
        method = self._method(path, request, message, stream=True)
        request_id, metadata = self._identity(request_id)
        return method(request, timeout=self._deadline(timeout), metadata=metadata), request_id

    def meaning(self, error: grpc.aio.AioRpcError, request_id: str) -> MaestroError:
        """What a failed call means, with its request id among the facts."""
        meaning = from_rpc_error(error)
        if type(meaning) is Timeout and "Deadline Exceeded" in meaning.message:
            meaning = Timeout("there was no answer in time")
        elif type(meaning) is UpstreamError and meaning.message.startswith("failed to connect"):
            meaning = UpstreamError(f"{self.target.address} can't be reached: {meaning.message}")
        meaning.metadata.setdefault("request_id", request_id)
        return meaning

    async def close(self) -> None:
        """Closes the channel; calls that still run end with `Cancelled`. A second close does nothing."""
        self.closed = True
        if _forked():
            # Not even letting go of the channel is safe here.
            return
        channel, self._channel = self._channel, None
        self._methods.clear()
        if channel is not None and self._loop is asyncio.get_running_loop():
            await channel.close()

    def _method(self, path: str, request: Message, answer: type[Message], *, stream: bool) -> Any:
        channel = self._open_channel()
        size = request.ByteSize()
        if size > MAX_MESSAGE:
            raise TooLarge(f"the request has {size} bytes; at most {MAX_MESSAGE} are allowed")
        method = self._methods.get(path)
        if method is None:
            make = channel.unary_stream if stream else channel.unary_unary
            method = self._methods[path] = make(path, type(request).SerializeToString, answer.FromString)
        return method

    def _open_channel(self) -> grpc.aio.Channel:
        if self.closed:
            raise RuntimeError("the client is closed")
        loop = asyncio.get_running_loop()
        if _forked():
            raise RuntimeError(
                "gRPC does not survive a fork: start workers with `spawn`, or fork before the first call"
            )
        if self._channel is not None:
            if self._loop is loop:
                return self._channel
            if self._loop is not None and not self._loop.is_closed():
                raise RuntimeError("the client is in use in another event loop; make one client per loop")
        _note_use()
        # A channel of a loop that is gone can't be used nor closed any more.
        self._methods.clear()
        self._loop = loop
        options = _OPTIONS
        if self.target.local:
            # An http_proxy of the environment can't reach the caller's own machine.
            options = (*options, ("grpc.enable_http_proxy", 0))
        if self.target.secure:
            credentials = grpc.ssl_channel_credentials(self._roots)
            self._channel = grpc.aio.secure_channel(self.target.address, credentials, options=options)
        else:
            self._channel = grpc.aio.insecure_channel(self.target.address, options=options)
        return self._channel

    def _deadline(self, timeout: float | None) -> float | None:
        timeout = self.timeout if timeout is None else timeout
        return None if timeout is None or math.isinf(timeout) else timeout

    def _identity(self, request_id: str) -> tuple[str, tuple[tuple[str, str], ...]]:
        if request_id and call_from_metadata(((REQUEST_ID_KEY, request_id),)).request_id != request_id:
            raise ValueError("a request id is 1 to 128 letters, digits, `.`, `_`, `:` and `-`")
        metadata = dict(outgoing_metadata())
        if request_id:
            metadata[REQUEST_ID_KEY] = request_id
        traceparent = _active_traceparent()
        if traceparent:
            metadata[TRACEPARENT_KEY] = traceparent
        if self._key:
            # The key says who asks. Without one the call stays inside the mesh, where services vouch for the tenant.
            metadata.pop(TENANT_KEY, None)
            metadata["authorization"] = f"Bearer {self._key}"
        return metadata[REQUEST_ID_KEY], tuple(metadata.items())


def _forked() -> bool:
    """Whether this process was forked from one that had used gRPC, which would abort it."""
    return _used_in not in {0, os.getpid()}


def _note_use() -> None:
    global _used_in  # noqa: PLW0603 - gRPC's own state is one per process
    _used_in = os.getpid()


def being_cancelled() -> bool:
    """Whether somebody cancels the current task. gRPC raises `CancelledError` also where only a call was cancelled."""
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _active_traceparent() -> str:
    """The caller's own OpenTelemetry span, when the program uses OpenTelemetry: its trace goes on through the mesh."""
    trace = cast("Any", sys.modules.get("opentelemetry.trace"))
    context = trace.get_current_span().get_span_context() if trace is not None else None
    if context is None or not context.is_valid:
        return ""
    return f"00-{context.trace_id:032x}-{context.span_id:016x}-{int(context.trace_flags):02x}"


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
