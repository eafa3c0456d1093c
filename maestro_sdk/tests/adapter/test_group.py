"""Several providers behind one adapter: each answers for its own, and none fails for another."""

import io
from collections.abc import AsyncIterator, Sequence
from typing import Any

import grpc
import pytest

from maestro.llm.v1.batch_pb2 import Batch, BatchHeader, BatchItem, BatchItemResult, ListBatchesRequest
from maestro.llm.v1.batch_pb2 import ListBatchesResponse as BatchPage
from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest
from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro.llm.v1.file_pb2 import DownloadFileRequest, FileHeader, ListFilesRequest
from maestro.llm.v1.file_pb2_grpc import FileServiceStub
from maestro.llm.v1.message_pb2 import Message, Part, Role, TextPart
from maestro.llm.v1.model_pb2 import Feature, FeatureSupport, Model, Support
from maestro_sdk.adapter.file_servicer import FileServicer
from maestro_sdk.adapter.fold import fold
from maestro_sdk.adapter.group import ProviderGroup
from maestro_sdk.errors import (
    InvalidRequest,
    NotFound,
    Overloaded,
    ProviderAuth,
    Unimplemented,
)
from maestro_sdk.testing.obliging_files import ObligingFiles
from maestro_sdk.testing.scripted import ScriptedProvider, answer
from maestro_sdk.testing.servers import serve


class Plain(ScriptedProvider):
    """Chats only."""

    def __init__(self, provider: str, reason: str = "") -> None:
        super().__init__()
        self.providers: Sequence[str] = (provider,)
        self.reason = reason
        self.failure: Exception | None = None
        self.closed = False

    async def stream(self, request: ChatRequest) -> AsyncIterator[Sequence[ChatEvent]]:
        yield answer(f"{self.providers[0]} streams")

    async def models(self) -> Sequence[Model]:
        if self.failure is not None:
            raise self.failure
        provider = self.providers[0]
        features = [FeatureSupport(feature=Feature.FEATURE_CHAT, support=Support.SUPPORT_NATIVE)]
        return [Model(id=f"{provider}/x", provider=provider, name="x", features=features)]

    async def check(self) -> str:
        return self.reason

    async def close(self) -> None:
        self.closed = True


class Full(Plain, ObligingFiles):
    """Does everything."""

    def __init__(self, provider: str, reason: str = "") -> None:
        Plain.__init__(self, provider, reason)
        ObligingFiles.__init__(self, provider)
        self.batches: list[str] = []

    def _file(self, file_id: str) -> Any:
        if self.failure is not None:
            raise self.failure
        provider, _, own = file_id.rpartition(":")
        if provider not in {"", self.providers[0]}:
            raise NotFound(f"{self.providers[0]} has no file {file_id!r}")
        return super()._file(own)

    async def delete_file(self, file_id: str) -> None:
        self._file(file_id)
        await ObligingFiles.delete_file(self, file_id.removeprefix(f"{self.providers[0]}:"))

    async def complete(self, request: ChatRequest) -> Sequence[ChatEvent]:
        return answer(f"{self.providers[0]} completes")

    async def count_tokens(self, request: ChatRequest) -> int:
        return 7

    async def embed(self, request: EmbedRequest) -> EmbedResponse:
        return EmbedResponse(provider=self.providers[0])

    async def create_batch(self, header: BatchHeader, items: AsyncIterator[BatchItem]) -> Batch:
        self.batches.append(f"{self.providers[0]}-{len(self.batches)}")
        return Batch(batch_id=self.batches[-1])

    async def get_batch(self, batch_id: str) -> Batch:
        if self.failure is not None:
            raise self.failure
        if batch_id not in self.batches:
            raise NotFound("no such batch")
        return Batch(batch_id=batch_id, provider=self.providers[0])

    async def cancel_batch(self, batch_id: str) -> Batch:
        return await self.get_batch(batch_id)

    async def list_batches(self, request: ListBatchesRequest) -> BatchPage:
        start = int(request.page_token or "0")
        found = self.batches[start : start + request.page_size]
        more = str(start + request.page_size) if start + request.page_size < len(self.batches) else ""
        return BatchPage(batches=[Batch(batch_id=batch_id) for batch_id in found], next_page_token=more)

    async def batch_results(self, batch_id: str) -> AsyncIterator[Sequence[BatchItemResult]]:
        yield [BatchItemResult(item_id=f"{self.providers[0]} {batch_id}")]


def ask(model: str) -> ChatRequest:
    turn = Message(role=Role.ROLE_USER, parts=[Part(text=TextPart(text="hello"))])
    return ChatRequest(model=model, messages=[turn])


async def nothing() -> AsyncIterator[BatchItem]:
    for item in ():
        yield item


def text(events: Sequence[ChatEvent]) -> str:
    return fold(list(events)).parts[0].text.text


async def test_each_answers_for_its_own_name() -> None:
    group = ProviderGroup("adapter-g", [Plain("a"), Full("b")])
    assert list(group.providers) == ["a", "b"]
    streamed = {name: [event async for some in group.stream(ask(f"{name}/x")) for event in some] for name in "ab"}
    assert [text(events) for events in streamed.values()] == ["a streams", "b streams"]
    # One that has no unary endpoint is folded from its stream.
    assert [text(await group.complete(ask(f"{name}/x"))) for name in "ab"] == ["a streams", "b completes"]
    assert await group.count_tokens(ask("b/x")) == 7
    assert (await group.embed(EmbedRequest(model="b/x"))).provider == "b"
    assert (await group.create_batch(BatchHeader(model="b/x"), nothing())).batch_id == "b-0"
    for call in (
        group.count_tokens(ask("a/x")),
        group.embed(EmbedRequest(model="a/x")),
        group.create_batch(BatchHeader(model="a/x"), nothing()),
    ):
        with pytest.raises(Unimplemented, match="a can't"):
            await call
    with pytest.raises(NotFound, match="speaks for a, b, not for 'c'"):
        group.stream(ask("c/x"))


async def test_readiness() -> None:
    one, other = Plain("a", "a has no key"), Plain("b")
    group = ProviderGroup("adapter-g", [one, other])
    assert await group.check() == ""
    assert [model.id for model in await group.models()] == ["b/x"]
    other.reason = "b has none either"
    assert await group.check() == "a has no key; b has none either"
    # While nobody is ready, all models are told: the mesh shows what a key would bring.
    assert [model.id for model in await group.models()] == ["a/x", "b/x"]
    await group.close()
    assert one.closed
    assert other.closed


async def test_a_member_that_can_not_tell_its_models_takes_none_away() -> None:
    one, other = Plain("a"), Plain("b")
    group = ProviderGroup("adapter-g", [one, other])
    one.failure = Overloaded("a is busy")
    assert [model.id for model in await group.models()] == ["b/x"]
    one.failure = None
    assert [model.id for model in await group.models()] == ["a/x", "b/x"]
    one.failure = Overloaded("a is busy")
    assert [model.id for model in await group.models()] == ["a/x", "b/x"]
    other.failure = Overloaded("b is busy")
    with pytest.raises(Overloaded, match="a is busy"):
        await group.models()


def header(provider: str = "") -> FileHeader:
    return FileHeader(filename="x.txt", provider=provider)


async def test_files_go_where_they_are_told_and_are_found_anywhere() -> None:
    plain, one, other = Plain("p"), Full("a"), Full("b")
    group = ProviderGroup("adapter-g", [plain, one, other])
    first = await group.upload_file(header(), io.BytesIO(b"first"))
    named = await group.upload_file(header("b"), io.BytesIO(b"named"))
    assert (first.provider, named.provider) == ("a", "b")
    for file_id, provider, content in (("a:file-000001", "a", b"first"), ("b:file-000001", "b", b"named")):
        assert (await group.get_file(file_id)).provider == provider
        assert b"".join([piece async for piece in group.download_file(file_id)]) == content
    with pytest.raises(NotFound, match="there is no file 'c:1'"):
        await group.get_file("c:1")
    for wrong in ("p", "nobody"):
        with pytest.raises(InvalidRequest, match="keeps no files here") as caught:
            await group.upload_file(header(wrong), io.BytesIO(b"x"))
        assert [violation.field for violation in caught.value.violations] == ["header.provider"]
    await group.delete_file("b:file-000001")
    assert [file.provider for file in (await group.list_files(ListFilesRequest())).files] == ["a"]


async def test_downloads_over_a_socket_are_whole() -> None:
    """The servicer and the group together: the owner is found, and the bytes pass."""
    group = ProviderGroup("adapter-g", [Full("a"), Full("b")])
    await group.upload_file(header("b"), io.BytesIO(b"x" * 5000))
    async with serve(FileServicer(group)) as address, grpc.aio.insecure_channel(address) as channel:
        call: Any = FileServiceStub(channel).DownloadFile(DownloadFileRequest(file_id="b:file-000001", offset=10))
        assert b"".join([message.data async for message in call]) == b"x" * 4990


async def test_one_that_fails_does_not_hide_what_another_has() -> None:
    one, other = Full("a"), Full("b")
    group = ProviderGroup("adapter-g", [one, other])
    await group.upload_file(header("b"), io.BytesIO(b"x"))
    batch = await group.create_batch(BatchHeader(model="b/x"), nothing())
    one.failure = Overloaded("a is busy")
    assert (await group.get_file("b:file-000001")).provider == "b"
    assert (await group.get_batch(batch.batch_id)).provider == "b"
    # Where nobody else has it, it may be where nobody can look.
    with pytest.raises(Overloaded, match="a is busy"):
        await group.get_file("a:file-000001")


async def test_batches_are_found_anywhere() -> None:
    group = ProviderGroup("adapter-g", [Full("a"), Plain("p"), Full("b")])
    for name in ("a", "b", "b"):
        await group.create_batch(BatchHeader(model=f"{name}/x"), nothing())
    assert (await group.get_batch("b-1")).provider == "b"
    assert (await group.cancel_batch("a-0")).provider == "a"
    results = [result.item_id async for some in group.batch_results("b-0") for result in some]
    assert results == ["b b-0"]
    for call in (group.get_batch("c-0"), group.cancel_batch("c-0"), anext(aiter(group.batch_results("c-0")))):
        with pytest.raises(NotFound, match="there is no batch 'c-0'"):
            await call


async def test_pages_lead_from_one_member_to_the_next() -> None:
    one, other = Full("a"), Full("b")
    group = ProviderGroup("adapter-g", [one, other])
    one.batches, other.batches = ["a-0", "a-1", "a-2"], ["b-0"]
    seen: list[list[str]] = []
    token = ""
    while True:
        page = await group.list_batches(ListBatchesRequest(page_size=2, page_token=token))
        seen.append([batch.batch_id for batch in page.batches])
        token = page.next_page_token
        if not token:
            break
    assert seen == [["a-0", "a-1"], ["a-2"], ["b-0"]]
    for strange in ("2:", "x", "x:1", "-1:"):
        with pytest.raises(InvalidRequest, match="none of ours"):
            await group.list_batches(ListBatchesRequest(page_token=strange))


async def test_nobody_keeps_files() -> None:
    with pytest.raises(Unimplemented, match="keeps files"):
        await ProviderGroup("adapter-g", [Plain("a")]).get_file("f")
    with pytest.raises(Unimplemented, match="runs batches"):
        await ProviderGroup("adapter-g", [Plain("a"), Full("b", "no key")]).list_batches(ListBatchesRequest())
    with pytest.raises(ProviderAuth, match="no key"):
        await ProviderGroup("adapter-g", [Full("b", "no key")]).upload_file(header(), io.BytesIO(b"x"))
