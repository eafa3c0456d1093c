"""What a servicer serves, found from the generated classes that it derives from."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from importlib import import_module
from typing import Any

import grpc


def register(servicer: object, server: grpc.aio.Server) -> list[str]:
    """Adds a servicer to a server, once per generated base class; the full names of its services.

    Raises `TypeError` for an object that has no such base.
    """
    found = list(_generated(servicer))
    if not found:
        raise TypeError(f"{type(servicer).__name__} derives from no generated servicer")
    for add, _ in found:
        add(servicer, _Plain(server))
    return [name for _, name in found]


def services_of(servicer: object) -> list[str]:
    """The full names of the services that an object serves; none when it is no servicer."""
    return [name for _, name in _generated(servicer)]


def _generated(servicer: object) -> Iterator[tuple[Callable[[object, Any], None], str]]:
    """The generated function that adds it, which stands in `x_pb2_grpc`, and the name, which stands in `x_pb2`."""
    for cls in type(servicer).__mro__:
        if cls.__module__.endswith("_pb2_grpc") and cls.__name__.endswith("Servicer"):
            generated = sys.modules[cls.__module__]
            # A service without messages of its own does not import its file.
            messages = import_module(cls.__module__.removesuffix("_grpc"))
            service = messages.DESCRIPTOR.services_by_name[cls.__name__.removesuffix("Servicer")]
            yield getattr(generated, f"add_{cls.__name__}_to_server"), service.full_name


class _Plain:
    """A server as generated code sees it, which finds methods by name instead of registering each one.

    `grpc.aio` awaits the next call of every registered method, all of them anew for each call that comes: with a dozen
    methods that costs more than the look-up by name that it saves.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self.add_generic_rpc_handlers = server.add_generic_rpc_handlers

    def add_registered_method_handlers(self, service: str, handlers: object) -> None:
        """Does nothing: the same handlers were added as generic ones."""
