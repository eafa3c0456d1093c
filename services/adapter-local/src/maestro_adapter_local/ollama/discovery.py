"""What an Ollama server tells of its models: `GET /api/tags`, and `POST /api/show` for each."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any, NamedTuple, cast

import orjson

from maestro_adapter_local.models import Served

# What every model that completes can do, since the server does it.
_COMPLETION = ("CHAT", "STREAMING", "SYSTEM_PROMPT", "TEMPERATURE", "STOP_SEQUENCES", "SEED")
# What the server does itself, but not for models that it only hands on to somebody else's machines.
_LOCAL = ("JSON_SCHEMA", "LOGPROBS")
_BY_CAPABILITY: Mapping[str, tuple[str, ...]] = {
    "completion": _COMPLETION,
    "tools": ("TOOLS", "PARALLEL_TOOLS"),
    "vision": ("VISION",),
    "thinking": ("REASONING",),
    "embedding": ("EMBEDDINGS",),
}
_LEVEL_FAMILIES = ("gptoss", "gpt-oss")
_NUM_CTX = re.compile(r"^num_ctx\s+(\d+)\s*$", re.MULTILINE)


class Tag(NamedTuple):
    """A model of the list; another `digest` means another model under the same name."""

    name: str
    digest: str
    family: str


def read_tags(body: bytes) -> list[Tag]:
    """The models of an answer to `GET /api/tags`, by name. Raises `ValueError` for anything that is no such answer."""
    entries = _mapping(orjson.loads(body)).get("models")
    if not isinstance(entries, list):
        raise ValueError("the answer has no list `models`")
    found: dict[str, Tag] = {}
    for entry in cast("list[Any]", entries):
        fields = _mapping(entry)
        name = fields.get("name") or fields.get("model")
        if isinstance(name, str) and name:
            found[name] = Tag(name, _text(fields.get("digest")), _text(_mapping(fields.get("details")).get("family")))
    return [found[name] for name in sorted(found)]


def read_show(body: bytes, tag: Tag, num_ctx: int | None = None) -> Served:
    """The model of an answer to `POST /api/show`; `num_ctx` is what is asked for with each call.

    Capabilities that are not known here are passed over; an old server tells none. Raises `ValueError` for anything
    that is no such answer.
    """
    document = _mapping(orjson.loads(body))
    if not document:
        raise ValueError("the answer is no object")
    told = document.get("capabilities")
    features: list[str] | None = None
    if isinstance(told, list):
        capabilities = [_text(word) for word in cast("list[Any]", told)]
        features = [name for word in capabilities for name in _BY_CAPABILITY.get(word, ())]
        if "completion" in capabilities and not document.get("remote_host"):
            features += _LOCAL
            if "thinking" not in capabilities:
                # Ollama leaves the last turn open. Whether a model that thinks goes on with it hangs on its template.
                features.append("PREFILL")
    family = _text(_mapping(document.get("details")).get("family")) or tag.family
    return Served(
        name=tag.name,
        context_window=_window(document, num_ctx),
        features=features,
        family=family,
        think_levels=family in _LEVEL_FAMILIES,
    )


def _window(document: Mapping[str, Any], num_ctx: int | None) -> int | None:
    """What fits into a call: what is asked for, else what the model's file sets, else what the model can."""
    lengths = [
        value
        for name, value in _mapping(document.get("model_info")).items()
        if name.endswith(".context_length")
        and isinstance(value, int)
        and value > 1  # true is an int to Python, and no window
    ]
    most = max(lengths, default=None)
    fixed = _NUM_CTX.search(_text(document.get("parameters")))
    asked = num_ctx or (int(fixed[1]) if fixed else None)
    # More than the model was trained for is not given by asking for it.
    return min(asked, most) if asked and most else asked or most


def _mapping(value: object) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", value) if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""
