"""What is known of the models of servers: what a server tells, and what the configuration adds."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass

from maestro.llm.v1.model_pb2 import Feature, FeatureSupport, Model, Support
from maestro_adapter_local.settings import ModelSettings, ServerSettings

PROVIDER = "local"
BASIC_FEATURES = ("CHAT", "STREAMING", "SYSTEM_PROMPT", "TEMPERATURE", "STOP_SEQUENCES", "SEED")
"""What is claimed of an unknown model. Tools, schemas and images depend on the model: the configuration tells."""
_ANY = ModelSettings(match="*")


@dataclass(frozen=True, slots=True)
class Served:
    """A model as its server tells of it. `features` None means that the server does not say what it can do."""

    name: str
    context_window: int | None = None
    features: Sequence[str] | None = None
    family: str = ""
    think_levels: bool = False
    """Whether it reasons in levels (low, medium, high), where others only know on and off."""


class Knowledge:
    """What the configuration says of the models of one server."""

    def __init__(self, server: ServerSettings) -> None:
        self.entries: Sequence[ModelSettings] = (*server.models, _ANY)
        self._server = server

    def place(self, name: str) -> int:
        """The place of the first entry that fits the model."""
        return next(place for place, entry in enumerate(self.entries) if fnmatch.fnmatchcase(name, entry.match))

    def without(self, name: str) -> frozenset[str]:
        """The features that the configuration takes away from the model."""
        return frozenset((*self._server.without, *self.entries[self.place(name)].without))

    def think_levels(self, served: Served) -> bool:
        """Whether the model reasons in levels."""
        said = self.entries[self.place(served.name)].think_levels
        return served.think_levels if said is None else said

    def describe(self, served: Served, place: int | None = None) -> Model:
        """The model as the contract describes it, by the entry at `place`, or the first one that fits its name."""
        return describe(served, self._server, self.entries[self.place(served.name) if place is None else place])


def describe(served: Served, server: ServerSettings, known: ModelSettings) -> Model:
    """The model as the contract describes it; `known` is what the configuration says of it."""
    told = BASIC_FEATURES if served.features is None else served.features
    names = dict.fromkeys((*told, *server.features, *known.features))
    without = {*server.without, *known.without}
    if "CHAT" in without:
        # All other features are ways of chatting.
        without |= set(names) - {"EMBEDDINGS"}
    model = Model(
        id=f"{PROVIDER}/{served.name}",
        provider=PROVIDER,
        name=served.name,
        family=known.family or served.family,
        tags=known.tags,
        description=f"Served by {server.name}",
        features=[
            FeatureSupport(feature=Feature.Value(f"FEATURE_{name}"), support=Support.SUPPORT_NATIVE)
            for name in names
            if name not in without
        ],
    )
    window = known.context_window or served.context_window
    if window:
        model.context_window = min(window, 2**31 - 1)
    if known.max_output_tokens:
        model.max_output_tokens = known.max_output_tokens
    return model
