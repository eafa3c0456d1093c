"""Embeddings and tools against small real servers."""

import asyncio
from typing import Any

import pytest

from maestro.llm.v1.embedding_pb2 import Embedding, EmbedInput, EmbedPurpose, EmbedRequest, EmbedResponse, TokenInput
from maestro.llm.v1.embedding_pb2_grpc import EmbeddingServiceServicer
from maestro.llm.v1.message_pb2 import Part, TextPart
from maestro.tool.v1.tool_pb2 import (
    BuiltinBinding,
    GetToolRequest,
    InvokeToolRequest,
    InvokeToolResponse,
    ListToolsRequest,
    ListToolsResponse,
    StreamInvokeToolResponse,
    ToolEvent,
    ToolProgress,
    ToolResult,
    ToolSpec,
    ToolStarted,
)
from maestro.tool.v1.tool_pb2_grpc import ToolServiceServicer
from maestro_sdk.adapter.servicer import ChatServicer
from maestro_sdk.embeddings import EmbeddingClient, vectors_of
from maestro_sdk.errors import Cancelled, InvalidRequest, NotFound, StreamBroken, Timeout, ToolDenied
from maestro_sdk.llm_client import LLMClient
from maestro_sdk.testing.scripted import ScriptedProvider, answer
from maestro_sdk.testing.servers import serve
from maestro_sdk.tool_bridge import ToolBridgeClient, tool_of
from maestro_sdk.types import tool


class Lengths(EmbeddingServiceServicer):
    """Embeds an input as its position and length; answers in reverse, as the contract allows."""

    def __init__(self) -> None:
        self.requests: list[EmbedRequest] = []

    async def Embed(self, request: EmbedRequest, context: Any) -> EmbedResponse:
        self.requests.append(request)
        found = [
            Embedding(index=index, values=[index, len(one.text) + len(one.tokens.ids)])
            for index, one in enumerate(request.inputs)
        ]
        return EmbedResponse(provider="scripted", model=request.model, embeddings=reversed(found))


class Bench(ToolServiceServicer):
    """Three tools: `add`, `secret` (denied) and `wait` (never ends)."""

    def __init__(self) -> None:
        self.requests: list[InvokeToolRequest] = []
        self.abandoned = asyncio.Event()
        self.events: list[ToolEvent] | None = None

    async def ListTools(self, request: ListToolsRequest, context: Any) -> ListToolsResponse:
        names = [name for name in ("add", "secret", "wait") if name.startswith(request.name_prefix)]
        start = int(request.page_token or 0)
        token = str(start + 1) if start + 1 < len(names) else ""
        return ListToolsResponse(tools=[spec(name) for name in names[start : start + 1]], next_page_token=token)

    async def GetTool(self, request: GetToolRequest, context: Any) -> ToolSpec:
        if request.name != "add":
            raise NotFound(f"there is no tool {request.name!r}")
        return spec("add")

    async def InvokeTool(self, request: InvokeToolRequest, context: Any) -> InvokeToolResponse:
        self.requests.append(request)
        if request.name == "secret":
            raise ToolDenied("not for you", metadata={"tool": "secret"})
        if request.name == "wait":
            await self.wait()
        return InvokeToolResponse(result=result(request))

    async def StreamInvokeTool(self, request: InvokeToolRequest, context: Any) -> None:
        self.requests.append(request)
        await context.write(StreamInvokeToolResponse(events=[ToolEvent(started=ToolStarted(name=request.name))]))
        if request.name == "wait":
            await self.wait()
        ending = [ToolEvent(progress=ToolProgress(done=1.0)), ToolEvent(result=result(request))]
        await context.write(StreamInvokeToolResponse(events=ending if self.events is None else self.events))

    async def wait(self) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            self.abandoned.set()

    async def ListToolVersions(self, request: Any, context: Any) -> Any:
        raise NotImplementedError("asked by no test")

    async def RegisterTool(self, request: Any, context: Any) -> Any:
        raise NotImplementedError("asked by no test")

    async def UnregisterTool(self, request: Any, context: Any) -> Any:
        raise NotImplementedError("asked by no test")


def spec(name: str) -> ToolSpec:
    schema = '{"type":"object"}'
    return ToolSpec(name=name, description=f"Does {name}.", input_schema=schema, builtin=BuiltinBinding(function=name))


def result(request: InvokeToolRequest) -> ToolResult:
    return ToolResult(call_id=request.call_id, name=request.name, parts=[Part(text=TextPart(text="done"))], attempts=1)


async def test_texts_are_embedded_in_their_order():
    servicer = Lengths()
    async with serve(servicer) as address, EmbeddingClient(address, model="scripted/embed") as client:
        response = await client.embed(["a", "bcd"], dimensions=2, purpose="search_query", normalize=False)
        one = await client.embed("xy", model="scripted/other")
        tokens = await client.embed(EmbedInput(tokens=TokenInput(ids=[1, 2, 3])))
    assert vectors_of(response) == [[0.0, 1.0], [1.0, 3.0]]
    assert (vectors_of(one), one.model) == ([[0.0, 2.0]], "scripted/other")
    assert vectors_of(tokens) == [[0.0, 3.0]]
    request = servicer.requests[0]
    assert (request.model, request.dimensions) == ("scripted/embed", 2)
    assert request.purpose == EmbedPurpose.EMBED_PURPOSE_SEARCH_QUERY
    assert request.HasField("normalize")
    assert not request.HasField("truncate")


async def test_a_wrong_embedding_request_is_named():
    async with serve(Lengths()) as address, EmbeddingClient(address) as client:
        with pytest.raises(InvalidRequest) as empty:
            await client.embed([])
        with pytest.raises(ValueError, match="'fun' is none of search_query, search_document"):
            await client.embed("x", purpose="fun")  # pyright: ignore[reportArgumentType]
        with pytest.raises(TypeError, match="no field size"):
            await client.embed("x", size=3)  # pyright: ignore[reportCallIssue]
    assert [violation.field for violation in empty.value.violations] == ["inputs"]


async def test_tools_are_listed_over_all_pages():
    async with serve(Bench()) as address, ToolBridgeClient(address) as client:
        tools = await client.list()
        some = await client.list(name_prefix="w")
        one = await client.get("add")
        with pytest.raises(NotFound, match="there is no tool 'sub'"):
            await client.get("sub")
    assert [one.name for one in tools] == ["add", "secret", "wait"]
    assert [one.name for one in some] == ["wait"]
    assert tool_of(one) == tool("add", "Does add.", {"type": "object"})


async def test_a_tool_is_run_with_what_was_asked():
    servicer = Bench()
    async with serve(servicer) as address, ToolBridgeClient(address) as client:
        done = await client.invoke("add", {"ä": [1, None]}, call_id="c1", tool_timeout=1.5, idempotency_key="k1")
        await client.invoke("add", '{ "as": "it is" }')
        await client.invoke("add")
    assert (done.call_id, done.parts[0].text.text) == ("c1", "done")
    first, second, third = servicer.requests
    assert first.arguments_json == '{"ä": [1, null]}'
    assert (first.timeout.ToMilliseconds(), first.request_id) == (1500, "k1")
    assert (second.arguments_json, third.arguments_json) == ('{ "as": "it is" }', "")
    assert not third.HasField("timeout")


async def test_errors_of_tools_keep_their_class():
    servicer = Bench()
    async with serve(servicer) as address, ToolBridgeClient(address) as client:
        with pytest.raises(ToolDenied) as denied:
            await client.invoke("secret", request_id="mine")
        with pytest.raises(Timeout):
            await client.invoke("wait", timeout=0.5)
        async with asyncio.timeout(5):
            await servicer.abandoned.wait()
        with pytest.raises(InvalidRequest):
            await client.invoke("no such name!")
    assert denied.value.metadata == {"tool": "secret", "request_id": "mine"}


async def test_a_run_is_followed_to_its_result():
    async with serve(Bench()) as address, ToolBridgeClient(address) as client:
        async with client.stream("add", {"a": 1}, call_id="c1") as stream:
            kinds = [event.WhichOneof("kind") async for event in stream]
        streamed = await stream.result()
        invoked = await client.invoke("add", {"a": 1}, call_id="c1")
    assert kinds == ["started", "progress", "result"]
    assert streamed == invoked


async def test_closing_a_run_cancels_the_tool():
    servicer = Bench()
    async with serve(servicer) as address, ToolBridgeClient(address) as client:
        async with client.stream("wait") as stream:
            assert (await anext(stream)).started.name == "wait"
        async with asyncio.timeout(5):
            await servicer.abandoned.wait()
        with pytest.raises(Cancelled):
            await stream.result()


@pytest.mark.parametrize(
    ("events", "text"),
    [
        ([], "without its last event"),
        ([ToolEvent(result=ToolResult()), ToolEvent(progress=ToolProgress())], "went on after its result"),
        ([ToolEvent()], "no kind"),
    ],
)
async def test_a_bridge_that_breaks_the_contract_is_no_success(events: list[ToolEvent], text: str):
    servicer = Bench()
    servicer.events = events
    async with serve(servicer) as address, ToolBridgeClient(address) as client:
        with pytest.raises(StreamBroken, match=text):
            await client.stream("add").result()


async def test_a_model_uses_the_tools_of_the_mesh():
    bench, provider = Bench(), ScriptedProvider(answer(calls=[("c1", "add", '{"a":1}'), ("c2", "secret", "{}")]))
    async with (
        serve(bench, ChatServicer(provider)) as address,
        LLMClient(address, model="scripted/model") as client,
        ToolBridgeClient(address) as bridge,
    ):

        async def then_answer(**arguments: Any) -> ToolResult:
            provider.events = answer("fine")
            return await bridge.bind("add", persona="tester")(**arguments)

        functions = {"add": then_answer, "secret": bridge.bind("secret"), "wait": bridge.bind("wait")}
        tools = [tool_of(one) for one in await bridge.list()]
        run = await client.run_tools("Go", functions, tools=tools)
    results = [part.tool_result for part in run.messages[2].parts]
    assert [(one.call_id, one.parts[0].text.text, one.is_error) for one in results] == [
        ("c1", "done", False),
        ("c2", "ToolDenied: not for you", True),
    ]
    assert bench.requests[0].persona == "tester"
