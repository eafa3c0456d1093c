"""What an Ollama server tells of its models: asked for once each, read whatever it says."""

from __future__ import annotations

import time
from typing import Any

import orjson
import pytest

from maestro.llm.v1.model_pb2 import Feature, Model
from maestro_adapter_local.models import BASIC_FEATURES
from maestro_adapter_local.ollama.discovery import Tag, read_show, read_tags
from maestro_sdk.testing.faults import FaultServer, Headers, Seen, SendJson, Stall, Step

from .ollama_box import SHOWN, TAGS, ollama


def named(model: Model) -> set[str]:
    return {Feature.Name(entry.feature).removeprefix("FEATURE_") for entry in model.features}


async def test_discovery_asks_for_each_model_once() -> None:
    name = "nomic-embed-text:latest"
    other: dict[str, Any] = {"name": name, "digest": "d2", "details": {"family": "nomic-bert"}}
    shown = {"qwen3:8b": SHOWN, name: {"capabilities": ["embedding"], "model_info": {}}}

    def show(seen: Seen) -> list[Step]:
        return [SendJson(shown[seen.json()["model"]])]

    async with FaultServer() as server, ollama(server.url) as provider:
        server.on("GET", "/api/tags", SendJson({"models": [*TAGS["models"], other]}))
        server.on("POST", "/api/show", show)
        found = {model.name: model for model in await provider.refresh()}
        await provider.refresh()
        assert len([seen for seen in server.requests if seen.path == "/api/show"]) == 2
    qwen = found["qwen3:8b"]
    assert named(qwen) == {*BASIC_FEATURES, "JSON_SCHEMA", "LOGPROBS", "TOOLS", "PARALLEL_TOOLS", "REASONING"}
    assert (qwen.id, qwen.family, qwen.context_window) == ("local/qwen3:8b", "qwen3", 40960)
    assert not qwen.HasField("price")
    assert named(found[name]) == {"EMBEDDINGS"}


async def test_a_changed_model_is_shown_anew_and_one_that_is_not_shown_has_the_basics() -> None:
    async with FaultServer() as server, ollama(server.url, list_timeout="200ms") as provider:
        server.on("GET", "/api/tags", SendJson(TAGS))
        server.on("GET", "/api/tags", SendJson({"models": [{**TAGS["models"][0], "digest": "d9"}]}))
        server.on("POST", "/api/show", Headers(500), SendJson({"error": "oops"}))
        server.on("POST", "/api/show", Stall())
        server.on("POST", "/api/show", SendJson(SHOWN))
        for _ in range(2):
            (model,) = await provider.refresh()
            assert named(model) == set(BASIC_FEATURES)
        (model,) = await provider.refresh()
        assert "TOOLS" in named(model)


async def test_many_models_that_are_not_shown_do_not_hold_up_the_list() -> None:
    tags = [{"name": f"m{number:02}", "digest": str(number)} for number in range(40)]
    async with FaultServer() as server, ollama(server.url, list_timeout="100ms") as provider:
        server.on("GET", "/api/tags", SendJson({"models": tags}))
        server.on("POST", "/api/show", Stall())
        begun = time.monotonic()
        models = await provider.refresh()
        assert time.monotonic() - begun < 0.9, "not ten times the timeout"
    assert len(models) == 40
    assert all(named(model) == set(BASIC_FEATURES) for model in models)


@pytest.mark.parametrize(
    ("shown", "num_ctx", "window"),
    [
        ({}, None, None),
        ({}, 2048, 2048),
        ({"model_info": {"x.context_length": 4096}}, None, 4096),
        ({"model_info": {"x.context_length": 4096}}, 2048, 2048),
        ({"model_info": {"x.context_length": 4096}}, 8192, 4096),
        ({"model_info": {"x.context_length": 4096}, "parameters": 'stop "</s>"\nnum_ctx    1024'}, None, 1024),
        ({"model_info": {"x.context_length": "many"}, "parameters": 7}, None, None),
    ],
)
def test_windows(shown: dict[str, Any], num_ctx: int | None, window: int | None) -> None:
    served = read_show(orjson.dumps({"details": {}, **shown}), Tag("m", "", ""), num_ctx)
    assert served.context_window == window
    assert served.features is None


@pytest.mark.parametrize(
    ("shown", "features", "levels"),
    [
        (b'{"capabilities": ["completion"]}', {*BASIC_FEATURES, "JSON_SCHEMA", "LOGPROBS", "PREFILL"}, False),
        (
            b'{"capabilities": ["completion", "thinking"]}',
            {*BASIC_FEATURES, "JSON_SCHEMA", "LOGPROBS", "REASONING"},
            False,
        ),
        (b'{"capabilities": ["completion"], "remote_host": "https://ollama.com"}', set(BASIC_FEATURES), False),
        (b'{"capabilities": ["completion", "insert", "vision"], "details": {"family": "gptoss"}}', None, True),
        (b'{"capabilities": ["embedding"]}', {"EMBEDDINGS"}, False),
        (b'{"capabilities": ["new", 7]}', set[str](), False),
    ],
)
def test_capabilities(shown: bytes, features: set[str] | None, levels: bool) -> None:
    served = read_show(shown, Tag("m", "", ""))
    assert set(served.features or ()) == (
        {*BASIC_FEATURES, *("JSON_SCHEMA", "LOGPROBS", "VISION", "PREFILL")} if features is None else features
    )
    assert served.think_levels is levels


@pytest.mark.parametrize("body", [b"", b"[]", b"{}", b'{"models": {}}', b"<html>"])
def test_a_list_that_is_none_is_refused(body: bytes) -> None:
    with pytest.raises(ValueError, match=r".+"):
        read_tags(body)


def test_odd_entries_of_a_list_are_passed_over() -> None:
    body = b'{"models": [{"name": "b"}, {"name": ""}, {"x": 1}, 7, {"model": "a", "digest": 7, "details": []}]}'
    assert read_tags(body) == [Tag("a", "", ""), Tag("b", "", "")]
