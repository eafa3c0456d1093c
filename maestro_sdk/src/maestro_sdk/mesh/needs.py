"""What a request needs of a backend, derived from the request without its content."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from maestro.llm.v1.chat_pb2 import ChatRequest, Routing, ToolChoiceMode
from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedRequest
from maestro.llm.v1.message_pb2 import Part
from maestro.llm.v1.model_pb2 import Feature
from maestro.router.v1.router_pb2 import RequestFeatures

_NO_ROUTING = Routing()

_CHAT, _STREAMING = 1 << Feature.FEATURE_CHAT, 1 << Feature.FEATURE_STREAMING

# Parts that only a model with the feature can read. Other parts are part of every chat.
_PART_FEATURES = {
    "image": Feature.FEATURE_VISION,
    "audio": Feature.FEATURE_AUDIO,
    "document": Feature.FEATURE_DOCUMENTS,
    "tool_call": Feature.FEATURE_TOOLS,
    "tool_result": Feature.FEATURE_TOOLS,
}


@dataclass(frozen=True, slots=True)
class Needs:
    """Needs of one request. `required` is a set of features as a bit mask, `input_tokens` an estimate (0: unknown)."""

    model: str
    required: int = 0
    routing: Routing = field(default_factory=lambda: _NO_ROUTING)
    input_tokens: int = 0
    max_tokens: int = 0
    tenant: str = ""
    metadata: Mapping[str, str] = field(default_factory=dict[str, str])
    content_hash: str = ""
    """Hash of what is asked, under `routing.deterministic` only."""
    longest_input: int | None = None
    """Estimated tokens of what has to fit into one window, where that is not all of the input."""

    @property
    def key(self) -> str:
        """What requests have in common that should reach the same backend; empty when nothing should."""
        return self.routing.session_key or self.content_hash


def needs_of(request: ChatRequest, tenant: str = "", *, streaming: bool = False) -> Needs:
    """The needs of `request`. Sampling parameters are no needs: a backend without them answers with a warning."""
    required = _CHAT | _STREAMING if streaming else _CHAT
    if request.tools and request.tool_choice.mode != ToolChoiceMode.TOOL_CHOICE_MODE_NONE:
        required |= 1 << Feature.FEATURE_TOOLS
    if request.response_format.WhichOneof("kind") == "json_schema":
        required |= 1 << Feature.FEATURE_JSON_SCHEMA
    characters = len(request.system)
    for message in request.messages:
        for part in message.parts:
            required |= _part_needs(part)
            characters += len(part.text.text) if part.HasField("text") else 0
    routing = request.routing if request.HasField("routing") else _NO_ROUTING
    return Needs(
        model=request.model,
        required=required | mask(routing.required),
        routing=routing,
        # Four characters a token is the usual rule of thumb; prices and windows need no better here.
        input_tokens=characters // 4,
        max_tokens=request.max_tokens,
        tenant=tenant,
        metadata=request.metadata,
        content_hash=hash_content(request) if routing.deterministic else "",
    )


def needs_of_embedding(request: EmbedRequest, tenant: str = "") -> Needs:
    """The needs of a request for vectors. Each of its inputs has a window for itself; one that may be cut fits any."""
    routing = request.routing if request.HasField("routing") else _NO_ROUTING
    sizes = [estimate_tokens(given) for given in request.inputs]
    return Needs(
        model=request.model,
        required=1 << Feature.FEATURE_EMBEDDINGS | mask(routing.required),
        routing=routing,
        input_tokens=sum(sizes),
        tenant=tenant,
        metadata=request.metadata,
        content_hash=hash_content(request) if routing.deterministic else "",
        longest_input=0 if request.truncate else max(sizes, default=0),
    )


def estimate_tokens(given: EmbedInput) -> int:
    """About how many tokens an input has; a picture counts as one."""
    match given.WhichOneof("kind"):
        case "text":
            return max(1, len(given.text) // 4)
        case "tokens":
            return len(given.tokens.ids)
        case _:
            return 1


def needs_from_features(features: RequestFeatures) -> Needs:
    """The needs that a caller of the router describes."""
    return Needs(
        model=features.model,
        required=_CHAT | mask(features.required) | mask(features.routing.required),
        routing=features.routing if features.HasField("routing") else _NO_ROUTING,
        input_tokens=features.input_tokens,
        max_tokens=features.max_tokens,
        tenant=features.tenant,
        metadata=features.metadata,
        content_hash=features.content_hash,
    )


def features_from_needs(needs: Needs) -> RequestFeatures:
    """The description of `needs` for a call to the router."""
    return RequestFeatures(
        model=needs.model,
        required=unmask(needs.required),
        routing=needs.routing,
        input_tokens=needs.input_tokens,
        max_tokens=needs.max_tokens or None,
        tenant=needs.tenant,
        metadata=needs.metadata,
        content_hash=needs.content_hash,
    )


def hash_content(request: ChatRequest | EmbedRequest) -> str:
    """A hash of what `request` asks, labels and routing left out: the same question gives the same text everywhere."""
    plain = type(request).FromString(request.SerializeToString())
    for name in ("routing", "metadata", "model"):
        plain.ClearField(name)
    if isinstance(plain, ChatRequest):
        plain.ClearField("resumable")
    return hashlib.blake2b(plain.SerializeToString(deterministic=True), digest_size=16).hexdigest()


def mask(features: Iterable[Feature.ValueType]) -> int:
    """Features as a bit mask."""
    bits = 0
    for feature in features:
        bits |= 1 << feature
    return bits


def unmask(bits: int) -> list[Feature.ValueType]:
    """The features of a bit mask, in the order of their numbers."""
    return [feature for feature in Feature.values() if feature and bits >> feature & 1]


def feature_list(bits: int) -> list[str]:
    """The names of the features of a bit mask: ["TOOLS", "VISION"]."""
    return [Feature.Name(feature).removeprefix("FEATURE_") for feature in unmask(bits)]


def feature_names(bits: int) -> str:
    """The features of a bit mask for a person: "TOOLS, VISION"."""
    return ", ".join(feature_list(bits))


def _part_needs(part: Part) -> int:
    kind = part.WhichOneof("kind")
    if kind == "tool_result":
        bits = 1 << Feature.FEATURE_TOOLS
        for inner in part.tool_result.parts:
            bits |= _part_needs(inner)
        return bits
    feature = _PART_FEATURES.get(kind or "")
    return 1 << feature if feature else 0
