"""The one list of cases, and the run over it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence

import grpc

from maestro.llm.v1.model_pb2 import Feature, Support
from maestro_sdk.conformance import (
    answering,
    batching,
    calling,
    embedding,
    features,
    filing,
    refusing,
    serving,
    tools,
)
from maestro_sdk.conformance.case import Case, Subject
from maestro_sdk.conformance.outcome import Broken, NotApplicable, Outcome, Verdict
from maestro_sdk.conformance.report import Report
from maestro_sdk.conformance.target import TIMEOUT, Target, open_target, refusal_of
from maestro_sdk.service.peer import NOBODY, Peer

CASES: tuple[Case, ...] = (
    serving.health,
    serving.reflection,
    serving.info,
    serving.models,
    answering.answers,
    answering.started_first,
    answering.finish_last,
    answering.finish_reason,
    answering.indexes,
    answering.order,
    answering.usage,
    answering.cost,
    answering.unary_is_fold,
    answering.max_tokens,
    answering.conversation,
    answering.large_prompt,
    refusing.unknown_model,
    refusing.invalid_request,
    refusing.unsupported_part,
    refusing.error_details,
    refusing.undeclared_parameters,
    refusing.undeclared_services,
    calling.deadline,
    calling.cancellation,
    calling.concurrency,
    features.streaming,
    features.system_prompt,
    features.prefill,
    tools.tools,
    tools.parallel_tools,
    tools.tool_choice,
    tools.streamed_tool_args,
    features.json_schema,
    features.vision,
    features.audio,
    features.documents,
    features.reasoning,
    features.logprobs,
    features.stop_sequences,
    features.seed,
    features.temperature,
    features.prompt_caching,
    features.token_counting,
    embedding.embeddings,
    embedding.many_inputs,
    embedding.dimensions,
    embedding.embedding_usage,
    embedding.embedding_refusals,
    filing.files,
    filing.file_ranges,
    filing.file_checks,
    filing.file_repetition,
    filing.file_refusals,
    batching.batch,
    batching.batch_cancel,
    batching.batch_repetition,
    batching.batch_refusals,
)
"""All cases; a case stands after those that it needs."""
CORE: tuple[Case, ...] = tuple(case for case in CASES if case.is_core)
"""The cases that every server has to pass."""

# What a whole suite about chat shows by itself.
_SHOWN = frozenset({Feature.FEATURE_UNSPECIFIED, Feature.FEATURE_CHAT})


async def prove(
    address: str,
    *,
    model: str = "",
    timeout: float = TIMEOUT,
    key: str = "",
    peer: Peer = NOBODY,
    watch: Callable[[Outcome], None] | None = None,
    cases: Sequence[Case] = CASES,
) -> Report:
    """Runs `cases` against "host:port"; see `open_target`. `watch` hears of each outcome as it comes."""
    begun = time.monotonic()
    async with open_target(address, model=model, timeout=timeout, key=key, peer=peer) as target:
        outcomes = await run(target, cases, watch)
        return Report.of(target, outcomes, time.monotonic() - begun)


async def run(target: Target, cases: Sequence[Case], watch: Callable[[Outcome], None] | None = None) -> list[Outcome]:
    """The outcomes of `cases`, and of claimed features without a case. Cases run one after the other, in order."""
    outcomes: dict[str, Outcome] = {}
    for case in cases:
        outcomes[case.name] = await _judge(case, target, outcomes)
        if watch is not None:
            watch(outcomes[case.name])
    proven = {case.feature for case in CASES} | _SHOWN
    for kind in Feature.values():
        if kind not in proven:
            outcome = _without_case(target, kind)
            outcomes[outcome.name] = outcome
            if watch is not None:
                watch(outcome)
    return list(outcomes.values())


async def _judge(case: Case, target: Target, before: Mapping[str, Outcome]) -> Outcome:
    begun = time.monotonic()
    verdict, seen, where = Verdict.PROVEN, "", ""
    broken = [name for name in case.needs if name in before and not before[name].good]
    if not target.reachable or (case.subject is not Subject.SERVER and target.model is None):
        verdict, seen = Verdict.BLOCKED, target.trouble
    elif not case.is_core and not target.claims(case.feature):
        verdict = Verdict.NOT_DECLARED
    elif case.subject is Subject.CHAT and not target.claims(Feature.FEATURE_CHAT):
        verdict, seen = Verdict.NOT_DECLARED, "the model does not claim to chat"
    elif broken:
        verdict, seen = Verdict.BLOCKED, f"waits for {', '.join(broken)}"
    else:
        try:
            async with asyncio.timeout(target.timeout * 4):
                seen = await case.check(target)
        except Broken as error:
            verdict, seen, where = Verdict.FAILED, error.seen, error.where
        except NotApplicable as error:
            seen = f"nothing to prove: {error}"
        except TimeoutError:
            verdict, seen = Verdict.FAILED, f"no end within {target.timeout * 4:g} s"
        except grpc.aio.AioRpcError as error:
            verdict, seen = Verdict.FAILED, f"a call ended with {refusal_of(error)}"
        except Exception as error:  # noqa: BLE001 - whatever a strange server brings about is a failure of that server
            verdict, seen = Verdict.FAILED, f"{type(error).__name__}: {error}"
    name = "" if case.is_core else _feature_name(case.feature)
    support = "" if case.is_core else _support(target, case.feature)
    seconds = time.monotonic() - begun
    return Outcome(case.name, case.title, name, support, verdict, seen, case.contract, where, seconds)


def _without_case(target: Target, kind: Feature.ValueType) -> Outcome:
    name = _feature_name(kind)
    verdict = Verdict.UNTESTED if target.claims(kind) else Verdict.NOT_DECLARED
    seen = "claimed; the suite has no case for it" if verdict is Verdict.UNTESTED else ""
    return Outcome(name.lower(), name, name, _support(target, kind), verdict, seen, "", "", 0.0)


def _feature_name(kind: Feature.ValueType) -> str:
    return Feature.Name(kind).removeprefix("FEATURE_")


def _support(target: Target, kind: Feature.ValueType) -> str:
    support = target.support(kind)
    known = support in Support.values()
    return Support.Name(support).removeprefix("SUPPORT_").lower() if known else str(support)
