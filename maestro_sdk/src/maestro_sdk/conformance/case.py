"""A case: one promise of the contract, as a function over a `Target`."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from maestro.llm.v1.model_pb2 import Feature
from maestro_sdk.conformance.target import Target

Check = Callable[[Target], Awaitable[str]]
"""Proves the promise and returns what was seen. Raises `Broken`, or `NotApplicable`."""

ANSWERS = ("answers", "started_first", "finish_last", "indexes")
"""What every case stands on that reads an answer."""


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
    chats: bool = True
    """Whether it needs a model to talk to."""

    @property
    def is_core(self) -> bool:
        """Whether it can't be left out."""
        return self.feature == Feature.FEATURE_UNSPECIFIED


def core(title: str, contract: str, *, needs: tuple[str, ...] = (), chats: bool = True) -> Callable[[Check], Case]:
    """Makes a core case out of a function; its name is the function's."""

    def make(check: Check) -> Case:
        return Case(_name(check), title, contract, check, needs, chats=chats)

    return make


def feature(
    kind: Feature.ValueType, title: str, contract: str, *, needs: tuple[str, ...] = ()
) -> Callable[[Check], Case]:
    """Makes the case of a feature out of a function; its name is the function's."""

    def make(check: Check) -> Case:
        return Case(_name(check), title, contract, check, (*ANSWERS, *needs), kind)

    return make


def _name(check: Check) -> str:
    return str(getattr(check, "__name__", check))
