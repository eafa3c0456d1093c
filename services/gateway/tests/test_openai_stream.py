"""A stream of chunks, put together by OpenAI's own client, is the unary answer."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st
from openai.lib.streaming.chat import ChatCompletionStreamState
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, Finish, FinishReason, Started, TextDelta
from maestro.llm.v1.message_pb2 import Citation
from maestro_gateway.openai.answer import DONE, Chunks, encode_completion
from maestro_gateway.openai.request import Asked
from maestro_sdk.adapter.fold import Fold
from maestro_sdk.testing.strategies import split

from .answering import good_answers, read_frames

FACTS = ("service_tier", "system_fingerprint")
LAW = settings(max_examples=150, deadline=None, derandomize=True, database=None)


def unary(events: Sequence[ChatEvent]) -> ChatCompletion:
    """The answer as OpenAI's client reads it."""
    fold = Fold()
    fold.feed(events)
    return ChatCompletion.model_validate_json(encode_completion(fold.response(), Asked(ChatRequest()), "", 7))


def words_of(message: Any) -> str:
    """The reasoning, which stands beside what OpenAI's client knows."""
    return (message.model_extra or {}).get("reasoning_content") or ""


@LAW
@given(st.data(), st.booleans(), st.booleans())
def test_chunks_make_the_same_completion(data: st.DataObject, interleaved: bool, include_usage: bool):
    events = data.draw(good_answers(interleaved=interleaved))
    chunks = Chunks(Asked(ChatRequest(), include_usage=include_usage), 7)
    sent = b"".join(chunks.frames(read) for read in data.draw(split(events)))
    assert sent.endswith(DONE)
    state: Any = ChatCompletionStreamState()
    documents = read_frames(sent)
    for document in documents:
        list(state.handle_chunk(ChatCompletionChunk.model_validate(document)))
    # Not its final form, which refuses an answer that met its limit.
    message = state.current_completion_snapshot.choices[0].message
    whole = unary(events)
    wanted = whole.choices[0].message
    if not interleaved:
        assert (message.content or None) == (wanted.content or None)
        assert (message.refusal or None) == (wanted.refusal or None)
        assert (words_of(message) or None) == (words_of(wanted) or None)
    assert sorted(words_of(message)) == sorted(words_of(wanted))
    assert sorted(message.content or "") == sorted(wanted.content or "")
    found = {call.id: (call.function.name, json.loads(call.function.arguments)) for call in message.tool_calls or []}
    calls: Any = wanted.tool_calls or []
    assert found == {call.id: (call.function.name, json.loads(call.function.arguments)) for call in calls}
    last = state.current_completion_snapshot
    assert (last.id, last.model, last.created) == (whole.id, whole.model, whole.created)
    assert last.choices[0].finish_reason == whole.choices[0].finish_reason
    assert ("usage" in documents[-1]) == include_usage
    if include_usage:
        assert last.usage == whole.usage


def test_sources_of_an_answer_are_annotations():
    cited = [Citation(title="Weather", url="https://example.com/w"), Citation(title="a.pdf", cited_text="rain")]
    events = [
        ChatEvent(started=Started(response_id="r", provider="openai", model="gpt-4.1", attempt=1)),
        ChatEvent(text=TextDelta(index=0, text="Rain.", citations=cited[:1])),
        ChatEvent(text=TextDelta(index=0, citations=cited[1:])),
        ChatEvent(finish=Finish(reason=FinishReason.FINISH_REASON_STOP)),
    ]
    [told] = unary(events).choices[0].message.annotations or []
    assert (told.url_citation.title, told.url_citation.url) == ("Weather", "https://example.com/w")
    deltas = [
        document["choices"][0]["delta"] for document in read_frames(Chunks(Asked(ChatRequest()), 7).frames(events))
    ]
    assert [delta["annotations"] for delta in deltas if "annotations" in delta] == [[told.model_dump()], []]


def test_what_openai_tells_of_its_own_doing_is_told_to_those_who_asked():
    finish = Finish(reason=FinishReason.FINISH_REASON_STOP)
    finish.provider_metadata["openai"].update({"service_tier": "flex", "system_fingerprint": "fp_1"})
    started = Started(response_id="r", provider="openai", model="gpt-4.1", attempt=1)
    events = [ChatEvent(started=started), ChatEvent(finish=finish)]
    fold = Fold()
    fold.feed(events)
    for asked, told in (
        (Asked(ChatRequest()), {}),
        (Asked(ChatRequest(seed=1)), {"system_fingerprint": "fp_1"}),
        (Asked(ChatRequest(), passed=("service_tier",)), {"service_tier": "flex"}),
    ):
        whole = json.loads(encode_completion(fold.response(), asked, "", 7))
        [*_, last] = read_frames(Chunks(asked, 7).frames(events))
        for document in (whole, last):
            assert {name: document[name] for name in FACTS if document.get(name)} == told
