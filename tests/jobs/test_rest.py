"""Jobs over HTTP: bodies as REST and OpenAI's batches have them, and results in the shape in which each was asked."""

from __future__ import annotations

import asyncio
import io
import json
from collections.abc import AsyncIterator
from typing import Any

import aiohttp
import pytest_asyncio

from maestro_sdk.testing.chaos.provider import Providers, Weather, text_of
from maestro_sdk.testing.mesh import MeshProcess

from .conftest import KEYS, MODEL

VECTORS = {"model": "openai/text-embedding-3-small", "input": ["a", "b"]}


def chat(name: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": f"[{name}] go on"}], **fields}


def line(name: str, body: Any, url: str = "/v1/chat/completions") -> dict[str, Any]:
    return {"custom_id": name, "method": "POST", "url": url, "body": body}


class Rest:
    """A caller over HTTP."""

    def __init__(self, http: aiohttp.ClientSession) -> None:
        self.http = http

    async def ask(self, verb: str, path: str, body: Any = None, status: int = 200) -> Any:
        async with self.http.request(verb, path, json=body) as response:
            answer = await response.json()
            assert response.status == status, answer
        return answer

    async def upload(self, lines: list[Any]) -> str:
        form = aiohttp.FormData()
        form.add_field("purpose", "job_input")
        data = "\n".join(json.dumps(each) for each in lines).encode()
        form.add_field("file", io.BytesIO(data), filename="a.jsonl", content_type="application/jsonl")
        async with self.http.post("/v1/files", data=form) as response:
            return (await response.json())["file_id"]

    async def over(self, job: Any) -> Any:
        async with asyncio.timeout(20):
            while not (job := await self.ask("GET", f"/v1/jobs/{job['job_id']}")).get("end_time"):
                await asyncio.sleep(0.05)
        return job

    async def results(self, job: Any, page_size: int = 100) -> dict[str, Any]:
        found: dict[str, Any] = {}
        token = ""
        while True:
            page = await self.ask("GET", f"/v1/jobs/{job['job_id']}/results?page_size={page_size}&page_token={token}")
            found |= {each.get("item_id") or each["custom_id"]: each for each in page["results"]}
            if not (token := page["next_page_token"]):
                return found


@pytest_asyncio.fixture(loop_scope="session")
async def rest(mesh: MeshProcess, providers: Providers) -> AsyncIterator[Rest]:
    headers = {"authorization": f"Bearer {KEYS['initech']}"}
    async with aiohttp.ClientSession(mesh.url, headers=headers) as http:
        yield Rest(http)


ITEMS: list[dict[str, Any]] = [
    {"item_id": "named", "chat": chat("r1", model=MODEL)},
    {"item_id": "routed", "chat": chat("r2", system="Be brief.", temperature=0.5, metadata={"team": "maps"})},
    {"item_id": "vectors", "embeddings": VECTORS},
    {"item_id": "packed", "embeddings": {**VECTORS, "encoding_format": "base64"}},
    {
        "item_id": "contract",
        "chat": {"model": MODEL, "messages": [{"role": "ROLE_USER", "parts": [{"text": {"text": "[r3] go on"}}]}]},
    },
    line("completion", chat("r4", model=MODEL, top_k=1)),
    line("batched", VECTORS, "/v1/embeddings"),
]


def bare(answer: Any) -> Any:
    """An answer without what each call has of its own."""
    return {name: value for name, value in answer.items() if name not in ("id", "created", "provider_metadata")}


async def test_results_are_what_the_same_body_gets_at_its_own_path(rest: Rest):
    made = await rest.ask("POST", "/v1/jobs", {"items": ITEMS, "priority": "high", "display_name": "all shapes"})
    assert (made["priority"], made["progress"]["total"]) == ("JOB_PRIORITY_HIGH", len(ITEMS))
    told = await rest.ask("GET", f"/v1/jobs/{made['job_id']}")
    assert made.keys() <= told.keys()
    over = await rest.over(made)
    assert over["progress"]["succeeded"] == len(ITEMS), await rest.results(made)
    found = await rest.results(made, page_size=2)
    assert len(found) == len(ITEMS)
    for item in ITEMS[:4]:
        name, result = item["item_id"], found[item["item_id"]]
        assert (result["state"], result["runs"], result["economy"]) == ("JOB_ITEM_STATE_SUCCEEDED", 1, False)
        kind = "chat" if "chat" in item else "embeddings"
        direct = await rest.ask("POST", f"/v1/{kind}", item[kind])
        assert bare(result[kind]) == bare(direct), name
        assert result["cost_usd"] == (direct if kind == "chat" else direct["maestro"])["cost_usd"]
    assert isinstance(found["packed"]["embeddings"]["data"][0]["embedding"], str)
    assert found["contract"]["chat"]["text"] == text_of("r3")
    for item in ITEMS[5:]:
        result = found[item["custom_id"]]
        assert (result["response"]["status_code"], result["error"]) == (200, None)
        direct = await rest.ask("POST", item["url"], item["body"])
        assert bare(result["response"]["body"]) == bare(direct)
        assert result["maestro"]["state"] == "JOB_ITEM_STATE_SUCCEEDED"
    assert found["completion"]["response"]["body"]["maestro"]["warnings"][0]["field"] == "top_k"


async def test_lines_of_a_file_are_the_same_items(rest: Rest):
    job = await rest.ask("POST", "/v1/jobs", {"input_file_id": await rest.upload(ITEMS), "max_parallel": 3})
    over = await rest.over(job)
    async with rest.http.get(f"/v1/files/{over['output_file_id']}/content") as response:
        lines = [json.loads(each) for each in (await response.read()).splitlines()]
    listed = await rest.results(job)
    assert {each.get("item_id") or each["custom_id"]: each for each in lines} == listed
    assert listed.keys() == {item.get("item_id") or item["custom_id"] for item in ITEMS}


async def test_errors_have_the_shape_of_their_item(rest: Rest, providers: Providers):
    providers.weather["openai"] = Weather(late=1.0, lateness=60.0)
    items = [{"item_id": "own", "chat": chat("r1")}, line("line", chat("r2", model=MODEL))]
    late = await rest.ask("POST", "/v1/jobs", {"items": items, "timeout": "1s"})
    stopped = await rest.ask("POST", "/v1/jobs", {"items": items})
    await rest.ask("POST", f"/v1/jobs/{stopped['job_id']}:cancel", {})
    await asyncio.gather(rest.over(late), rest.over(stopped))
    for job, reason, code, state in (
        (late, "TIMEOUT", "batch_expired", "JOB_ITEM_STATE_FAILED"),
        (stopped, "CANCELLED", "batch_cancelled", "JOB_ITEM_STATE_CANCELLED"),
    ):
        found = await rest.results(job)
        own, other = found["own"], found["line"]
        assert (own["error"]["reason"], own["state"], own["error"]["details"]) == (reason, state, [])
        assert (other["response"], other["error"]["code"], other["maestro"]["state"]) == (None, code, state)


async def test_what_a_provider_refuses_is_told_with_its_status(rest: Rest):
    items = [
        {"item_id": "own", "chat": chat("r1", max_tokens=1)},
        line("line", chat("r2", model=MODEL, max_tokens=1)),
    ]
    job = await rest.ask("POST", "/v1/jobs", {"items": items, "max_cost_usd": "0.000000001"})
    await rest.over(job)
    found = await rest.results(job)
    assert (found["own"]["error"]["code"], found["own"]["error"]["reason"]) == (402, "BUDGET_EXHAUSTED")
    response = found["line"]["response"]
    assert (response["status_code"], response["body"]["error"]["code"]) == (402, "insufficient_quota")
