"""Input that is wrong is refused as a whole, with the item and the field, before anything of it runs."""

from __future__ import annotations

from typing import Any

import aiohttp
import pytest

from maestro_sdk.testing.chaos.provider import Providers
from maestro_sdk.testing.mesh import MeshProcess

from .conftest import KEYS, MODEL

GOOD: dict[str, Any] = {
    "chat": {"model": MODEL, "messages": [{"role": "ROLE_USER", "parts": [{"text": {"text": "[r1] hi"}}]}]}
}


def changed(**fields: Any) -> dict[str, Any]:
    return {"chat": {**GOOD["chat"], **fields}}


@pytest.mark.parametrize(
    ("body", "field"),
    [
        pytest.param({}, "", id="nothing"),
        pytest.param({"items": []}, "", id="no items"),
        pytest.param({"items": [GOOD], "input_file_id": "file_1"}, "", id="items and a file"),
        pytest.param({"items": [GOOD, {"item_id": "x"}]}, "items[1].request", id="an item without a request"),
        pytest.param({"items": [GOOD, changed(messages=[])]}, "items[1].chat.messages", id="no message"),
        pytest.param(
            {"items": [GOOD, GOOD, changed(temperature=9)]}, "items[2].chat.temperature", id="a field out of range"
        ),
        pytest.param({"items": [GOOD, changed(model="openai/none")]}, "items[1].chat.model", id="an unknown model"),
        pytest.param({"items": [{"item_id": "a b", **GOOD}]}, "items[0].item_id", id="a name that is none"),
        pytest.param(
            {"items": [{"item_id": "x", **GOOD}, GOOD, {"item_id": "x", **GOOD}]}, "items[2].item_id", id="a name twice"
        ),
        pytest.param({"items": [GOOD, {"item_id": "0", **GOOD}]}, "items[1].item_id", id="the name of a position"),
        pytest.param({"items": [GOOD], "max_parallel": 0}, "max_parallel", id="nothing at a time"),
        pytest.param({"items": [GOOD], "max_runs": 11}, "max_runs", id="too many runs"),
        pytest.param({"items": [GOOD], "max_cost_usd": "-1"}, "max_cost_usd", id="a negative amount"),
        pytest.param({"items": [GOOD], "timeout": "0.5s"}, "timeout", id="too short"),
        pytest.param({"items": [GOOD], "timeout": "9999999s"}, "timeout", id="too long"),
        pytest.param({"items": [GOOD], "keep_results": "1s"}, "keep_results", id="kept too short"),
    ],
)
async def test_wrong_input_names_its_field(mesh: MeshProcess, providers: Providers, body: dict[str, Any], field: str):
    headers = {"authorization": f"Bearer {KEYS['globex']}"}
    async with aiohttp.ClientSession(mesh.url, headers=headers) as http:
        async with http.get("/v1/jobs") as response:
            before = await response.json()
        async with http.post("/v1/jobs", json=body) as response:
            answer = await response.json()
        assert (response.status, answer["error"]["reason"]) == (400, "INVALID_REQUEST"), answer
        if field:
            assert field in [detail["field"] for detail in answer["error"]["details"]], answer
        async with http.get("/v1/jobs") as response:
            assert await response.json() == before
    assert providers.calls == []


async def test_a_key_without_the_scope_is_refused(mesh: MeshProcess):
    async with aiohttp.ClientSession(mesh.url) as http:
        async with http.post("/v1/jobs", json={"items": [GOOD]}) as response:
            assert response.status == 401
        headers = {"authorization": f"Bearer {KEYS['chatter']}"}
        async with http.post("/v1/jobs", json={"items": [GOOD]}, headers=headers) as response:
            assert (response.status, (await response.json())["error"]["reason"]) == (403, "PERMISSION_DENIED")
