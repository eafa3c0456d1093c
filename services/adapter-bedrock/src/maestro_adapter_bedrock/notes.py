"""What a translation could not carry: warnings for the caller, or one error under `strict`."""

from __future__ import annotations

from maestro.llm.v1 import chat_pb2
from maestro_sdk.errors import UnsupportedParameter, Violation


class Notes:
    """Collects what is not done as asked; `settle` comes last, so that a strict caller hears all of it at once."""

    def __init__(self, strict: bool) -> None:
        self._strict = strict
        self.warnings: list[chat_pb2.Warning] = []

    def unsupported(self, field: str, message: str) -> None:
        """Notes that the field at that path is not obeyed, or only in part."""
        self.warnings.append(chat_pb2.Warning(code="unsupported_parameter", message=f"{field}: {message}", field=field))

    def settle(self) -> None:
        """Raises `UnsupportedParameter` for everything noted, under `strict`."""
        if self._strict and self.warnings:
            raise UnsupportedParameter(
                "; ".join(note.message for note in self.warnings),
                violations=[Violation(note.field, note.message) for note in self.warnings],
            )
