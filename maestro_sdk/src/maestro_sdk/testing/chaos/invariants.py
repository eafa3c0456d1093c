"""What has to hold whatever happens to a mesh. Pure: what was seen goes in, what is wrong comes out as sentences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence

from maestro.event.v1.event_pb2 import Event
from maestro_sdk.testing.chaos.load import Shown
from maestro_sdk.testing.chaos.provider import INPUT_TOKENS, Call, text_of


def broken_answers(shown: Iterable[Shown]) -> Iterator[str]:
    """One end for each question, told once; nothing of an answer twice, nothing left out."""
    for each in shown:
        who = f"{each.mark} by {each.door}"
        if len(each.terminals) > 1:
            yield f"{who} was told {len(each.terminals)} ends: {each.failure}"
        if not each.terminals and not each.broken:
            yield f"{who} was told no end"
        if each.started > 1:
            yield f"{who} saw {each.started} beginnings"
        if each.refusable and each.answered:
            yield f"{who} was answered although the provider refused it"
        whole = text_of(each.mark)
        if each.answered and each.text != whole:
            yield f"{who} was shown {each.text!r} instead of {whole!r}"
        elif not whole.startswith(each.text):
            yield f"{who} was shown {each.text!r}, which is no beginning of {whole!r}"


def repeated_faults(shown: Iterable[Shown], calls: Iterable[Call], killed: Sequence[float] = ()) -> Iterator[str]:
    """A caller's fault reaches a provider once: it is neither tried again nor elsewhere.

    `killed` are the Unix times at which processes were killed that have refusals in hand: who dies with one tells
    nobody of it. Nobody can have it in hand who was killed before the question was asked, or after the second call.
    """
    began = {each.mark: each.began for each in shown}
    tried: dict[str, float] = {}
    for call in calls:
        if call.fate != "refused":
            continue
        before = tried.setdefault(call.mark, call.at)
        if before < call.at and not any(began[call.mark] < moment < call.at for moment in killed):
            yield f"{call.mark}, which is its caller's fault, was tried again after {call.at - before:.3f} s"


def wrong_accounts(load: str, shown: Sequence[Shown], events: Iterable[Event], calls: Sequence[Call]) -> Iterator[str]:
    """Each request of a load has one end among the events, and its attempts used what the providers counted."""
    ends: Counter[str] = Counter()
    used: Counter[str] = Counter()
    for event in events:
        match event.WhichOneof("payload"):
            case "request_completed":
                kind, end = "answered", event.request_completed
            case "request_failed":
                kind, end = "failed", event.request_failed
            case _:
                continue
        if end.metadata["load"] != load:
            continue
        ends[kind] += 1
        for attempt in end.attempt_usages:
            if not attempt.usage.estimated:
                used[attempt.provider] += attempt.usage.input_tokens + attempt.usage.output_tokens
    answered = sum(each.answered for each in shown)
    if ends["answered"] != answered:
        yield f"{answered} callers were answered, {ends['answered']} requests are accounted as answered"
    if ends.total() != len(shown):
        yield f"{len(shown)} questions were asked, {ends.total()} requests are accounted"
    for provider in sorted({call.provider for call in calls}):
        counted = sum(INPUT_TOKENS + call.tokens for call in calls if call.provider == provider and call.whole)
        if used[provider] != counted:
            yield f"{provider} counted {counted} tokens of whole answers, the accounts hold {used[provider]}"


def lost(shown: Iterable[Shown]) -> list[Shown]:
    """Questions that were neither answered nor clearly refused."""
    return [each for each in shown if not each.terminals and not each.broken]


def tally(shown: Iterable[Shown]) -> str:
    """How the questions ended, for a person."""
    counts = Counter("answered" if each.answered else each.failure.split(":")[0] for each in shown)
    return ", ".join(f"{count} {name}" for name, count in counts.most_common())
