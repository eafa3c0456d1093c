"""Writes on a request what belongs to the backend that it goes to: its name of the model, and a seed."""

from __future__ import annotations

from maestro.llm.v1.chat_pb2 import ChatRequest
from maestro.llm.v1.model_pb2 import Feature
from maestro_sdk.mesh.needs import Needs
from maestro_sdk.mesh.table import Backend

_SEED = 1 << Feature.FEATURE_SEED


def seed_of(request: ChatRequest, needs: Needs) -> int | None:
    """The seed of a deterministic request that brings none, the same for the same question; None for all others."""
    if not needs.content_hash or request.HasField("seed"):
        return None
    # 31 bits: every provider takes those.
    return int(needs.content_hash[:8], 16) & 0x7FFF_FFFF


def address(request: ChatRequest, backend: Backend, seed: int | None) -> ChatRequest:
    """`request` as it goes to a backend. A seed goes where the model has them: others would warn of it."""
    request.model = backend.model
    if seed is not None:
        if backend.native & _SEED:
            request.seed = seed
        else:
            request.ClearField("seed")
    return request
