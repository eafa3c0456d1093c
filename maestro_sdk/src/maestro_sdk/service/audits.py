"""The sections of a configuration that say what the audit keeps."""

from __future__ import annotations

from typing import Annotated, Any, Self

from pydantic import Field, field_validator, model_validator

from maestro_sdk.service.patterns import problem_of
from maestro_sdk.service.values import Duration, Settings, Size

RULES = ("secret", "email", "card", "iban", "ip", "phone")
"""The rules of redaction that there are, in the order in which they are applied."""
_LONGEST_PATTERN = 200
_OWN = "{name: badge, pattern: 'B-[0-9]{6}'}"


class RuleConfig(Settings):
    """A rule of redaction: one that there is, by its name alone, or one's own: what `pattern` finds becomes [NAME]."""

    name: Annotated[str, Field(pattern=r"^[a-z][a-z0-9_-]{0,31}$")]
    pattern: Annotated[str, Field(min_length=1, max_length=_LONGEST_PATTERN)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _read_name(cls, value: Any) -> Any:
        return {"name": value} if isinstance(value, str) else value

    @field_validator("pattern")
    @classmethod
    def _check_pattern(cls, value: str | None) -> str | None:
        if value is not None and (problem := problem_of(value)):
            raise ValueError(problem)
        return value

    @model_validator(mode="after")
    def _check_name(self) -> Self:
        if self.pattern is None and self.name not in RULES:
            raise ValueError(f"{self.name!r} is no rule; there are {', '.join(RULES)}, and your own as {_OWN}")
        if self.pattern is not None and self.name in RULES:
            raise ValueError(f"{self.name!r} is the name of a rule that is there already")
        return self


EVERY_RULE = tuple(RuleConfig(name=name) for name in RULES)


class TenantAuditConfig(Settings):
    """What is kept of one tenant's calls.

    With `content` requests and answers are recorded, once the rules of `redact` were applied to them, for
    `content_retention`. `retention` is that of the tenant's audit records, where it is not the mesh's.
    """

    content: bool = False
    redact: tuple[RuleConfig, ...] = EVERY_RULE
    content_retention: Annotated[Duration, Field(ge=60)] = 30 * 86400.0
    retention: Annotated[Duration, Field(ge=3600)] | None = None


class AuditConfig(Settings):
    """The audit of the mesh: how long records are kept, and most bytes of one request and its answer as recorded."""

    retention: Annotated[Duration, Field(ge=3600)] = 400 * 86400.0
    content_limit: Annotated[Size, Field(ge=4096, le=8 * 2**20)] = 2**20
