"""What only the mesh tells, in answers of other APIs: their clients pass over the field `maestro`. Pure."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

from maestro.llm.v1.chat_pb2 import Warning  # noqa: A004 - the contract's name
from maestro.llm.v1.usage_pb2 import Cost


def facts(
    provider: str, attempt: int, route: str, cost: Cost | None, warnings: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Who answered, and for how much; `route` is empty when the model was named directly."""
    return {
        "provider": provider,
        "route": route or None,
        "attempt": attempt,
        "cost_usd": cost.usd if cost is not None else None,
        "warnings": warnings,
    }


def warnings_data(
    unknown: Iterable[str], foreign: Iterable[str], provider: str, told: Iterable[Warning]
) -> list[dict[str, Any]]:
    """What was not done as asked.

    `unknown` are fields that nobody reads here, `foreign` such as mean nothing to `provider`.
    """
    return [
        *({"code": "unknown_field", "message": f"{name} has no meaning here and was ignored", "field": name}
          for name in unknown),
        *({"code": "unsupported_parameter", "message": f"{name} means nothing to {provider}", "field": name}
          for name in foreign),
        *({"code": each.code, "message": each.message, "field": each.field or None} for each in told),
    ]  # fmt: skip


def foreign_to(provider: str, own: Collection[str], passed: Sequence[str]) -> Sequence[str]:
    """The parameters of `passed` that `provider` does not understand; those of `own` understand all."""
    return () if provider in own else passed
