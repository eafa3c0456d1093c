"""Which items of a job go together to a provider's batch API, and how far they are there. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Self

import orjson

from maestro.llm.v1.batch_pb2 import Batch, BatchItem, BatchState
from maestro.llm.v1.model_pb2 import Feature
from maestro_gateway.mesh import Mesh
from maestro_sdk.errors import MaestroError
from maestro_sdk.mesh.needs import Needs, needs_of, needs_of_embedding
from maestro_sdk.mesh.plan import Plan
from maestro_sdk.mesh.table import Backend

PLANNED, TRYING, OPEN, OVER = "planned", "trying", "open", "over"
MOST_ITEMS = 10_000
MOST_BYTES = 64 * 2**20
"""Of one batch: less than any provider takes."""
_SKEW = 120.0
"""Seconds by which a provider's clock may differ."""
_BATCH = 1 << Feature.FEATURE_BATCH
_ENDED = frozenset(
    (
        BatchState.BATCH_STATE_COMPLETED,
        BatchState.BATCH_STATE_FAILED,
        BatchState.BATCH_STATE_CANCELLED,
        BatchState.BATCH_STATE_EXPIRED,
    )
)


@dataclass(slots=True)
class Bundle:
    """One batch of one backend; `name` finds it again at the provider.

    It is `trying` from before the provider is asked until it has a `batch_id`: a gateway that dies meanwhile leaves it
    so, and the next one looks for it before it asks again.
    """

    name: str
    backend: str
    model: str
    indices: list[int]
    state: str = PLANNED
    batch_id: str = ""
    tried: float = 0.0
    stopped: bool = False
    """Whether the provider was asked to stop it."""
    asked: float = 0.0
    """When the provider was asked last, in Unix time."""
    tries: int = 0

    def item_id(self, index: int) -> str:
        """The name of an item in the batch: nobody else's batch has one like it."""
        return f"{self.name}-{index}"

    def index_of(self, item_id: str) -> int | None:
        """The place of an item in the job; None for an item of another batch."""
        start, _, number = item_id.rpartition("-")
        return int(number) if start == self.name and number.isdigit() else None


@dataclass(slots=True)
class Economy:
    """The batches of a job, and who follows them until when. `planned` says that these are all."""

    owner: str = ""
    until: float = 0.0
    planned: bool = False
    bundles: list[Bundle] = field(default_factory=list[Bundle])
    revision: int = 0

    @property
    def left(self) -> int:
        """Items that are in batches still."""
        return sum(len(bundle.indices) for bundle in self.bundles if bundle.state != OVER)

    def encode(self) -> bytes:
        """As it is stored."""
        found = asdict(self)
        del found["revision"]
        return orjson.dumps(found)

    @classmethod
    def decode(cls, data: bytes, revision: int) -> Self:
        """What was stored."""
        found: Any = orjson.loads(data)
        bundles = [Bundle(**bundle) for bundle in found.pop("bundles")]
        return cls(**found, bundles=bundles, revision=revision)


def fits(item: BatchItem, mesh: Mesh, tenant: str) -> Backend | None:
    """The backend that answers an item, when it can do so by its provider's batch API and as it is; else None."""
    needs = _needs(item, tenant)
    plan = _plan(needs, mesh)
    if needs is None or plan is None:
        return None
    backend = plan.kept[0].choice.backend if plan.kept else None
    # A batch has no place for what the kit does around a call.
    wanted = (needs.required & ~(1 << Feature.FEATURE_STREAMING)) | _BATCH
    return backend if backend is not None and backend.native & wanted == wanted else None


def route_of(item: BatchItem, mesh: Mesh, tenant: str) -> str:
    """The route that leads an item to its backend; empty when the model was named directly."""
    plan = _plan(_needs(item, tenant), mesh)
    return plan.route.name if plan is not None else ""


def _needs(item: BatchItem, tenant: str) -> Needs | None:
    match item.WhichOneof("request"):
        case "chat":
            return needs_of(item.chat, tenant)
        case "embed" if item.embed.model:
            return needs_of_embedding(item.embed, tenant)
        case _:
            return None


def _plan(needs: Needs | None, mesh: Mesh) -> Plan | None:
    try:
        return mesh.plan(needs) if needs is not None else None
    except MaestroError:
        return None


def bundle(job_id: str, found: Iterable[tuple[int, int, Backend]]) -> list[Bundle]:
    """Batches of items, which are given as (index, size in bytes, backend)."""
    bundles: list[Bundle] = []
    current: dict[str, tuple[Bundle, int]] = {}
    for index, size, backend in found:
        held, bytes_so_far = current.get(backend.id, (None, 0))
        if held is None or len(held.indices) >= MOST_ITEMS or bytes_so_far + size > MOST_BYTES:
            name = f"maestro-{job_id.removeprefix('job_')}-{len(bundles):03d}"
            held, bytes_so_far = Bundle(name, backend.id, backend.model, []), 0
            bundles.append(held)
        held.indices.append(index)
        current[backend.id] = held, bytes_so_far + size
    return bundles


def labels_of(name: str) -> Mapping[str, str]:
    """The labels by which a provider that keeps any knows a batch."""
    return {"maestro_batch": name}


def is_over(batch: Batch) -> bool:
    """Whether a batch has all the results that it will have."""
    return batch.state in _ENDED


def is_named(batch: Batch, name: str) -> bool:
    """Whether a provider's batch is that one for sure."""
    return batch.metadata.get("maestro_batch") == name or batch.display_name.startswith(name)


def may_be(batch: Batch, held: Bundle) -> bool:
    """Whether a batch of a provider that keeps no names may be that one."""
    if batch.metadata or batch.display_name:
        return False
    begun = batch.create_time.ToNanoseconds() / 1e9
    return begun >= held.tried - _SKEW and batch.counts.total in {0, len(held.indices)}
