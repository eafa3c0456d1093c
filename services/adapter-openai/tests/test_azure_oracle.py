"""Azure as others know it: the official SDK sends and reads the same, and another hand's emulator answers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import openai as sdk
import pytest
from google.protobuf.json_format import MessageToDict

from maestro.llm.v1.chat_pb2 import FinishReason
from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedRequest
from maestro_adapter_openai.azure import AzureProvider
from maestro_adapter_openai.settings import OpenAISettings
from maestro_adapter_openai.translate import AZURE, Stream
from maestro_sdk.adapter.fold import fold
from maestro_sdk.testing import openai_auxiliary, openai_chat
from maestro_sdk.testing.faults import FaultServer, Headers, Send
from maestro_sdk.testing.openai_auxiliary import OpenAIAuxiliary
from maestro_sdk.testing.servers import Aimock

from .asking import ask_azure, call

GOLDEN = Path(__file__).with_name("golden") / "azure"
CHAT = "/openai/deployments/*"
STREAMS = sorted(path.stem for path in GOLDEN.glob("*.sse"))


async def test_the_sdk_would_send_the_same(server: FaultServer, azure: AzureProvider) -> None:
    """URL, key and body of chat and embeddings, streamed or not, are those of `AsyncAzureOpenAI`."""
    server.on("POST", "/openai/deployments/*/chat/completions", openai_chat.text())
    OpenAIAuxiliary(server, openai_auxiliary.AZURE)
    await call(azure, ask_azure())
    await call(azure, ask_azure(), "complete")
    await azure.embed(EmbedRequest(model="azure/text-embedding-3-small", inputs=[EmbedInput(text="x")]))
    client = sdk.AsyncAzureOpenAI(
        azure_endpoint=server.url, api_key="sk-test", api_version="2025-04-01-preview", max_retries=0
    )
    async with client:
        turn: Any = [{"role": "user", "content": "hello"}]
        stream = await client.chat.completions.create(
            model="my 41", messages=turn, stream=True, stream_options={"include_usage": True}
        )
        assert [chunk async for chunk in stream]
        await client.chat.completions.create(model="my 41", messages=turn)
        await client.embeddings.create(model="vectors", input=["x"])
    ours, theirs = server.requests[:3], server.requests[3:]
    for mine, other in zip(ours, theirs, strict=True):
        assert (mine.path, mine.query, mine.json()) == (other.path, other.query, other.json())
        assert mine.headers["api-key"] == other.headers["api-key"]


@pytest.mark.parametrize("name", STREAMS)
async def test_same_as_the_sdk(server: FaultServer, name: str) -> None:
    data = (GOLDEN / f"{name}.sse").read_bytes()
    server.on("POST", CHAT, Headers(200, {"content-type": "text/event-stream"}), Send(data))
    client = sdk.AsyncAzureOpenAI(azure_endpoint=server.url, api_key="k", api_version="v", max_retries=0)
    async with client:
        stream = await client.chat.completions.create(
            model="m", messages=[{"role": "user", "content": "x"}], stream=True
        )
        chunks = [chunk async for chunk in stream]
    mine = Stream(AZURE, "gpt-4.1")
    response = fold([*mine.feed(data), *mine.end()])
    choices = [choice for chunk in chunks for choice in chunk.choices]
    text = "".join(choice.delta.content or "" for choice in choices if choice.delta)
    assert "".join(part.text.text for part in response.parts) == text
    assert response.raw_reason == next(choice.finish_reason for choice in choices if choice.finish_reason)
    filtered = response.finish_reason == FinishReason.FINISH_REASON_CONTENT_FILTER
    assert filtered == (response.raw_reason == "content_filter")
    told: Any = [(chunk.model_extra or {}).get("prompt_filter_results") for chunk in chunks]
    first = next(entry for entry in told if entry)
    kept: Any = MessageToDict(response)["providerMetadata"]["azure"]["prompt_filter_results"]
    assert kept == first


async def test_emulator(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another hand's emulator takes the same URLs and answers in the same shapes."""
    fixtures = [
        {"match": {"userMessage": "hello"}, "response": {"content": "Hello from a deployment."}},
        {"match": {"inputText": "x"}, "response": {"embedding": [0.5, -0.25]}},
    ]
    async with Aimock(fixtures) as emulator:
        fields = {
            "endpoint": emulator.url,
            "api_key": {"env": "ADAPTER_TEST_KEY"},
            "deployments": {"gpt-4.1": "my-41", "text-embedding-3-small": "vectors"},
        }
        provider = AzureProvider.from_settings(OpenAISettings.model_validate({"azure": fields}))
        for mode in ("stream", "complete"):
            assert fold(await call(provider, ask_azure(), mode)).parts[0].text.text == "Hello from a deployment."
        inputs = [EmbedInput(text="x")]
        answer = await provider.embed(EmbedRequest(model="azure/text-embedding-3-small", inputs=inputs))
        assert list(answer.embeddings[0].values) == [0.5, -0.25]
        await provider.close()
