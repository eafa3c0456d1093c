"""The models of a provider by id, as servicers look them up for each call."""

from __future__ import annotations

from maestro.llm.v1.model_pb2 import Feature, Model
from maestro_sdk.adapter.models import supports
from maestro_sdk.adapter.provider import Provider
from maestro_sdk.errors import CapabilityUnavailable, NotFound


class Catalogue:
    """What a provider has, read anew when it is asked for something else."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._models: dict[str, Model] = {}

    async def find(self, name: str) -> Model:
        """The model with the id "provider/name". Raises `NotFound` naming those that exist."""
        model = self._models.get(name)
        if model is None:
            await self._read()
            model = self._models.get(name)
        if model is None:
            raise self._unknown(name)
        return model

    async def resolve(self, name: str) -> Model:
        """The model with that id, or the only one with that bare name. Raises `NotFound`."""
        if not self._named(name):
            await self._read()
            if not self._named(name):
                raise self._unknown(name)
        found = self._named(name)
        if len(found) > 1:
            raise NotFound(f"{name!r} is the name of {' and '.join(sorted(model.id for model in found))}: name one")
        return found[0]

    async def able(self, model_id: str, feature: Feature.ValueType) -> Model:
        """The model, when it has `feature`. Raises `NotFound` or `CapabilityUnavailable`."""
        model = await self.find(model_id)
        if not supports(model, feature):
            missing = Feature.Name(feature).removeprefix("FEATURE_")
            raise CapabilityUnavailable(f"{model_id} has no {missing}")
        return model

    def _named(self, name: str) -> list[Model]:
        if name in self._models:
            return [self._models[name]]
        return [model for model in self._models.values() if model.name == name]

    def _unknown(self, name: str) -> NotFound:
        known = ", ".join(sorted(self._models)) or "none"
        return NotFound(f"{self._provider.name} has no model {name!r}; it has: {known}")

    async def _read(self) -> None:
        self._models = {model.id: model for model in await self._provider.models()}
