"""Models are found by id, by their only name, and by what they can."""

from collections.abc import Sequence

import pytest

from maestro.llm.v1.model_pb2 import Feature, FeatureSupport, Model, Support
from maestro_sdk.adapter.catalogue import Catalogue
from maestro_sdk.errors import CapabilityUnavailable, NotFound
from maestro_sdk.testing.scripted import ScriptedProvider


class Listing(ScriptedProvider):
    """Offers the given models, and counts how often it is asked."""

    def __init__(self, *models: Model) -> None:
        super().__init__()
        self.offered = list(models)
        self.asked = 0

    async def models(self) -> Sequence[Model]:
        self.asked += 1
        return self.offered


def model(model_id: str, *features: Feature.ValueType, support: Support.ValueType = Support.SUPPORT_NATIVE) -> Model:
    provider, _, name = model_id.partition("/")
    told = [FeatureSupport(feature=feature, support=support) for feature in features]
    return Model(id=model_id, provider=provider, name=name, features=told)


async def test_the_provider_is_asked_once_for_what_is_known() -> None:
    provider = Listing(model("a/x"), model("b/y"))
    catalogue = Catalogue(provider)
    assert [(await catalogue.find(name)).id for name in ("a/x", "b/y", "a/x")] == ["a/x", "b/y", "a/x"]
    assert provider.asked == 1


async def test_a_model_that_came_later_is_found() -> None:
    provider = Listing(model("a/x"))
    catalogue = Catalogue(provider)
    await catalogue.find("a/x")
    provider.offered.append(model("a/new"))
    assert (await catalogue.find("a/new")).name == "new"
    assert provider.asked == 2


async def test_unknown_models_are_told_with_those_that_exist() -> None:
    catalogue = Catalogue(Listing(model("a/x"), model("a/b")))
    for ask in (catalogue.find, catalogue.resolve):
        with pytest.raises(NotFound, match="has no model 'gone'; it has: a/b, a/x"):
            await ask("gone")
    with pytest.raises(NotFound, match="it has: none"):
        await Catalogue(Listing()).find("gone")


async def test_a_bare_name_is_enough_when_it_is_the_only_one() -> None:
    catalogue = Catalogue(Listing(model("a/x"), model("b/x"), model("b/y")))
    assert (await catalogue.resolve("y")).id == "b/y"
    assert (await catalogue.resolve("a/x")).id == "a/x"
    with pytest.raises(NotFound, match="'x' is the name of a/x and b/x: name one"):
        await catalogue.resolve("x")


async def test_able() -> None:
    files, batch = Feature.FEATURE_FILES, Feature.FEATURE_BATCH
    polyfilled = model("a/p", files, support=Support.SUPPORT_POLYFILLED)
    catalogue = Catalogue(Listing(model("a/x", files), polyfilled, model("a/n", files, support=Support.SUPPORT_NONE)))
    assert (await catalogue.able("a/x", files)).id == "a/x"
    assert (await catalogue.able("a/p", files)).id == "a/p"
    for name, wanted, missing in (("a/x", batch, "BATCH"), ("a/n", files, "FILES")):
        with pytest.raises(CapabilityUnavailable, match=f"{name} has no {missing}"):
            await catalogue.able(name, wanted)
