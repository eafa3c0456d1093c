"""Core cases: how a server says no."""

from __future__ import annotations

from typing import Any, cast

import grpc

from maestro.llm.v1.chat_pb2 import ChatRequest, ChatResponse, Logprobs, Reasoning, ReasoningEffort
from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedRequest
from maestro.llm.v1.message_pb2 import AudioPart, DocumentPart, ImagePart, Message, Part, Role
from maestro.llm.v1.model_pb2 import Feature
from maestro_sdk.conformance import prompts
from maestro_sdk.conformance.case import ANSWERS, Subject, core
from maestro_sdk.conformance.outcome import NotApplicable, expect
from maestro_sdk.conformance.target import Refusal, Target, expect_refused
from maestro_sdk.errors import BY_REASON, DOMAIN
from maestro_sdk.types import text

_VERDICTS = ("retryable", "failover", "counts_against_health")


async def _refused(target: Target, request: ChatRequest, where: str) -> list[Refusal]:
    """The refusals of both ways to ask; a success is what was seen."""
    whole = await target.whole(request)
    seen = f"answered {prompts.said(whole)}" if isinstance(whole, ChatResponse) else ""
    expect(isinstance(whole, Refusal), seen, f"Chat, {where}")
    exchange = await target.stream(request, where)
    expect(exchange.refusal, f"status OK after {len(exchange.events)} events", exchange.label)
    return [found for found in (whole, exchange.refusal) if isinstance(found, Refusal)]


@core("an unknown model is NOT_FOUND", "error.proto NOT_FOUND: the model does not exist; status NOT_FOUND")
async def unknown_model(target: Target) -> str:
    """The dispatcher fails over on it only when another backend has the model."""
    request = prompts.say(prompts.WORD)
    request.model = f"{target.asked.provider}/no-such-model-0"
    for found in await _refused(target, request, f"model {request.model}"):
        expect(found.code == grpc.StatusCode.NOT_FOUND, str(found), f"model {request.model}")
    return "NOT_FOUND"


def _invalid() -> list[tuple[ChatRequest, str]]:
    """Requests that break a rule of the contract, and the path of the field."""
    strange = ChatRequest(messages=[Message(parts=[text("hello")])])
    # The contract's enums are open on the wire: a newer client may send what this server does not know.
    strange.messages[0].role = cast("Role.ValueType", 99)
    return [
        (ChatRequest(), "messages"),
        (strange, "messages[0].role"),
        (ChatRequest(messages=[Message(role=Role.ROLE_USER)]), "messages[0].parts"),
        (prompts.say(prompts.WORD, temperature=5.0), "temperature"),
    ]


@core(
    "a broken request is INVALID_ARGUMENT with the path",
    "chat.proto rules (buf.validate): violations come back as BadRequest.field_violations with field paths",
)
async def invalid_request(target: Target) -> str:
    """Never passed on to a provider, never a guess."""
    for request, path in _invalid():
        for found in await _refused(target, request, f"wrong {path}"):
            expect(found.code == grpc.StatusCode.INVALID_ARGUMENT, str(found), f"wrong {path}")
            fields = [violation.field for violation in found.violations]
            expect(path in fields, f"field_violations name {fields or 'nothing'}", f"wrong {path}")
    return ", ".join(path for _, path in _invalid())


@core(
    "a part that the model can't take is refused",
    "error.proto UNSUPPORTED_PARAMETER: INVALID_ARGUMENT with the path, or from a gateway CAPABILITY_UNAVAILABLE; an "
    "answer that ignores a part would be wrong",
)
async def unsupported_part(target: Target) -> str:
    """Content is never dropped silently, strict or not."""
    kinds: list[tuple[Feature.ValueType, Part]] = [
        (Feature.FEATURE_AUDIO, Part(audio=AudioPart(data=prompts.silence(), mime_type="audio/wav"))),
        (Feature.FEATURE_VISION, Part(image=ImagePart(data=prompts.red_square(), mime_type="image/png"))),
        (Feature.FEATURE_DOCUMENTS, Part(document=DocumentPart(data=prompts.page(), mime_type="application/pdf"))),
    ]
    refused: list[str] = []
    for kind, part in kinds:
        if target.claims(kind):
            continue
        name = str(part.WhichOneof("kind"))
        request = ChatRequest(messages=[Message(role=Role.ROLE_USER, parts=[text("What is this?"), part])])
        for found in await _refused(target, request, f"a part of kind {name}"):
            if found.info is not None and found.info.reason == "CAPABILITY_UNAVAILABLE":
                # A gateway refuses before it chooses a backend: what is missing is the capability, not a field.
                expect(found.code == grpc.StatusCode.FAILED_PRECONDITION, str(found), f"{name} part")
                continue
            expect(found.code == grpc.StatusCode.INVALID_ARGUMENT, str(found), f"{name} part")
            reason = found.info.reason if found.info else "no ErrorInfo"
            expect(reason == "UNSUPPORTED_PARAMETER", reason, f"{name} part")
            fields = [violation.field for violation in found.violations]
            named = any(field.startswith("messages[0].parts[1]") for field in fields)
            expect(named, f"field_violations name {fields or 'nothing'}", f"{name} part")
        refused.append(name)
    if not refused:
        raise NotApplicable("the model takes every kind of part")
    return ", ".join(refused)


@core(
    "an error carries reason and verdicts",
    'ErrorInfo: domain "maestro", reason of ErrorReason that fits the status, verdicts retryable, failover and '
    "counts_against_health as true or false",
    needs=("unknown_model", "invalid_request"),
)
async def error_details(target: Target) -> str:
    """Dispatcher and breakers act on them."""
    unknown = prompts.say(prompts.WORD)
    unknown.model = f"{target.asked.provider}/no-such-model-0"
    seen: list[str] = []
    for request, where, wanted in (
        (unknown, "unknown model", "NOT_FOUND"),
        (ChatRequest(), "no messages", "INVALID_REQUEST"),
    ):
        for found in await _refused(target, request, where):
            info = found.info
            expect(info, str(found), where)
            if info is None:
                continue
            expect(info.domain == DOMAIN, f"domain {info.domain!r}", where)
            expect(info.reason == wanted, f"reason {info.reason!r}", where)
            fits = BY_REASON[wanted].code == found.code
            expect(fits, f"{info.reason} with status {found.code.name}", where)
            for name in _VERDICTS:
                told = info.metadata.get(name)
                expect(told in {"true", "false"}, f"{name} is {told!r}", f"{where}, ErrorInfo.metadata")
            expect(info.metadata["retryable"] == "false", "retryable, though it is the caller's fault", where)
            held = info.metadata["counts_against_health"] == "false"
            expect(held, "counts against health, though it is the caller's fault", where)
            expect(found.message, "the message is empty", where)
        seen.append(wanted)
    return ", ".join(seen)


_PARAMETERS: tuple[tuple[Feature.ValueType, str, dict[str, Any]], ...] = (
    (Feature.FEATURE_TEMPERATURE, "temperature", {"temperature": 0.5}),
    (Feature.FEATURE_SEED, "seed", {"seed": 7}),
    (Feature.FEATURE_LOGPROBS, "logprobs", {"logprobs": Logprobs(top=2)}),
    (Feature.FEATURE_STOP_SEQUENCES, "stop", {"stop": ["%%"]}),
    (
        Feature.FEATURE_REASONING,
        "reasoning",
        {"reasoning": Reasoning(effort=ReasoningEffort.REASONING_EFFORT_HIGH)},
    ),
)


@core(
    "an undeclared parameter is a warning, under `strict` an error",
    "chat.proto ChatRequest.strict: what is not done as asked is a warning; strict turns it into "
    "UNSUPPORTED_PARAMETER with the path",
    needs=ANSWERS,
)
async def undeclared_parameters(target: Target) -> str:
    """A parameter never vanishes silently."""
    tried: list[str] = []
    for kind, name, fields in _PARAMETERS:
        if target.claims(kind):
            continue
        answer = await target.ask(prompts.say(prompts.WORD, **fields), name)
        warned = [warning.field for warning in answer.warnings]
        expect(any(field.startswith(name) for field in warned), f"warnings name {warned or 'nothing'}", name)
        for found in await _refused(target, prompts.say(prompts.WORD, strict=True, **fields), f"strict {name}"):
            reason = found.info.reason if found.info else "no ErrorInfo"
            expect(reason == "UNSUPPORTED_PARAMETER", f"{found.code.name} {reason}", f"strict {name}")
            paths = [violation.field for violation in found.violations]
            named = any(path.startswith(name) for path in paths)
            expect(named, f"field_violations name {paths or 'nothing'}", f"strict {name}")
        tried.append(name)
    if not tried:
        raise NotApplicable("the model claims every parameter")
    return ", ".join(tried)


@core(
    "what a model does not do is refused",
    "model.proto FEATURE_CHAT, FEATURE_EMBEDDINGS: a call that the model does not claim ends with "
    "CAPABILITY_UNAVAILABLE (FAILED_PRECONDITION), or UNIMPLEMENTED where the server has no such service",
    subject=Subject.MODEL,
)
async def undeclared_services(target: Target) -> str:
    """A model that only embeds does not chat, and the other way round."""
    codes = {grpc.StatusCode.FAILED_PRECONDITION, grpc.StatusCode.UNIMPLEMENTED}
    reasons = {"CAPABILITY_UNAVAILABLE", "UNIMPLEMENTED"}
    refused: list[str] = []
    if not target.claims(Feature.FEATURE_CHAT):
        for found in await _refused(target, prompts.say(prompts.WORD), "a model without CHAT"):
            expect_refused(found, "Chat with a model without CHAT", codes, reasons=reasons)
        refused.append("Chat")
    if not target.claims(Feature.FEATURE_EMBEDDINGS):
        request = EmbedRequest(model=target.asked.id, inputs=[EmbedInput(text=prompts.WORD)])
        answer = await target.attempt(
            target.embeddings.Embed(request, timeout=target.timeout, metadata=target.metadata)
        )
        # gRPC itself answers for a service that is not there: without ErrorInfo.
        unserved = isinstance(answer, Refusal) and answer.code == grpc.StatusCode.UNIMPLEMENTED
        expect_refused(answer, "Embed with a model without EMBEDDINGS", codes, reasons=() if unserved else reasons)
        refused.append("Embed")
    if not refused:
        raise NotApplicable("the model chats and embeds")
    return ", ".join(refused)
