"""The settings of the adapter: the part `adapters.local.settings` of the configuration."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import AfterValidator, Field, JsonValue, model_validator

from maestro.llm.v1.model_pb2 import Feature
from maestro_sdk.service.settings import BaseUrl, ConfigPath, Duration, Secret, Settings

_NAME = r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,63}$"


def _feature(value: str) -> str:
    known = [name.removeprefix("FEATURE_") for name in Feature.keys()[1:]]
    if value not in known:
        raise ValueError(f"{value!r} is not one of {', '.join(known)}")
    return value


FeatureName = Annotated[str, AfterValidator(_feature)]
"""A feature of the contract without its prefix, such as TOOLS."""


class OfflineSettings(Settings):
    """The offline model. `pace` is the time per token; `names` are further names under which it is offered."""

    enabled: bool = True
    pace: Duration = 0.0
    script: ConfigPath | None = None
    names: tuple[Annotated[str, Field(pattern=_NAME)], ...] = ()


class ModelSettings(Settings):
    """What is known of models whose names match a shell pattern.

    `features` come on top, `without` are taken away, also from polyfills; without CHAT, only EMBEDDINGS are left.
    `think_levels` tells whether an Ollama model reasons in levels; unset, the server's facts decide.
    """

    match: Annotated[str, Field(min_length=1)]
    features: tuple[FeatureName, ...] = ()
    without: tuple[FeatureName, ...] = ()
    context_window: Annotated[int, Field(ge=1)] | None = None
    max_output_tokens: Annotated[int, Field(ge=1)] | None = None
    family: str = ""
    tags: tuple[str, ...] = ()
    think_levels: bool | None = None


class ServerSettings(Settings):
    """A server. `api` is its wire: OpenAI's chat completions, the same with vLLM's own ways, or Ollama's own.

    `base_url` ends before `/chat/completions`, usually in `/v1`, and for Ollama's own wire before `/api`. `keep_alive`,
    `num_ctx` and `options` are Ollama's: how long a model stays in memory, the tokens that fit into a call, and any
    other of its options. `polyfill` gives tools and JSON Schemas to models that have none.
    """

    name: Annotated[str, Field(pattern=_NAME)]
    base_url: BaseUrl
    api: Literal["openai", "ollama", "vllm"] = "openai"
    api_key: Secret | None = None
    features: tuple[FeatureName, ...] = ()
    without: tuple[FeatureName, ...] = ()
    models: tuple[ModelSettings, ...] = ()
    polyfill: bool = True
    keep_alive: str = ""
    num_ctx: Annotated[int, Field(ge=1)] | None = None
    options: dict[str, JsonValue] = Field(default_factory=dict[str, JsonValue])
    connect_timeout: Annotated[Duration, Field(gt=0)] = 5.0
    read_timeout: Annotated[Duration, Field(gt=0)] = 600.0
    list_timeout: Annotated[Duration, Field(gt=0)] = 3.0

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.api == "ollama":
            if self.base_url.endswith(("/v1", "/api")):
                raise ValueError(f"base_url {self.base_url!r} has to end before /api, as in http://127.0.0.1:11434")
        elif self.keep_alive or self.num_ctx or self.options:
            raise ValueError("keep_alive, num_ctx and options are Ollama's: set `api: ollama`")
        return self


class EmbedderSettings(Settings):
    """A BERT encoder of MiniLM's size, run within the adapter: the folder of its files, and what it is called.

    `batch` is the most texts that are computed together; it bounds the memory that a call takes.
    """

    path: ConfigPath
    name: Annotated[str, Field(pattern=_NAME)] = "minilm"
    batch: Annotated[int, Field(ge=1, le=512)] = 16


class LocalSettings(Settings):
    """The whole. `hashing` offers the lexical embedder, `embedder` one that knows meaning."""

    offline: OfflineSettings = OfflineSettings()
    hashing: bool = True
    embedder: EmbedderSettings | None = None
    servers: tuple[ServerSettings, ...] = ()

    @model_validator(mode="after")
    def _check(self) -> Self:
        names = [server.name for server in self.servers]
        if twice := next((name for name in names if names.count(name) > 1), None):
            raise ValueError(f"two servers are named {twice!r}")
        built_in = ("offline", *self.offline.names, "hashing")
        if self.embedder is not None and self.embedder.name in built_in:
            raise ValueError(f"the embedder can't be named {self.embedder.name!r}, as another built-in model is")
        taken = [*built_in, *([self.embedder.name] if self.embedder is not None else [])]
        if self.offline.enabled and (twice := next((name for name in taken if taken.count(name) > 1), None)):
            raise ValueError(f"two built-in models are named {twice!r}")
        if not self.offline.enabled and not self.hashing and self.embedder is None and not self.servers:
            raise ValueError(
                "there is nothing to serve: enable the offline model or the lexical embedder, or name a server"
            )
        return self
