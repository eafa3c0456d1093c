"""What a translation could not carry: warnings for the caller, or one error under `strict`."""

from __future__ import annotations

from collections.abc import Sequence

from maestro.llm.v1 import chat_pb2
from maestro.llm.v1.message_pb2 import Origin
from maestro_sdk.errors import UnsupportedParameter, Violation

FOREIGN = "foreign_content_dropped"
"""The code of a warning about a part that was left out because only another provider understands it."""


class Notes:
    """Collects what is not done as asked; `settle` comes last, so that a strict caller hears all of it at once."""

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self.warnings: list[chat_pb2.Warning] = []

    def unsupported(self, field: str, message: str) -> None:
        """Notes that the field at that path is not obeyed, or only in part."""
        self.warnings.append(chat_pb2.Warning(code="unsupported_parameter", message=f"{field}: {message}", field=field))

    def foreign(self, field: str, origin: Origin, provider: str) -> None:
        """Notes that a part was left out which only `origin` understands; see `foreign`."""
        self.warnings.append(foreign(field, origin, provider))

    def lost(self, path: str, losses: Sequence[tuple[str, str]]) -> None:
        """Notes what a schema lost: JSON pointers within the field `path`, and why."""
        for pointer, why in losses:
            field = f"{path}#{pointer}"
            self.warnings.append(chat_pb2.Warning(code="schema_rewritten", message=f"{field}: {why}", field=field))

    def settle(self) -> None:
        """Raises `UnsupportedParameter` for everything noted, under `strict`; foreign content is no parameter."""
        if self._strict:
            refuse_warnings(self.warnings)


def foreign(field: str, origin: Origin, provider: str) -> chat_pb2.Warning:
    """Tells that `provider`'s adapter left out a part which only `origin` understands."""
    owner = origin.provider
    if owner == provider:
        # Another wire or another model of the same one.
        owner = " ".join(word for word in (owner, origin.api, origin.model) if word)
    message = f"{field} was not sent: only {owner} understands it"
    return chat_pb2.Warning(code=FOREIGN, message=message, field=field)


def refuse_warnings(warnings: Sequence[chat_pb2.Warning]) -> None:
    """Raises `UnsupportedParameter` for what `strict` forbids to leave out.

    Not for what only another provider understands: nobody asked for it, and the contract demands that it is dropped.
    """
    if refused := [each for each in warnings if each.code != FOREIGN]:
        raise UnsupportedParameter(
            "; ".join(each.message for each in refused),
            violations=[Violation(each.field, each.message) for each in refused],
        )
