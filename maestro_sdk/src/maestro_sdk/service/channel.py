"""The one place that opens gRPC channels inside the mesh, so that all have the same limits and keepalive."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import grpc

MAX_MESSAGE = 24 * 1024 * 1024
"""Largest message in bytes: an inline image of 20 MiB and its conversation. Envoy bounds what comes from outside."""

_OPTIONS: tuple[tuple[str, int | str], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    # Long streams may be silent for minutes: pings find a dead peer and keep middleboxes from closing the connection.
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.max_pings_without_data", 0),
    # A restarted service is found again within half a second instead of two minutes.
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 2_000),  # in truth the time that one attempt to connect may take
    ("grpc.max_reconnect_backoff_ms", 400),
    # A channel of its own, not one shared with every other channel of the process.
    ("grpc.use_local_subchannel_pool", 1),
    # Retries happen in the dispatcher only.
    ("grpc.enable_retries", 0),
)


_makers: list[Callable[[], Sequence[grpc.aio.ClientInterceptor]]] = []


def intercept_channels(make: Callable[[], Sequence[grpc.aio.ClientInterceptor]]) -> None:
    """Gives every channel that is opened from now on the interceptors that `make` returns."""
    _makers.append(make)


def open_channel(
    target: str,
    interceptors: Sequence[grpc.aio.ClientInterceptor] = (),
    *,
    credentials: grpc.ChannelCredentials | None = None,
    name: str = "",
) -> grpc.aio.Channel:
    """A channel to `target` ("host:port"), plaintext without `credentials`; it connects on first use.

    `name` is what the server's certificate has to be made out to, where not to the host of `target`.
    """
    added = [interceptor for make in _makers for interceptor in make()]
    every = [*added, *interceptors]
    if credentials is None:
        return grpc.aio.insecure_channel(target, options=_OPTIONS, interceptors=every)
    options = (*_OPTIONS, ("grpc.ssl_target_name_override", name)) if name else _OPTIONS
    return grpc.aio.secure_channel(target, credentials, options=options, interceptors=every)
