"""The mesh of two tenants: its configuration, its provider, and everything that the one of them has to hide."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from string import ascii_lowercase, digits
from typing import Any

import aiohttp

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, PartState, ReasoningDelta
from maestro.llm.v1.message_pb2 import Origin
from maestro_sdk.errors import Overloaded
from maestro_sdk.testing.scripted import ScriptedProvider, answer, scripted_model

OWNER, OTHER = "canary-acme", "globex"
MODEL, VECTORS = "fake/model", "p0/small"
SECRET = "whsec_" + base64.b64encode(b"s" * 32).decode()
USUAL = ["chat", "embeddings", "tools", "jobs", "files"]
KEYS: Mapping[str, tuple[str, str, Sequence[str]]] = {
    "owner": (OWNER, "mk-canary-key-0123456789", [*USUAL, "admin"]),
    "plain": (OTHER, "mk-globex-plain-0123456789", USUAL),
    "admin": (OTHER, "mk-globex-admin-0123456789", [*USUAL, "admin"]),
    "operator": (OTHER, "mk-globex-operator-0123456789", [*USUAL, "admin", "operator"]),
}
SAID = "CANARY-QUESTION"
STATE = b"CANARY-STATE"


def config(receiver: str) -> dict[str, Any]:
    """Without its adapters."""
    hook = {"url": f"{receiver}?canary-hook-url", "secret": {"env": "HOOK"}, "attempts": 1, "timeout": "1s"}
    return {
        "version": 1,
        "gateway": {
            "replicas": 2,
            "ping": "1s",
            "keys": [
                {"tenant": tenant, "key": {"env": f"KEY_{name.upper()}"}, "scopes": list(scopes), "name": f"n-{name}"}
                for name, (tenant, _, scopes) in KEYS.items()
            ],
        },
        "tenants": {
            OWNER: {"audit": {"content": True}, "webhooks": {"canary-hook": {**hook, "kinds": ["request.*"]}}},
            OTHER: {"audit": {"content": True}, "webhooks": {"own-hook": {**hook, "kinds": ["config.*"]}}},
        },
        "budgets": {
            "canary-budget": {"tenants": [OWNER], "period": "month", "tokens": 987_654_321},
            "shared": {"tenants": [OWNER, OTHER], "period": "month", "tokens": 876_543_210},
            "each": {"each": ["tenant"], "period": "month", "tokens": 10**9},
        },
        "routes": {
            "default": {"targets": [MODEL]},
            "cached": {"targets": [MODEL], "cache": {"ttl": "10m"}},
            "embed": {"targets": [VECTORS], "cache": {"ttl": "10m"}},
        },
        "aliases": {},
        "grace": "2s",
    }


class Echo(ScriptedProvider):
    """Says again what it was asked; thinks and calls a tool when it is told to, and fails with the words as reason."""

    def __init__(self) -> None:
        super().__init__(models=[scripted_model(MODEL)])
        self.may_end = asyncio.Event()
        """Slow answers go on until it is set."""

    def asked(self, text: str) -> int:
        """How often it was asked this."""
        return sum(_last(request) == text for request in self.requests)

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        self.requests.append(request)
        text = _last(request)
        if "[fail]" in text:
            raise Overloaded(f"too busy for {text}")
        if "[tool]" in text:
            events = answer(calls=[("canary-call-1", "find", "{}")], model=MODEL)
            reasoning = ReasoningDelta(index=0, text="CANARY-THOUGHT")
            state = PartState(index=0, origin=Origin(provider="fake", model="model"), provider_state=STATE)
            events[1].tool_call.index = 1
            events[1:1] = [ChatEvent(reasoning=reasoning), ChatEvent(part_state=state)]
        else:
            events = answer("echo of ", *(f"{word} " for word in text.split()), model=MODEL)
        for event in events:
            if "[slow]" in text:
                if event.HasField("finish"):
                    await self.may_end.wait()
                await asyncio.sleep(0.25)
            yield (event,)


def _last(request: ChatRequest) -> str:
    return "".join(part.text.text for part in request.messages[-1].parts)


def turn(text: str) -> dict[str, Any]:
    """A question in the shape of REST."""
    return {"messages": [{"role": "user", "content": text}]}


def item(text: str) -> dict[str, Any]:
    """A question as an item of a job."""
    return {"chat": {"model": MODEL, "messages": [{"role": "ROLE_USER", "parts": [{"text": {"text": text}}]}]}}


@dataclass
class Owned:
    """What the owner has: `ids` by name are told to the other one, who tries them; `words` are told to nobody."""

    ids: dict[str, str] = field(default_factory=dict[str, str])
    words: set[str] = field(default_factory=set[str])

    @property
    def twins(self) -> dict[str, str]:
        """Identifiers of the same form that nobody ever had."""
        return {name: _unlike(name, value, self.ids) for name, value in self.ids.items()}


def _unlike(name: str, value: str, ids: Mapping[str, str]) -> str:
    match name:
        case "jobs_token" | "results_token":
            old, new = ids["job_id"], _turned(ids["job_id"])
            return base64.urlsafe_b64encode(
                base64.urlsafe_b64decode(value).replace(old.encode(), new.encode())
            ).decode()
        case "after" | "number":
            return str(int(value) + 10**6)
        case _:
            return _turned(value)


def _turned(value: str) -> str:
    """With other last letters."""
    swap = {letter: "b" if letter == "a" else "a" for letter in ascii_lowercase}
    swap |= {digit: "1" if digit == "0" else "0" for digit in digits}
    return value[:-6] + "".join(swap.get(letter, letter) for letter in value[-6:])


class Client:
    """REST with one key."""

    def __init__(self, http: aiohttp.ClientSession, url: str, name: str) -> None:
        self.http, self.url, self.key = http, url, KEYS[name][1]

    async def ask(self, verb: str, path: str, body: Any = None, status: int = 200, **headers: str) -> Any:
        """The JSON of an answer, or its text; asserts its status."""
        told = {"authorization": f"Bearer {self.key}", **{k.replace("_", "-"): v for k, v in headers.items()}}
        data = body if body is None or isinstance(body, bytes) else json.dumps(body)
        async with self.http.request(verb, self.url + path, data=data, headers=told) as response:
            text = await response.text()
            assert response.status == status, (path, response.status, text)
            return json.loads(text) if response.content_type == "application/json" else text

    async def until(self, path: str, fits: Callable[[Any], bool]) -> Any:
        """The answer as soon as it fits."""
        async with asyncio.timeout(20):
            while not fits(found := await self.ask("GET", path)):
                await asyncio.sleep(0.05)
        return found

    async def until_content(self, request_id: str) -> str:
        """What was recorded of a request, once it is there."""
        path = f"/v1/requests/{request_id}/content"
        headers = {"authorization": f"Bearer {self.key}"}
        async with asyncio.timeout(20):
            while True:
                async with self.http.get(self.url + path, headers=headers) as response:
                    if response.status == 200:
                        return await response.text()
                await asyncio.sleep(0.05)


async def settle(owner: Client) -> Owned:
    """Makes everything that there is to hide, and collects its names."""
    made = Owned()
    ids = made.ids
    ids |= {"tenant": OWNER, "budget": "canary-budget", "webhook": "canary-hook", "session": "canary-session-01"}
    ids |= {"request_id": "canary-request-0001", "stream": "canary-stream-0001", "live": "canary-live-0001"}
    ids |= {"call_id": "canary-call-1", "upload": "canary-upload-0001", "order": "canary-order-0001"}
    ids |= {"making": "canary-making-0001"}
    made.words |= {SAID, KEYS["owner"][1], "CANARY-THOUGHT", STATE.decode(), "CANARY-FILE", "canary-label", "n-owner"}
    made.words |= {"canary-agent", "canary-name", "canary-hook-url", "canary-persona"}
    made.words |= {base64.b64encode(STATE).decode()}
    full = {"metadata": {"canary-label": "canary-label-value"}, "routing": {"session_key": ids["session"]}}
    await asyncio.gather(
        owner.ask(
            "POST", "/v1/chat", {**turn(SAID), **full}, x_request_id=ids["request_id"], user_agent="canary-agent/1"
        ),
        owner.ask("POST", "/v1/chat", {**turn(SAID), "stream": True, "resumable": True}, x_request_id=ids["stream"]),
        owner.ask("POST", "/v1/chat", {**turn(f"{SAID} in the cache"), "model": "cached"}),
        owner.ask("POST", "/v1/embeddings", {"model": "embed", "input": [f"{SAID} 4711"]}),
        owner.ask("POST", "/v1/chat", turn(f"{SAID} [fail]"), status=503),
        owner.ask("POST", "/v1/chat/completions", {**turn(f"{SAID} [tool]"), "model": MODEL, "tools": TOOLS}),
        _things(owner, ids),
    )
    await owner.ask("POST", "/v1/chat", turn(SAID), status=200, x_request_id="canary-second-0001")
    # What only lists tell: the names of what was made, and the places behind it.
    await owner.until(f"/v1/jobs/{ids['job_id']}", lambda job: job["state"] == "JOB_STATE_COMPLETED")
    # The books are written after the answer; what came later would look like a change. Seven answers, three items of
    # jobs, and five things made: two files, a key, two jobs. Two letters of each request.
    audit = await owner.until("/v1/audit", lambda found: len(found.get("records", ())) >= 15)
    letters = f"/v1/webhooks/{ids['webhook']}/dead-letters"
    dead = await owner.until(letters, lambda found: len(found.get("letters", ())) >= 20)
    ids["number"] = str(dead["letters"][0]["number"])
    ids["after"] = str(dead["letters"][0]["event"].get("sequence", 1))
    for path, name, text in (
        (f"/v1/jobs/{ids['job_id']}/results?page_size=1", "results_token", "results"),
        ("/v1/jobs?page_size=1", "jobs_token", "jobs"),
    ):
        page = await owner.ask("GET", path)
        assert page[text], path
        ids[name] = page["next_page_token"]
    made.words |= {each["request_id"] for each in audit["records"] if each.get("request_id", "").startswith("req_")}
    made.words |= {each["event"]["id"] for each in dead["letters"]}
    return made


TOOLS = [{"type": "function", "function": {"name": "find", "parameters": {"type": "object", "properties": {}}}}]


async def _things(owner: Client, ids: dict[str, str]) -> None:
    query = "?purpose=content&filename=canary-name.txt"
    upload = await owner.ask("POST", f"/v1/files{query}", b"CANARY-FILE", idempotency_key=ids["upload"])
    lines = "\n".join(json.dumps(item(f"{SAID} of file {number}")) for number in range(2)).encode()
    given = await owner.ask("POST", "/v1/files?purpose=job_input&filename=canary-name.jsonl", lines)
    ids["file_id"], ids["input_id"] = upload["file_id"], given["file_id"]
    key = await owner.ask("POST", "/v1/keys", {"display_name": "canary-name", "request_id": ids["making"]})
    ids["key_id"] = key["key"]["key_id"]
    await owner.ask("POST", "/v1/jobs", {"items": [item(f"{SAID} first")], "display_name": "canary-name"})
    wanted = {"input_file_id": ids["input_id"], "request_id": ids["order"], "display_name": "canary-name"}
    ids["job_id"] = (await owner.ask("POST", "/v1/jobs", wanted))["job_id"]


def state_of(answers: Mapping[str, Any]) -> Mapping[str, Any]:
    """What of the owner's things others must not change: all but what time changes."""

    def bare(value: Any) -> Any:
        match value:
            case dict():
                return {k: bare(v) for k, v in _items(value) if k not in {"last_use_time", "end_time", "waiting"}}
            case list():
                return [bare(each) for each in _each(value)]
            case _:
                return value

    return bare(answers)


def _items(value: Any) -> Iterator[tuple[str, Any]]:
    yield from value.items()


def _each(value: Any) -> Iterator[Any]:
    yield from value
