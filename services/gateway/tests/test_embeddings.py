"""Embeddings at the gateway's doors, on real sockets: OpenAI's shape, the contract's, accounts, bad input."""

from __future__ import annotations

import asyncio
import base64
import time
from array import array
from collections.abc import AsyncGenerator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import orjson
import pytest
from google.api.httpbody_pb2 import HttpBody
from hypothesis import given, settings
from hypothesis import strategies as st

from maestro.event.v1.event_pb2 import Event, RequestOperation
from maestro.gateway.v1.openai_pb2_grpc import OpenAIServiceStub
from maestro.llm.v1.embedding_pb2 import EmbedPurpose, EmbedRequest, EmbedResponse
from maestro_gateway.account import Accountant
from maestro_gateway.cache import AnswerStore
from maestro_gateway.embedding_service import EmbeddingService
from maestro_gateway.identity import Keys
from maestro_gateway.identity.door import authenticator
from maestro_gateway.identity.keys import configured
from maestro_gateway.limits import Limiter
from maestro_gateway.mesh import Mesh
from maestro_gateway.openai.embeddings import AskedVectors, decode_embedding, pieces
from maestro_gateway.openai.service import OpenAIService
from maestro_sdk.embeddings import EmbeddingClient, vectors_of
from maestro_sdk.errors import InvalidRequest, PermissionDenied, TenantRateLimited, TooLarge
from maestro_sdk.mesh.backends import Backends
from maestro_sdk.mesh.dispatch import Dispatcher
from maestro_sdk.mesh.table import compile_table
from maestro_sdk.service.channel import open_channel
from maestro_sdk.service.interceptors import MeshInterceptor
from maestro_sdk.service.limits import LimitsConfig
from maestro_sdk.testing import tables
from maestro_sdk.testing.plain_embedding_servicer import PlainEmbedder
from maestro_sdk.testing.servers import serve

from .conftest import KEY, OTHER_KEY, Reply, Routers, Source, metadata

CHATS_ONLY = "mk-chats-only-0123456789"


@dataclass
class Doors:
    """A running gateway. `events` are those that it published, oldest first."""

    address: str
    rest: Any
    events: list[Event]

    async def post(self, body: Any, key: str = KEY) -> Reply:
        """One request of REST; the pieces of its answer are joined."""
        data = body if isinstance(body, bytes) else orjson.dumps(body)
        call = self.rest.CreateEmbedding(HttpBody(data=data), metadata=metadata(key))
        found = b"".join([message.data async for message in call])
        headers = {name: str(value) for name, value in await call.initial_metadata()}
        return Reply(int(headers.get("x-http-status", "200")), headers, found)

    def kinds(self) -> list[str]:
        return [event.kind for event in self.events]


@asynccontextmanager
async def doors(
    *adapters: PlainEmbedder, limiter: Limiter | None = None, cache: AnswerStore | None = None, budgets: Any = None
) -> AsyncGenerator[Doors]:
    async with AsyncExitStack() as stack:
        backends = [
            tables.backend(f"a{number}", adapter.model, await stack.enter_async_context(serve(adapter)))
            for number, adapter in enumerate(adapters)
        ]
        table = tables.message(backends, {"default": [(b.model.id, 1.0) for b in backends]})
        if cache is not None:
            table.routes[0].cache.ttl.seconds, table.routes[0].cache.max_bytes = 600, 10_000
        source = Source(compile_table(table))
        source.local.adopt(source.table, time.time())
        channels, events = Backends(), list[Event]()
        stack.push_async_callback(channels.close)
        mesh = Mesh(
            source=source,
            routers=Routers(),
            backends=channels,
            dispatcher=Dispatcher(source, channels, gate=limiter.gate if limiter is not None else None),
            accountant=Accountant(events.append, lambda: False, limiter, budgets and budgets(source, events)),
            cache=cache,
        )
        keys = Keys([("acme", KEY), ("globex", OTHER_KEY), configured("acme", CHATS_ONLY, ("chat",))])
        address = await stack.enter_async_context(
            serve(
                EmbeddingService(mesh),
                OpenAIService(mesh, None, max_body=1_000_000, ping=15.0),
                interceptors=[MeshInterceptor(authenticate=authenticator(keys))],
            )
        )
        channel = open_channel(address)
        stack.push_async_callback(channel.close)
        yield Doors(address, OpenAIServiceStub(channel), events)


async def test_openais_shape():
    async with doors(PlainEmbedder("p0/small")) as running:
        reply = await running.post({"model": "p0/small", "input": ["text 1", "text 2"], "user": "u", "colour": "red"})
    assert reply.status == 200
    assert reply.headers["x-request-id"] == "req-of-the-test"
    document = reply.json
    assert document["maestro"].pop("warnings") == [
        {
            "code": "unknown_field",
            "field": "colour",
            "message": "colour is not a field of a request for embeddings and was ignored",
        },
        {"code": "unsupported_parameter", "field": "user", "message": "user means nothing to p0"},
    ]
    assert document == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [1.0, 0.5, 0.5]},
            {"object": "embedding", "index": 1, "embedding": [2.0, 0.5, 0.5]},
        ],
        "model": "p0/small",
        "usage": {"prompt_tokens": 20, "total_tokens": 20},
        "maestro": {"provider": "p0", "route": None, "attempt": 1, "cost_usd": "0.000020", "estimated": False},
    }


@pytest.mark.parametrize(
    ("given_input", "expected"),
    [("text 5", [5.0]), ([11, 12], [11.0]), ([[21], [22, 1]], [21.0, 22.0]), (["text 1", [9]], [1.0, 9.0])],
)
async def test_every_form_of_input(given_input: Any, expected: list[float]):
    async with doors(PlainEmbedder("p0/small")) as running:
        reply = await running.post({"input": given_input, "dimensions": 4})
        packed = await running.post({"input": given_input, "dimensions": 4, "encoding_format": "base64"})
    vectors = [item["embedding"] for item in reply.json["data"]]
    assert vectors == [[first, 0.5, 0.5, 0.5] for first in expected]
    assert [list(array("f", base64.b64decode(item["embedding"]))) for item in packed.json["data"]] == vectors
    assert reply.json["maestro"]["route"] == "default"


async def test_the_contracts_own_fields_stand_beside_openais():
    adapter = PlainEmbedder("p0/small")
    body = {
        "input": "text 1",
        "purpose": "search_query",
        "truncate": True,
        "normalize": False,
        "metadata": {"team": "a"},
        "routing": {"session_key": "s"},
        "provider_options": {"p0": {"x": 1}},
    }
    async with doors(adapter) as running:
        assert (await running.post(body)).status == 200
    [asked] = adapter.asked
    assert asked.purpose == EmbedPurpose.EMBED_PURPOSE_SEARCH_QUERY
    assert (asked.truncate, asked.HasField("normalize"), asked.normalize) == (True, True, False)
    assert (dict(asked.metadata), asked.routing.session_key) == ({"team": "a"}, "s")
    assert asked.provider_options["p0"]["x"] == 1


async def test_five_thousand_inputs_come_back_in_order():
    adapter = PlainEmbedder("p0/small", length=256)
    async with doors(adapter) as running:
        reply = await running.post({"input": [f"text {number}" for number in range(5000)]})
    assert reply.status == 200
    assert [item["index"] for item in reply.json["data"]] == list(range(5000))
    assert [item["embedding"][0] for item in reply.json["data"]] == list(range(5000))
    assert len(adapter.asked) == 10
    assert reply.json["usage"]["prompt_tokens"] == 50_000


BAD: list[tuple[Any, str]] = [
    ({}, "input"),
    ({"input": None}, "input"),
    ({"input": ""}, "input"),
    ({"input": []}, "input"),
    ({"input": 5}, "input"),
    ({"input": {"text": "a"}}, "input"),
    ({"input": ["a", ""]}, "input[1]"),
    ({"input": ["a", 5]}, "input[1]"),
    ({"input": ["a", None]}, "input[1]"),
    ({"input": [1, "a"]}, "input[1]"),
    ({"input": [1, -1]}, "input[1]"),
    ({"input": [1, 1.5]}, "input[1]"),
    ({"input": [1, True]}, "input[1]"),
    ({"input": [True]}, "input[0]"),
    ({"input": [[1], []]}, "input[1]"),
    ({"input": [[1], [2**31]]}, "input[1][0]"),
    ({"input": [[1] * 65537]}, "input[0]"),
    ({"input": "a", "model": 5}, "model"),
    ({"input": "a", "model": "m" * 257}, "model"),
    ({"input": "a", "dimensions": 0}, "dimensions"),
    ({"input": "a", "dimensions": 65537}, "dimensions"),
    ({"input": "a", "dimensions": "many"}, "dimensions"),
    ({"input": "a", "encoding_format": "hex"}, "encoding_format"),
    ({"input": "a", "purpose": "fun"}, "purpose"),
    ({"input": "a", "truncate": "yes"}, "truncate"),
    ({"input": "a", "user": 1}, "user"),
    ({"input": "a", "metadata": {"a": 1}}, "metadata.a"),
    ({"input": "a", "routing": {"required": ["nothing"]}}, "routing.required[0]"),
    ({"input": "a", "provider_options": 1}, "provider_options"),
    ({"input": "a", "strict": True, "colour": 1}, "colour"),
    (b"[1]", "body"),
    (b"{", "body"),
    (b'{"input": "a", "input": "b"}', "body"),
]


async def test_bad_input_names_its_field_and_reaches_nobody():
    adapter = PlainEmbedder("p0/small")
    async with doors(adapter) as running:
        for body, path in BAD:
            reply = await running.post(body)
            assert (reply.status, reply.json["error"]["param"]) == (400, path), body
            assert reply.json["error"]["type"] == "invalid_request_error"
        assert adapter.asked == []
        assert running.events == []


async def test_too_much_is_refused_before_anything_is_sent():
    adapter = PlainEmbedder("p0/small")
    async with doors(adapter) as running:
        for body in (
            {"input": ["a"] * 8193},
            {"input": ["a"] * 5300},
            {"input": ["a"] * 1000, "dimensions": 16001},
            {"input": "a" * 1_000_000},
        ):
            reply = await running.post(body)
            assert (reply.status, reply.json["error"]["maestro"]["reason"]) == (413, "TOO_LARGE"), str(body)[:60]
        async with EmbeddingClient(f"http://{running.address}", KEY) as client:
            with pytest.raises(TooLarge, match="at most 2034 inputs"):
                await client.embed(["a"] * 2035)
        assert adapter.asked == []


@settings(max_examples=300, deadline=None)
@given(
    st.dictionaries(
        st.sampled_from(
            [
                "input",
                "model",
                "dimensions",
                "encoding_format",
                "user",
                "purpose",
                "truncate",
                "routing",
                "metadata",
                "?",
            ]
        ),
        st.recursive(
            st.none()
            | st.booleans()
            | st.integers(-(2**63), 2**63)
            | st.floats(allow_nan=False, allow_infinity=False)
            | st.text(max_size=5),
            lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
            max_leaves=8,
        ),
    )
)
def test_any_body_is_read_or_refused(body: dict[str, Any]):
    asked, refused = None, None
    try:
        asked = decode_embedding(orjson.dumps(body))
    except (InvalidRequest, TooLarge) as error:
        refused = error
    if asked is None:
        assert refused is not None
        assert refused.violations
    else:
        assert asked.request.inputs
        assert {entry.WhichOneof("kind") for entry in asked.request.inputs} <= {"text", "tokens"}


async def test_events_tell_of_every_request():
    async with doors(PlainEmbedder("p0/small")) as running:
        await running.post({"input": "text 1", "model": "p0/small"})
        await running.post({"input": "text 1", "model": "p9/none"}, OTHER_KEY)
    assert running.kinds() == ["request.started", "request.completed", "request.started", "request.failed"]
    started, completed = running.events[0].request_started, running.events[1].request_completed
    assert started.operation == completed.operation == RequestOperation.REQUEST_OPERATION_EMBED
    assert (completed.usage.input_tokens, completed.cost.usd, completed.model) == (10, "0.000010", "small")
    assert [usage.usage.input_tokens for usage in completed.attempt_usages] == [10]
    assert [event.tenant for event in running.events] == ["acme", "acme", "globex", "globex"]
    assert running.events[3].request_failed.operation == RequestOperation.REQUEST_OPERATION_EMBED


async def test_errors_of_the_mesh_have_openais_shape():
    async with doors(PlainEmbedder("p0/small")) as running:
        unknown = await running.post({"input": "a", "model": "p9/none"})
        nobody = await running.post({"input": "a"}, "mk-wrong-0123456789")
    assert (unknown.status, unknown.json["error"]["code"]) == (404, "model_not_found")
    assert (nobody.status, nobody.json["error"]["code"]) == (401, "invalid_api_key")


async def test_the_sdks_client_works_at_the_gateway():
    async with doors(PlainEmbedder("p0/small")) as running:
        async with EmbeddingClient(f"http://{running.address}", KEY) as client:
            answer = await client.embed(["text 1", "text 2"], dimensions=2, purpose="similarity")
            assert vectors_of(answer) == [[1.0, 0.5], [2.0, 0.5]]
            with pytest.raises(InvalidRequest) as caught:
                await client.embed(EmbedRequest())
        assert [violation.field for violation in caught.value.violations] == ["inputs"]
        assert running.kinds() == ["request.started", "request.completed"]


async def test_limits_count_tokens_of_embeddings():
    limits = LimitsConfig.model_validate({"every_tenant": {"tokens": {"limit": 25, "per": "1m"}}})
    adapter = PlainEmbedder("p0/small")
    async with doors(adapter, limiter=Limiter(limits)) as running:
        first = await running.post({"input": ["text 1", "text 2"]})
        assert first.status == 200
        assert first.headers["x-ratelimit-limit-tokens"] == "25"
        refused = await running.post({"input": "x" * 40})
        assert (refused.status, refused.json["error"]["maestro"]["reason"]) == (429, "TENANT_RATE_LIMITED")
        async with EmbeddingClient(f"http://{running.address}", KEY) as client:
            with pytest.raises(TenantRateLimited):
                await client.embed("x" * 40)
        # The other tenant has its own.
        assert (await running.post({"input": "text 1"}, OTHER_KEY)).status == 200
    assert len(adapter.asked) == 2


async def test_a_failed_write_is_no_failure_of_the_request():
    async with doors(PlainEmbedder("p0/small", length=3072)) as running:
        data = orjson.dumps({"input": ["a"] * 2000})
        call = running.rest.CreateEmbedding(HttpBody(data=data), metadata=metadata(KEY))
        assert (await call.read()).data.startswith(b'{"object":"list"')
        call.cancel()
        assert await call.code() == grpc.StatusCode.CANCELLED
        assert running.kinds() == ["request.started", "request.completed"]
        # And the gateway goes on.
        assert (await running.post({"input": "text 1"})).status == 200


def test_numbers_survive_the_way_through_json():
    exact = array("f", [0.1, -1 / 3, 1e-30, 3.4e38, 0.0])
    response = EmbedResponse(provider="p", model="m")
    response.embeddings.add(index=0, values=exact)
    for packed in (False, True):
        document = orjson.loads(b"".join(pieces(response, AskedVectors(EmbedRequest(), packed), "")))
        [item] = document["data"]
        found = array("f", base64.b64decode(item["embedding"])) if packed else array("f", item["embedding"])
        assert found == exact


async def test_a_key_without_the_scope_embeds_nothing():
    adapter = PlainEmbedder("p0/small")
    async with doors(adapter) as running:
        reply = await running.post({"input": "a"}, CHATS_ONLY)
        assert (reply.status, reply.json["error"]["type"]) == (403, "permission_error")
        async with EmbeddingClient(f"http://{running.address}", CHATS_ONLY) as client:
            with pytest.raises(PermissionDenied, match="embeddings"):
                await client.embed("a")
    assert adapter.asked == []


async def test_vectors_are_given_again_to_their_tenant_alone():
    embedder = PlainEmbedder("p0/small")
    async with doors(embedder, cache=AnswerStore()) as running:
        body = {"input": ["text 1", "text 2"]}
        first, again = await running.post(body), await running.post(body)
        assert first.json["data"] == again.json["data"]
        assert len(embedder.asked) == 1
        foreign = await running.post(body, OTHER_KEY)
        assert foreign.json["data"] == first.json["data"]
        assert len(embedder.asked) == 2
    states = [reply.headers["x-maestro-cache"] for reply in (first, again, foreign)]
    assert states == ["miss", "hit", "miss"]
    ends = [event.request_completed for event in running.events if event.kind == "request.completed"]
    assert [(end.cached, end.cost.usd) for end in ends] == [
        (False, ends[2].cost.usd),
        (True, "0"),
        (False, ends[2].cost.usd),
    ]


async def test_the_same_texts_at_once_are_embedded_once():
    embedder = PlainEmbedder("p0/small")
    async with doors(embedder, cache=AnswerStore()) as running:
        replies = await asyncio.gather(*(running.post({"input": ["text 1", "text 2"]}) for _ in range(8)))
    assert len({orjson.dumps(reply.json["data"]) for reply in replies}) == 1
    assert len(embedder.asked) == 1
    assert sorted(reply.headers["x-maestro-cache"] for reply in replies) == ["hit"] * 7 + ["miss"]
