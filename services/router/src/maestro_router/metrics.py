"""What the router measures: states of backends, what their rate limits leave, attempts of all gateways."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from maestro.router.v1 import router_pb2 as pb
from maestro_router.board import Board
from maestro_sdk.service.telemetry import observe

_STATES = {value: name.removeprefix("BACKEND_STATE_").lower() for name, value in pb.BackendState.items()}


def export(board: Board) -> None:
    """Has the metrics of a board sent; they are read from its present table, which nobody changes."""

    def states() -> Iterator[tuple[float, Mapping[str, str]]]:
        for backend in board.table.backends.values():
            facts = {"backend": backend.id, "state": _STATES.get(backend.state, str(backend.state))}
            yield 1, facts | ({"reason": backend.state_reason} if backend.state_reason else {})

    def headrooms() -> Iterator[tuple[float, Mapping[str, str]]]:
        for backend in board.table.backends.values():
            told = backend.message.headroom
            if told.HasField("requests"):
                yield told.requests.remaining, {"backend": backend.id, "limit": "requests"}
            if told.HasField("tokens"):
                yield told.tokens.remaining, {"backend": backend.id, "limit": "tokens"}

    def attempts() -> Iterator[tuple[float, Mapping[str, str]]]:
        for (backend, reason), count in list(board.attempts.items()):
            yield count, {"backend": backend, "reason": reason or "OK"}

    observe("maestro.backend.state", states, "1 for the state in which a backend is, with the reason")
    observe("maestro.backend.headroom", headrooms, "What the provider's rate limits left when they were told last")
    observe("maestro.attempts", attempts, "Attempts by backend and how they ended", total=True)
