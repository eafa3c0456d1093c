"""The record of a job: what its callers see, who made it, and how far its keeper is."""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import orjson

from maestro.event.v1.event_pb2 import Caller as CallerMessage
from maestro.job.v1 import job_pb2 as pb
from maestro_gateway.identity import Caller, Principal

QUEUED, RUNNING = pb.JobState.JOB_STATE_QUEUED, pb.JobState.JOB_STATE_RUNNING
CANCELLING, CANCELLED = pb.JobState.JOB_STATE_CANCELLING, pb.JobState.JOB_STATE_CANCELLED
COMPLETED, FAILED = pb.JobState.JOB_STATE_COMPLETED, pb.JobState.JOB_STATE_FAILED
OVER = frozenset({COMPLETED, FAILED, CANCELLED})
_VERSION = 1


@dataclass(slots=True)
class Creator:
    """Who made a job: its items run in that name."""

    tenant: str
    key_id: str = ""
    subject: str = ""
    scopes: tuple[str, ...] = ()
    personas: tuple[str, ...] = ()
    skills: tuple[str, ...] = ()
    caller: CallerMessage = field(default_factory=CallerMessage)

    @classmethod
    def of(cls, principal: Principal, caller: Caller) -> Creator:
        """Who asks now."""
        return cls(
            principal.tenant,
            principal.key_id,
            principal.subject,
            tuple(sorted(principal.scopes)),
            tuple(sorted(principal.personas)),
            tuple(sorted(principal.skills)),
            caller.message(),
        )

    def principal(self) -> Principal:
        """The principal of the items."""
        return Principal(
            tenant=self.tenant,
            key_id=self.key_id,
            scopes=frozenset(self.scopes),
            source="key",
            subject=self.subject,
            personas=frozenset(self.personas),
            skills=frozenset(self.skills),
        )


@dataclass(slots=True)
class JobRecord:
    """Times are Unix time. `job` is what callers see; its counts and sums are those of the first `folded` results.

    `ready` says that all items are stored: before, nobody sees it. Its keeper is `owner`, until `until`. `told` are the
    events of which each job has one, that are published; `told_at` is when its progress was told last.
    """

    job: pb.Job
    creator: Creator
    digest: str
    max_parallel: int = 0
    max_runs: int = 3
    max_cost: int | None = None
    """Nano-dollars."""
    keep: float = 0.0
    ready: bool = False
    folded: int = 0
    owner: str = ""
    until: float = 0.0
    told: tuple[str, ...] = ()
    told_at: float = 0.0
    told_count: int = 0
    """Items that had ended when its progress was told last."""
    stopped: float = 0.0
    """When it was cancelled."""
    cleared: bool = False
    """Whether its queue is gone."""
    sorted: bool = False
    """Whether the items of a job that asks for economy were looked through: before, none runs."""
    batched: int = 0
    """Items that are in batches of providers."""
    aside: int = 0
    """Items that wait to be tried again, out of the queue."""
    revision: int = 0

    @property
    def tenant(self) -> str:
        """Whose it is."""
        return self.creator.tenant

    @property
    def job_id(self) -> str:
        """Its identifier."""
        return self.job.job_id

    @property
    def over(self) -> bool:
        """Whether nothing more comes of it."""
        return self.job.state in OVER

    @property
    def active(self) -> bool:
        """Whether something is to be done for it."""
        return not (self.over and self.cleared)

    @property
    def waits(self) -> bool:
        """Whether items of it are left to run."""
        return self.job.state in {QUEUED, RUNNING} and self.ended < self.job.progress.total

    @property
    def runs(self) -> bool:
        """Whether its queue may be asked: one that asks for economy has to be sorted before."""
        return self.sorted or not self.job.economy

    @property
    def deadline(self) -> float:
        """When the items left fail."""
        return self.job.deadline.ToNanoseconds() / 1e9

    @property
    def expires(self) -> float:
        """When its results are deleted; 0 before it is over."""
        return self.job.expire_time.ToNanoseconds() / 1e9

    @property
    def ended(self) -> int:
        """Items that have a result."""
        progress = self.job.progress
        return progress.succeeded + progress.failed + progress.cancelled

    def encode(self) -> bytes:
        """As it is stored."""
        creator = self.creator
        return orjson.dumps(
            {
                "version": _VERSION,
                "job": _text(self.job.SerializeToString()),
                "tenant": creator.tenant,
                "key_id": creator.key_id,
                "subject": creator.subject,
                "scopes": creator.scopes,
                "personas": creator.personas,
                "skills": creator.skills,
                "caller": _text(creator.caller.SerializeToString()),
                **{name: getattr(self, name) for name in _PLAIN},
            }
        )

    @classmethod
    def decode(cls, data: bytes, revision: int) -> JobRecord:
        """What was stored. Raises `ValueError`."""
        found: Any = orjson.loads(data)
        try:
            if found["version"] != _VERSION:
                raise ValueError(f"a job of version {found['version']} can't be read")
            creator = Creator(
                found["tenant"],
                found["key_id"],
                found["subject"],
                _strings(found["scopes"]),
                _strings(found["personas"]),
                _strings(found["skills"]),
                CallerMessage.FromString(base64.b64decode(found["caller"])),
            )
            job = pb.Job.FromString(base64.b64decode(found["job"]))
            plain: dict[str, Any] = {name: found[name] for name in _PLAIN if name not in _LATER or name in found}
            plain["told"] = tuple(found["told"])
        except (KeyError, TypeError) as error:
            raise ValueError(f"no job: {error!r}") from None
        return cls(job=job, creator=creator, revision=revision, **plain)

    def copy(self) -> JobRecord:
        """One that may be changed."""
        return JobRecord.decode(self.encode(), self.revision)


_PLAIN = (
    "digest",
    "max_parallel",
    "max_runs",
    "max_cost",
    "keep",
    "ready",
    "folded",
    "owner",
    "until",
    "told",
    "told_at",
    "told_count",
    "stopped",
    "cleared",
    "sorted",
    "batched",
    "aside",
)
_LATER = frozenset({"aside"})
"""What records of before do not have."""


def _text(data: bytes) -> str:
    return base64.b64encode(data).decode()


def _strings(found: Sequence[Any]) -> tuple[str, ...]:
    return tuple(str(each) for each in found)
