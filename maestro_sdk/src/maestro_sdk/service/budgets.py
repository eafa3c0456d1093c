"""The section of a configuration that says what may be spent."""

from __future__ import annotations

import hashlib
import re
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Any, Literal, Self, cast

from pydantic import Field, field_validator, model_validator

from maestro_sdk.service.values import Duration, Settings

MOST_USD = 9_000_000
"""Of one budget: a store counts nano-dollars exactly up to there."""
_LABEL = "label:"
_EACH = ("tenant", "key", "persona")

Names = tuple[Annotated[str, Field(min_length=1, max_length=256)], ...]


class BudgetConfig(Settings):
    """What the requests that it holds for may cost in a calendar day or month, UTC.

    It holds for requests that fit `tenants`, `keys` (identifiers or names), `personas` and `labels` (value or values by
    name); what is empty fits all. `each` splits it: one count for each tenant, key, persona or value of a label,
    instead of one for all of them together.

    A request reserves the most that it may cost: one without `max_tokens` is taken for an answer of `longest_answer`
    tokens, or of the model's own limit where that is less. It waits up to `wait` for others to give back what they did
    not use. `unpriced` says whether models without a price count as free, or are refused, by a budget in money.
    """

    tenants: Names = ()
    keys: Names = ()
    personas: Names = ()
    labels: dict[str, Names] = Field(default_factory=dict[str, Names])
    each: tuple[str, ...] = ()
    period: Literal["day", "month"]
    usd: Annotated[Decimal, Field(gt=0, le=MOST_USD, decimal_places=9)] | None = None
    tokens: Annotated[int, Field(ge=1, le=10**15, strict=True)] | None = None
    thresholds: tuple[Annotated[float, Field(gt=0, le=1)], ...] = (0.5, 0.8, 1.0)
    action: Literal["reject", "degrade"] = "reject"
    degrade_to: str = ""
    wait: Annotated[Duration, Field(le=30)] = 2.0
    longest_answer: Annotated[int, Field(ge=1, le=10**7)] = 16_000
    unpriced: Literal["free", "reject"] = "free"

    @field_validator("labels", mode="before")
    @classmethod
    def _read_labels(cls, value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        found = cast("dict[str, Any]", value)
        return {name: (each,) if isinstance(each, str) else each for name, each in found.items()}

    @field_validator("labels")
    @classmethod
    def _check_labels(cls, value: dict[str, Names]) -> dict[str, Names]:
        if empty := next((name for name, allowed in value.items() if not allowed), None):
            raise ValueError(f"{empty!r} has no values, so this would hold for nobody")
        return value

    @field_validator("each")
    @classmethod
    def _check_each(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for name in value:
            if name not in _EACH and not re.fullmatch(rf"{_LABEL}.{{1,64}}", name):
                raise ValueError(f"{name!r} is not one of {', '.join(_EACH)}, {_LABEL}NAME")
        if len(set(value)) < len(value):
            raise ValueError("names something twice")
        return value

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.usd is None and self.tokens is None:
            raise ValueError("limits nothing: give usd, tokens or both")
        if self.action == "degrade" and not self.degrade_to:
            raise ValueError("action: degrade needs degrade_to, the route or alias that requests then take")
        if self.action == "reject" and self.degrade_to:
            raise ValueError("degrade_to needs action: degrade")
        if list(self.thresholds) != sorted(set(self.thresholds)):
            raise ValueError("thresholds have to grow, such as [0.5, 0.8, 1.0]")
        return self

    @property
    def nano_usd(self) -> int | None:
        """The limit in nano-dollars."""
        return None if self.usd is None else int(self.usd * 10**9)

    @cached_property
    def filters(self) -> str:
        """Names which requests it counts, and how they are split; empty when it counts all."""
        narrowed = (self.tenants, self.keys, self.personas, self.labels)
        if not any(narrowed):
            return ""
        return hashlib.sha256(repr((*map(_sorted, narrowed), self.each)).encode()).hexdigest()[:8]

    @property
    def own(self) -> str | None:
        """Whose it is alone: a tenant, "" for the one that a count stands for; None when tenants share a count."""
        if "tenant" in self.each:
            return ""
        return self.tenants[0] if len(self.tenants) == 1 else None


def _sorted(names: Names | dict[str, Names]) -> list[Any]:
    if isinstance(names, dict):
        return sorted((name, sorted(values)) for name, values in names.items())
    return sorted(names)


def label_of(each: str) -> str:
    """The label that an entry of `each` names; empty when it names none."""
    return each.removeprefix(_LABEL) if each.startswith(_LABEL) else ""
