"""The models that Claude Code drives: what the API's own models can do, less what a run of Claude Code can't."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from maestro.llm.v1.model_pb2 import Feature, Model, Support
from maestro_adapter_claude.models import PROVIDER as API_PROVIDER
from maestro_adapter_claude.models import ClaudeModel
from maestro_sdk.adapter.models import support_of

PROVIDER = "claude-code"
_FEATURES = (
    Feature.FEATURE_CHAT,
    Feature.FEATURE_STREAMING,
    Feature.FEATURE_SYSTEM_PROMPT,
    Feature.FEATURE_TOOLS,
    Feature.FEATURE_PARALLEL_TOOLS,
    Feature.FEATURE_STREAMED_TOOL_ARGS,
    Feature.FEATURE_VISION,
    Feature.FEATURE_DOCUMENTS,
    Feature.FEATURE_REASONING,
)


def load(names: Sequence[str], known: Mapping[str, ClaudeModel]) -> dict[str, ClaudeModel]:
    """The models of those names by id ("claude-code/claude-…"). Raises `ValueError` for a name that is not known.

    Prices are the API's: a run is paid by the key that the adapter has.
    """
    models: dict[str, ClaudeModel] = {}
    for name in names:
        found = known.get(f"{API_PROVIDER}/{name}")
        if found is None:
            raise ValueError(f"claude_code.models: there is no model {name!r}; there are: {', '.join(known)}")
        model = Model()
        model.CopyFrom(found.model)
        model.id, model.provider = f"{PROVIDER}/{name}", PROVIDER
        model.description = f"{name} driven by Claude Code: a process per answer."
        model.ClearField("features")
        for feature in _FEATURES:
            if support_of(found.model, feature) != Support.SUPPORT_NONE:
                model.features.add(feature=feature, support=Support.SUPPORT_NATIVE)
        for price in (*([model.price] if model.HasField("price") else []), *model.announced_prices):
            price.batch_factor = ""
        models[model.id] = ClaudeModel(model, found.wire)
    return models
