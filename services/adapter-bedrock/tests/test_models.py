"""The models as data: what is claimed, and what an operator adds or changes."""

from __future__ import annotations

from typing import Any

import pytest

from maestro.llm.v1.model_pb2 import Feature
from maestro_adapter_bedrock import models
from maestro_adapter_bedrock.models import BedrockModel
from maestro_sdk.adapter.models import is_unknown

SONNET = "anthropic.claude-sonnet-4-5-20250929-v1:0"
ARN = "arn:aws:bedrock:us-east-1:123456789012:application-inference-profile/abc"


def test_every_model_is_complete(catalogue: dict[str, BedrockModel]) -> None:
    assert len(catalogue) > 60
    for name, found in catalogue.items():
        model, wire = found.model, found.wire
        assert model.id == name == f"bedrock/{model.name}"
        assert model.provider == "bedrock"
        if name == "bedrock/mine":
            continue
        assert model.family
        assert found.has(Feature.FEATURE_EMBEDDINGS) == (wire.embed != "none")
        assert found.has(Feature.FEATURE_REASONING) == (wire.reasoning != "none")
        assert not found.has(Feature.FEATURE_TOOL_CHOICE) or wire.choices == {"auto", "any", "tool"}
        assert not found.has(Feature.FEATURE_STREAMED_TOOL_ARGS) or wire.streamed_tools
        # What the wire has not.
        assert not found.has(Feature.FEATURE_SEED)
        assert not found.has(Feature.FEATURE_LOGPROBS)


def test_profiles_are_models_of_their_own(catalogue: dict[str, BedrockModel]) -> None:
    base, us = catalogue[f"bedrock/{SONNET}"], catalogue[f"bedrock/us.{SONNET}"]
    assert (us.model_id, us.lineage, base.lineage) == (f"us.{SONNET}", SONNET, SONNET)
    assert us.features == base.features
    assert us.path == "/model/us.anthropic.claude-sonnet-4-5-20250929-v1%3A0"


def test_prices_hold_where_they_are_known(catalogue: dict[str, BedrockModel]) -> None:
    priced = {name for name, found in catalogue.items() if found.model.HasField("price")}
    assert all(name.startswith(("bedrock/global.anthropic", "bedrock/us.amazon.nova")) for name in priced)
    assert len(priced) == 7


def test_batches_are_claimed_where_they_can_be_run() -> None:
    model = f"bedrock/{SONNET}"
    assert not models.load()[model].has(Feature.FEATURE_BATCH)
    assert models.load(batches=True)[model].has(Feature.FEATURE_BATCH)


@pytest.mark.parametrize(
    ("entry", "model_id", "lineage", "known", "priced"),
    [
        ({"name": "some.new-model-v1:0"}, "some.new-model-v1:0", "some.new-model-v1:0", False, False),
        ({"name": f"us-gov.{SONNET}"}, f"us-gov.{SONNET}", SONNET, True, False),
        ({"name": "sonnet", "like": f"global.{SONNET}"}, f"global.{SONNET}", SONNET, True, True),
        ({"name": "ours", "like": SONNET, "model_id": ARN}, ARN, SONNET, True, False),
        ({"name": "ours", "like": f"global.{SONNET}", "model_id": ARN}, ARN, SONNET, True, False),
        ({"name": "ours", "model_id": ARN}, ARN, ARN, False, False),
        ({"name": f"global.{SONNET}", "max_output_tokens": 5}, f"global.{SONNET}", SONNET, True, True),
    ],
)
def test_what_an_operator_adds(entry: Any, model_id: str, lineage: str, known: bool, priced: bool) -> None:
    found = models.load([entry])[f"bedrock/{entry['name']}"]
    assert (found.model_id, found.lineage) == (model_id, lineage)
    assert is_unknown(found.model) != known
    assert found.has(Feature.FEATURE_TOOLS) == known
    assert found.model.HasField("price") == priced
    assert found.has(Feature.FEATURE_CHAT)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"name": "x", "wire": "nope"}, "nope"),
        ({"name": "x", "like": "nope"}, "nope"),
        ({"name": "x", "native": ["NOPE"]}, "NOPE"),
        ({"name": "x", "colour": "red"}, "colour"),
        ({"family": "x"}, "name"),
    ],
)
def test_entries_that_are_wrong(entry: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        models.load([entry])
