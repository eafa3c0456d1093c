"""The providers' side of a drill: what each is to answer to whom, and who asked how often."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Sequence

import pytest
from drill_config import VLLM_PATH

from maestro_sdk.testing import anthropic_messages, openai_chat
from maestro_sdk.testing.faults import FaultServer, Reply, Seen, SendJson, Step

PATHS = {"openai": openai_chat.PATH, "anthropic": anthropic_messages.PATH, "vllm": VLLM_PATH}
"""Where each provider answers."""
_MARK = re.compile(rb"<<(.+?)>>")


def prompt(name: str) -> str:
    """A question that belongs to the case `name`."""
    return f"Say it. <<{name}>>"


class Stage:
    """Answers each request by the case that its prompt names; cases that run at once don't see each other."""

    def __init__(self, server: FaultServer) -> None:
        self._server = server
        self._replies: dict[tuple[str, str], Reply] = {}
        self._seen: dict[tuple[str, str], list[Seen]] = {}
        self.begin()

    def begin(self, vllm_models: Sequence[str] = ("third",)) -> None:
        """Scripts the server."""
        for provider, path in PATHS.items():
            self._server.replace("POST", path, self._reply(provider))
        listed = [{"id": name, "object": "model", "max_model_len": 100_000} for name in vllm_models]
        self._server.replace("GET", "/vllm/v1/models", SendJson({"object": "list", "data": listed}))

    def script(self, case: str, provider: str, reply: Reply) -> None:
        """Says what a provider answers in a case."""
        self._replies[case, provider] = reply
        self._seen[case, provider] = []

    def seen(self, case: str, provider: str) -> list[Seen]:
        """The requests of a case at a provider."""
        return self._seen.get((case, provider), [])

    def forget(self, case: str) -> None:
        """Ends a case."""
        for provider in PATHS:
            self._replies.pop((case, provider), None)
            self._seen.pop((case, provider), None)

    def _reply(self, provider: str) -> Reply:
        def reply(seen: Seen) -> Sequence[Step]:
            found = _MARK.search(seen.body)
            case = found[1].decode() if found else ""
            self._seen.setdefault((case, provider), []).append(seen)
            return self._replies[case, provider](seen)

        return reply


def chosen(request: pytest.FixtureRequest, test: Callable[..., object]) -> list[str]:
    """The cases of a test that this run is to make."""
    items = [item for item in request.session.items if isinstance(item, pytest.Function)]
    return [str(item.callspec.params["name"]) for item in items if item.originalname == test.__name__]


async def run_all(names: Iterable[str], drill: Callable[[str], Awaitable[None]], at_once: int) -> dict[str, str]:
    """Runs cases many at once: what was wrong with each, by name; empty where all was well."""
    found: dict[str, str] = {}
    gate = asyncio.Semaphore(at_once)

    async def run(name: str) -> None:
        async with gate:
            try:
                await drill(name)
            except TimeoutError:
                found[name] = "it never ended"
            except AssertionError as error:
                found[name] = str(error) or "it is not as it has to be"
            else:
                found[name] = ""

    async with asyncio.TaskGroup() as group:
        for name in names:
            group.create_task(run(name))
    return found
