"""A case: one promise of the contract, as a function over a `Target`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from enum import Enum

from maestro.llm.v1.model_pb2 import Feature
from maestro_sdk.conformance.target import Target

Check = Callable[[Target], Awaitable[str]]
"""Proves the promise and returns what was seen. Raises `Broken`, or `NotApplicable`."""

ANSWERS = ("answers", "started_first", "finish_last", "indexes")
"""What every case stands on that reads an answer."""


class Subject(Enum):
    """What a case is about: without it there is nothing to run."""

    SERVER = "server"
    MODEL = "model"
    CHAT = "chat"
    """A model that chats. At a model that does not claim CHAT these cases are not declared."""


@dataclass(frozen=True, slots=True)
class Case:
    """`needs` are names of cases; while one of them fails, this one would only repeat its failure."""

    name: str
    title: str
    contract: str
    check: Check
    needs: tuple[str, ...] = ()
    feature: Feature.ValueType = Feature.FEATURE_UNSPECIFIED
    """The feature that it proves; UNSPECIFIED for a core case, which every server has to pass."""
    subject: Subject = Subject.CHAT

    @property
    def is_core(self) -> bool:
        """Whether it can't be left out."""
        return self.feature == Feature.FEATURE_UNSPECIFIED


def core(
    title: str, contract: str, *, needs: tuple[str, ...] = (), subject: Subject = Subject.CHAT
) -> Callable[[Check], Case]:
    """Makes a core case out of a function; its name is the function's."""

    def make(check: Check) -> Case:
        return Case(_name(check), title, contract, check, needs, subject=subject)

    return make


def feature(
    kind: Feature.ValueType,
    title: str,
    contract: str,
    *,
    needs: tuple[str, ...] = (),
    subject: Subject = Subject.CHAT,
) -> Callable[[Check], Case]:
    """Makes a case of a feature out of a function; its name is the function's. A feature may have several cases."""

    def make(check: Check) -> Case:
        stands_on = (*ANSWERS, *needs) if subject is Subject.CHAT else needs
        return Case(_name(check), title, contract, check, stands_on, kind, subject)

    return make


def _name(check: Check) -> str:
    return str(getattr(check, "__name__", check))
