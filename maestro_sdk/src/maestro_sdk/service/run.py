"""The whole main of a service: `run("gateway", build)`.

Loads the configuration, serves with health and reflection on uvloop, and drains on SIGTERM: health says NOT_SERVING,
calls are taken until those who send them know that, streams in flight get the grace period to end, then everything
closes. A second signal ends the process at once.
"""

from __future__ import annotations

import asyncio
import ctypes
import gc
import ipaddress
import logging
import os
import signal
import socket
import sys
from collections.abc import Awaitable, Callable, Generator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import grpc
from grpc_reflection.v1alpha import reflection, reflection_pb2

from maestro_sdk.service.buses import remember_login
from maestro_sdk.service.channel import MAX_MESSAGE
from maestro_sdk.service.config_file import ConfigError, Problem
from maestro_sdk.service.health import Health, HealthServicer
from maestro_sdk.service.interceptors import Authenticate, MeshInterceptor
from maestro_sdk.service.peer import Peer
from maestro_sdk.service.registration import register
from maestro_sdk.service.settings import Config, load
from maestro_sdk.service.telemetry import Telemetry, set_up_logging, set_up_telemetry

_log = logging.getLogger(__name__)

_OPTIONS: tuple[tuple[str, int], ...] = (
    ("grpc.max_send_message_length", MAX_MESSAGE),
    ("grpc.max_receive_message_length", MAX_MESSAGE),
    # Above what Envoy lets through (60 KiB, 100 headers) and refuses in plain words. gRPC would answer as if it were
    # overloaded: above 16 KiB always, above 8 KiB by chance.
    ("grpc.max_metadata_size", 96 * 1024),
    ("grpc.absolute_max_metadata_size", 96 * 1024),
    # Two servers on one port would share its connections silently: the second one must fail instead.
    ("grpc.so_reuseport", 0),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Clients with long silent streams ping; without this the server would take that for an attack and hang up.
    ("grpc.keepalive_permit_without_calls", 1),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.http2.max_ping_strikes", 0),
    ("grpc.http2.max_pings_without_data", 0),
)
_OPEN_TO_OTHERS = (
    "{address} is open to other machines, and whoever reaches it would be taken for a member of the mesh, of any "
    "tenant: give all processes of the mesh the same token in MAESTRO_MESH_TOKEN, or certificates in mesh.tls; or set "
    "mesh.open to true where the network lets nobody else reach it"
)
_CUT = 0.3
"""Seconds that calls which are cut have to tell it."""
_POLL = 1.0
"""Seconds between two questions for readiness; the first ones follow each other faster, as a start waits for them."""
_PATIENCE = 5.0
"""Seconds that a service has to say whether it is ready."""


async def _always_ready() -> str:
    return ""


async def _nothing_to_drain(grace: float) -> None:
    del grace


@dataclass(frozen=True, slots=True)
class Service:
    """What a process serves.

    `servicers` are instances of generated `*Servicer` classes. `ready` tells why requests can't be served, or "".
    `authenticate` finds the tenant of a call; without it all callers are to be services of the mesh, which `mesh` of
    the configuration tells. `endless` are methods ("/package.Service/Method") whose streams never end
    by themselves, so a drain ends them with UNAVAILABLE. `drain` ends what the process serves beside gRPC, within the
    given seconds, at the same time as gRPC's own calls. `beside` is entered once the address is open, and left before
    the drain begins. `health` is what other ports of the process tell of it.
    """

    address: str
    servicers: Sequence[object]
    ready: Callable[[], Awaitable[str]] = _always_ready
    authenticate: Authenticate | None = None
    endless: Sequence[str] = ()
    drain: Callable[[float], Awaitable[None]] = _nothing_to_drain
    beside: Callable[[], AbstractAsyncContextManager[None]] = nullcontext
    health: Health = field(default_factory=Health)


Build: TypeAlias = Callable[[Config], AbstractAsyncContextManager[Service]]


def run(name: str, build: Build) -> None:
    """Serves until SIGTERM or SIGINT, then exits: 0 after a clean end, 2 for a wrong configuration, else 1."""
    try:
        config = load()
    except ConfigError as error:
        sys.exit(_complaint(error))
    set_up_logging(name, config.telemetry)
    telemetry = set_up_telemetry(name, config.telemetry)
    code = 1
    try:
        with asyncio.Runner(loop_factory=_new_loop()) as runner:
            code = runner.run(_main(name, config, build, telemetry))
    finally:
        telemetry.shut_down()
    sys.exit(code)


class _Stop:
    """The wish to stop. While the service is being built it cancels the building; later it is waited for."""

    def __init__(self) -> None:
        self.wished = asyncio.Event()
        self.building: asyncio.Task[Any] | None = asyncio.current_task()

    def on_signal(self, name: str, number: signal.Signals) -> None:
        if self.wished.is_set():
            os._exit(128 + number)
        _log.info("%s: stopping on %s", name, number.name)
        self.wished.set()
        if self.building is not None:
            self.building.cancel()


async def _main(name: str, config: Config, build: Build, telemetry: Telemetry) -> int:
    """Exit code of the service. The first signal stops it in order, even while it is built; the second at once."""
    stop = _Stop()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.on_signal, name, number)
    try:
        with _patient_threads():
            await _serve(name, config, build, telemetry, stop)
    except ConfigError as error:
        return _complaint(error)
    except _CannotListen as error:
        sys.stderr.write(f"{name}: {error}\n")
        return 1
    except asyncio.CancelledError:
        if not stop.wished.is_set():
            raise
    except Exception:  # noqa: BLE001 - the end of the process: the log and the exit code are all that is left
        _log.exception("%s: ended by an error", name)
        return 1
    _log.info("%s: stopped", name)
    return 0


async def _serve(name: str, config: Config, build: Build, telemetry: Telemetry, stop: _Stop) -> None:
    peer = Peer.from_config(config)
    remember_login(config.nats)
    async with build(config) as service:
        stop.building = None
        inner = service.authenticate is None
        if inner and not (peer.asks_token or peer.certificates or config.mesh.open or _is_loopback(service.address)):
            raise ConfigError([Problem("", "mesh", _OPEN_TO_OTHERS.format(address=service.address))])
        interceptor = MeshInterceptor(
            authenticate=service.authenticate,
            admit=peer.admit if peer.asks_token else None,
            endless=service.endless,
            spans=telemetry.enabled,
        )
        server = grpc.aio.server(interceptors=(*telemetry.server_interceptors(), interceptor), options=_OPTIONS)
        statuses = HealthServicer(service.health)
        names = [name for servicer in (*service.servicers, statuses) for name in register(servicer, server)]
        reflection.enable_server_reflection(
            (*names, reflection_pb2.DESCRIPTOR.services_by_name["ServerReflection"].full_name), server
        )
        await statuses.set_all(names, ready=False)
        _listen(server, service.address, peer.certificates.of_server() if inner and peer.certificates else None)
        await server.start()
        try:
            _log.info("%s: listening on %s", name, service.address)
            _settle_memory()
            watch = asyncio.create_task(_watch_readiness(name, service, statuses, names))
            try:
                async with service.beside():
                    await stop.wished.wait()
            finally:
                watch.cancel()
            await statuses.stop()
            await service.health.be_heard(config.notice, lambda: interceptor.arrived)
            interceptor.end_endless()
            await asyncio.gather(_stop(server, interceptor, config.grace), service.drain(config.grace))
        except BaseException:
            await server.stop(0)
            raise


async def _stop(server: grpc.aio.Server, interceptor: MeshInterceptor, grace: float) -> None:
    """Lets calls end by themselves for `grace` seconds, then ends those that are left."""
    stopped = asyncio.ensure_future(server.stop(grace + _CUT))
    await asyncio.wait((stopped,), timeout=grace)
    interceptor.end_all()
    await stopped


@contextmanager
def _patient_threads() -> Generator[None]:
    """gRPC's threads never take a core from the event loop, for which they work.

    Every message wakes the thread that polls. Where all cores are busy, Linux would let it run at once, in the middle
    of the loop's work, to find one message; as a batch thread it runs when the loop waits, and finds them all.
    """
    batch = sys.platform == "linux" and os.sched_getscheduler(0) == os.SCHED_OTHER
    try:
        if batch:
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    except OSError:  # a sandbox may forbid it
        batch = False
    # Threads inherit the policy of the one that starts them.
    grpc.aio.init_grpc_aio()
    if batch:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
    try:
        yield
    finally:
        grpc.aio.shutdown_grpc_aio()


def _settle_memory() -> None:
    """What is loaded by now stays: collections need not look at it. Requests leave few cycles, so they may be rare."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)
    # What reading modules and configuration took and no longer needs goes back to the system: 3 MB.
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


async def _watch_readiness(name: str, service: Service, statuses: HealthServicer, names: Sequence[str]) -> None:
    """Keeps health in step with what the service says of itself; every change is logged with its reason."""
    last: str | None = None
    pause = _POLL / 32
    while True:
        try:
            async with asyncio.timeout(_PATIENCE):
                reason = await service.ready()
        except TimeoutError:
            reason = f"it didn't say within {_PATIENCE:.0f} s whether it is ready"
        except Exception as error:  # noqa: BLE001 - a broken check means not ready, and must not end the service
            reason = f"its readiness check failed: {error}"
        service.health.reason = reason
        if reason != last:
            if reason:
                _log.warning("%s: not ready: %s", name, reason)
            else:
                _log.info("%s: ready", name)
            if last is None or bool(reason) != bool(last):
                await statuses.set_all(names, ready=not reason)
            last = reason
        await asyncio.sleep(pause)
        pause = min(_POLL, pause * 2)


class _CannotListen(Exception):
    pass


def _listen(server: grpc.aio.Server, address: str, credentials: grpc.ServerCredentials | None) -> None:
    host, _, port = address.rpartition(":")
    # gRPC's own failure logs three lines of C++ and names no reason, so the port is tried first.
    try:
        family, kind, protocol, _, target = socket.getaddrinfo(
            host.strip("[]"), int(port), type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, kind, protocol) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(target)
            trial.listen(1)
        if credentials is None:
            server.add_insecure_port(address)
        else:
            server.add_secure_port(address, credentials)
    except (OSError, RuntimeError) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise _CannotListen(f"can't listen on {address}: {reason}") from None


def _is_loopback(address: str) -> bool:
    host = address.rpartition(":")[0].strip("[]")
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or address.startswith("unix:")


def _new_loop() -> Callable[[], asyncio.AbstractEventLoop]:
    try:
        import uvloop
    except ImportError:  # there is none for Windows
        return asyncio.new_event_loop
    return uvloop.new_event_loop


def _complaint(error: ConfigError) -> int:
    sys.stderr.write(f"{error}\n")
    return 2
