"""What a server, or one model behind it, understands of the chat-completions wire."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Literal

from maestro.llm.v1.chat_pb2 import ReasoningEffort
from maestro.llm.v1.model_pb2 import Feature, Model
from maestro_sdk.adapter.models import supports
from maestro_sdk.adapter.plain_schema import Limits
from maestro_sdk.adapter.strict_subset import StrictSubset

EFFORTS: Mapping[str, str] = {
    "off": "none",
    "minimal": "minimal",
    "low": "low",
    "medium": "medium",
    "high": "high",
    "max": "max",
}
"""The contract's efforts and OpenAI's words for them."""


@dataclass(frozen=True, slots=True)
class Dialect:
    """The differences between servers. The defaults fit a server of which nothing is known but that it is compatible.

    A request that needs what a dialect lacks gets a warning, or an error under `strict`; content that a dialect
    can't carry is always an error.
    """

    provider: str
    """Who answers: the key of `provider_options` and `provider_metadata`, and the provider of `started`."""
    api: str = "chat_completions"
    """The wire in `Origin.api`; opaque parts of other wires are dropped."""
    wire_name: str = ""
    """What the server calls the model, such as a deployment; empty means the name in the mesh."""
    system_role: Literal["system", "developer"] = "system"
    max_tokens: Literal["max_tokens", "max_completion_tokens"] = "max_tokens"
    """The field that bounds the answer."""
    stream_options: Mapping[str, bool] = field(default_factory=lambda: {"include_usage": True})
    """Sent with streams; empty sends none, and usage then depends on the server's mood."""

    temperature: bool = True
    """Whether `temperature` and `top_p` are taken."""
    seed: bool = True
    stop_limit: int = 4
    """How many stop texts are taken; 0 means none."""
    logprobs: bool = True
    efforts: Mapping[str, str] = field(default_factory=lambda: dict(EFFORTS))
    """The contract's effort in lower case to the server's word; an effort that is missing is not sent."""

    continue_final: bool = False
    """Whether `continue_final_message` makes the model go on with an assistant message that stands last."""
    cache_points: int = 0
    """How many places up to which the prompt is kept can be named; 0 means that the server chooses by itself."""

    tools: bool = True
    tools_effort: str = ""
    """The only effort with which tools are taken, and which must then be sent; empty means that any is taken."""
    strict_tools: bool = True
    """Whether a tool may say `strict`."""
    strict_subset: StrictSubset | None = None
    """The schemas that `strict` is taken with, of tools and of answers; None means any."""
    parallel_tool_calls: bool = True
    tool_choice: bool = True
    allowed_tools: bool = False
    """Whether `tool_choice` can name a subset; where it can't, only the subset's tools are sent."""
    tool_name_length: int = 0
    """Most characters of a tool's name, out of letters, digits, `_` and `-`; 0 means that the contract's names fit.
    Others are renamed, and the calls in the answer have the contract's names again."""
    schema_limits: Limits | None = None
    """What the server refuses in the schema of a tool; None means that every sound schema is taken."""
    json_object: bool = True
    json_schema: bool = True

    images: bool = True
    audio: bool = False
    documents: bool = False
    refusals: bool = False
    """Whether a refusal goes back as such; where it doesn't, it goes back as text."""
    reasoning_fields: tuple[str, ...] = ("reasoning_content", "reasoning")
    """Where the answer's reasoning text may stand: the first one that a piece has counts."""
    reasoning_echo: str = ""
    """The field in which the server wants its own reasoning back; empty sends none back."""
    metadata_fields: tuple[str, ...] = ("service_tier", "system_fingerprint")
    """Facts of the answer that go into `provider_metadata`."""
    metadata_headers: Mapping[str, str] = field(default_factory=dict[str, str])
    """Headers of the answer that go there too, with the names that they get."""
    content_filters: bool = False
    """Whether the server tells what its content filters found; the worst of each kind goes there as well."""

    def for_model(self, model: Model) -> Dialect:
        """This dialect without the parameters whose feature `model` does not have."""
        return replace(
            self,
            temperature=self.temperature and supports(model, Feature.FEATURE_TEMPERATURE),
            seed=self.seed and supports(model, Feature.FEATURE_SEED),
            stop_limit=self.stop_limit if supports(model, Feature.FEATURE_STOP_SEQUENCES) else 0,
            logprobs=self.logprobs and supports(model, Feature.FEATURE_LOGPROBS),
            continue_final=self.continue_final and supports(model, Feature.FEATURE_PREFILL),
            efforts=self.efforts if supports(model, Feature.FEATURE_REASONING) else {},
            tools=self.tools and supports(model, Feature.FEATURE_TOOLS),
            parallel_tool_calls=self.parallel_tool_calls and supports(model, Feature.FEATURE_PARALLEL_TOOLS),
            tool_choice=self.tool_choice and supports(model, Feature.FEATURE_TOOL_CHOICE),
            json_schema=self.json_schema and supports(model, Feature.FEATURE_JSON_SCHEMA),
            images=self.images and supports(model, Feature.FEATURE_VISION),
            audio=self.audio and supports(model, Feature.FEATURE_AUDIO),
            documents=self.documents and supports(model, Feature.FEATURE_DOCUMENTS),
        )

    def effort(self, effort: ReasoningEffort.ValueType) -> str | None:
        """The server's word for `effort`, or None where it has none."""
        return self.efforts.get(ReasoningEffort.Name(effort).removeprefix("REASONING_EFFORT_").lower())
