"""Rules of the contract: what breaks them is told with its path, and reaches no handler."""

from __future__ import annotations

from typing import Any

import pytest

from maestro.llm.v1 import chat_pb2, file_pb2, message_pb2
from maestro_sdk.errors import InvalidRequest
from maestro_sdk.service.interceptors import validate
from maestro_sdk.service.validation import VALIDATED

from .servicers import Chats, ChatStub, FileStub, authenticate, failure, make_files, served


def message(**part: Any) -> message_pb2.Message:
    return message_pb2.Message(role=message_pb2.ROLE_USER, parts=[message_pb2.Part(**part)])


@pytest.mark.parametrize(
    ("request_message", "paths"),
    [
        (chat_pb2.ChatRequest(), ["messages"]),
        (chat_pb2.ChatRequest(messages=[message_pb2.Message()]), ["messages[0].role", "messages[0].parts"]),
        (chat_pb2.ChatRequest(messages=[message(text={"text": "x"}), message()]), ["messages[1].parts[0].kind"]),
        (chat_pb2.ChatRequest(messages=[message(image={"url": ""})]), ["messages[0].parts[0].image.url"]),
        (chat_pb2.ChatRequest(messages=[message(text={})], temperature=3), ["temperature"]),
        (chat_pb2.ChatRequest(messages=[message(text={})], metadata={"k": "v" * 600}), ['metadata["k"]']),
        (chat_pb2.ChatRequest(messages=[message(text={})], stop=["a", ""]), ["stop[1]"]),
        (chat_pb2.CountTokensRequest(request=chat_pb2.ChatRequest()), ["request.messages"]),
    ],
)
def test_a_broken_rule_is_told_with_its_path(request_message: Any, paths: list[str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        validate(request_message)
    assert [violation.field for violation in caught.value.violations] == paths
    assert all(violation.message for violation in caught.value.violations)
    assert caught.value.message.startswith(f"{paths[0]}: ")


async def test_a_request_that_breaks_a_rule_reaches_no_handler() -> None:
    chats = Chats()
    async with served(chats, make_files()) as (channel, _):
        stub = ChatStub(channel)
        for call in (stub.Chat(chat_pb2.ChatRequest()), stub.StreamChat(chat_pb2.ChatRequest()).read()):
            error = await failure(call)
            assert isinstance(error, InvalidRequest)
            assert [violation.field for violation in error.violations] == ["messages"]
        upload = FileStub(channel).UploadFile(iter([file_pb2.UploadFileRequest()]))
        assert isinstance(await failure(upload), InvalidRequest)
    assert chats.calls == []
    assert not chats.ended.is_set()


async def test_what_a_service_validated_is_not_validated_again() -> None:
    chats = Chats()
    broken = chat_pb2.ChatRequest()
    async with served(chats) as (channel, _):
        assert (await ChatStub(channel).Chat(broken, metadata=[VALIDATED])).response_id == "r"
        assert isinstance(await failure(ChatStub(channel).Chat(broken)), InvalidRequest)
    # Where callers come from outside, nobody is believed.
    async with served(chats, authenticate=authenticate) as (channel, _):
        call = ChatStub(channel).Chat(broken, metadata=[VALIDATED, ("authorization", "Bearer good")])
        assert isinstance(await failure(call), InvalidRequest)
    assert len(chats.calls) == 1


async def test_bytes_that_are_no_message_are_the_callers_fault(caplog: pytest.LogCaptureFixture) -> None:
    chats = Chats()
    async with served(chats) as (channel, _):
        for data in (b"\xff\xff\xff", b"\x0a\x02\xff\xfe", b"\x0b" * 100_000):
            error = await failure(channel.unary_unary("/maestro.llm.v1.ChatService/Chat")(data))
            assert isinstance(error, InvalidRequest)
            assert "maestro.llm.v1.ChatRequest" in error.message
    assert chats.calls == []
    assert not caplog.records
