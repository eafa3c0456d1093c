"""Cases of embeddings: vectors, their order and length, usage and cost, and what is refused."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import grpc

from maestro.llm.v1.embedding_pb2 import EmbedInput, EmbedRequest, EmbedResponse
from maestro.llm.v1.model_pb2 import Feature
from maestro_sdk.adapter.models import cost_of
from maestro_sdk.conformance.case import Subject, feature
from maestro_sdk.conformance.outcome import Broken, expect
from maestro_sdk.conformance.target import Refusal, Target, expect_refused

TEXTS = (
    "The cat sleeps on the old sofa by the window.",
    "Share prices fell sharply on Monday after the announcement.",
    "Water boils at one hundred degrees at sea level.",
)
MANY = 300
"""Inputs of the long list: more than most providers take at once."""
_ALIKE = 0.999
"""Cosine from which on two vectors are taken for the same: some providers vary in the last digits."""
_NEEDS = ("embeddings",)


async def embed(target: Target, texts: Sequence[str], **fields: Any) -> EmbedResponse | Refusal:
    """Asks for vectors of texts; `fields` are those of `EmbedRequest`."""
    told: dict[str, Any] = {"model": target.asked.id, **fields}
    request = EmbedRequest(inputs=[EmbedInput(text=text) for text in texts], **told)
    return await target.attempt(target.embeddings.Embed(request, timeout=target.timeout, metadata=target.metadata))


async def _vectors(target: Target, texts: Sequence[str], where: str, **fields: Any) -> EmbedResponse:
    """A good answer: one vector per input, in order, all of one length."""
    answer = await embed(target, texts, **fields)
    if isinstance(answer, Refusal):
        raise Broken(f"ended with {answer}", where)
    indexes = [vector.index for vector in answer.embeddings]
    expect(indexes == list(range(len(texts))), f"vectors {indexes[:8]} for {len(texts)} inputs", where)
    lengths = sorted({len(vector.values) for vector in answer.embeddings})
    expect(len(lengths) == 1 and lengths[0], f"vectors of the lengths {lengths}", where)
    for vector in answer.embeddings:
        usable = all(math.isfinite(value) for value in vector.values) and any(vector.values)
        expect(usable, f"vector {vector.index} is zero or not finite", where)
    return answer


def _cosine(one: Sequence[float], other: Sequence[float]) -> float:
    if len(one) != len(other):
        return 0.0
    product = sum(a * b for a, b in zip(one, other, strict=True))
    return product / (math.hypot(*one) * math.hypot(*other))


@feature(
    Feature.FEATURE_EMBEDDINGS,
    "each input has its vector",
    "embedding.proto Embed: one vector for each input, in the order of the inputs, all of the same length",
    needs=("models",),
    subject=Subject.MODEL,
)
async def embeddings(target: Target) -> str:
    """The order is seen by embedding the same texts again, alone."""
    first = await _vectors(target, TEXTS, "three texts")
    expect(first.provider and first.model, f"names {first.provider}/{first.model}", "three texts")
    expect(first.attempt >= 1, f"attempt is {first.attempt}", "three texts")
    kept = [list(vector.values) for vector in first.embeddings]
    for one, other in itertools.combinations(range(len(TEXTS)), 2):
        differ = _cosine(kept[one], kept[other]) < _ALIKE
        expect(differ, f"texts {one} and {other} have the same vector", "three texts")
    for number in (0, 2):
        single = await _vectors(target, [TEXTS[number]], f"text {number} alone")
        close = _cosine(single.embeddings[0].values, kept[number])
        expect(close >= _ALIKE, f"it has another vector than among three (cosine {close:.3f})", f"text {number} alone")
    return f"{len(kept[0])} dimensions"


@feature(
    Feature.FEATURE_EMBEDDINGS,
    "a long list keeps its order",
    "embedding.proto EmbedRequest.inputs: 1 to 8192; a list longer than the provider takes is split and joined again",
    needs=_NEEDS,
    subject=Subject.MODEL,
)
async def many_inputs(target: Target) -> str:
    """Compared with single texts at places behind the usual limits of providers."""
    texts = [f"Sentence {number} tells of the number {number * 7919}." for number in range(MANY)]
    found = await _vectors(target, texts, f"{MANY} texts")
    for number in (0, 96, 130, MANY - 1):
        single = await _vectors(target, [texts[number]], f"text {number} alone")
        close = _cosine(single.embeddings[0].values, found.embeddings[number].values)
        expect(close >= _ALIKE, f"vector {number} is that of another text (cosine {close:.3f})", f"{MANY} texts")
    return f"{MANY} texts in one request"


@feature(
    Feature.FEATURE_EMBEDDINGS,
    "dimensions are honoured, or warned about",
    "embedding.proto EmbedRequest.dimensions and strict: the length of the vectors, or a warning that names the field, "
    "under `strict` UNSUPPORTED_PARAMETER; a length that the model does not have is INVALID_ARGUMENT with the path",
    needs=_NEEDS,
    subject=Subject.MODEL,
)
async def dimensions(target: Target) -> str:
    """A vector of another length than the caller's index has would be found out much later."""
    usual = len((await _vectors(target, TEXTS[:1], "the usual length")).embeddings[0].values)
    wanted = 256 if usual > 256 else max(1, usual // 2)
    where = f"dimensions={wanted}"
    answer = await embed(target, TEXTS, dimensions=wanted)
    strict = await embed(target, TEXTS, dimensions=wanted, strict=True)
    if isinstance(answer, Refusal):
        expect_refused(answer, where, {grpc.StatusCode.INVALID_ARGUMENT}, path="dimensions")
        return f"the model does not have {wanted}: refused with the path"
    lengths = {len(vector.values) for vector in answer.embeddings}
    warned = any(warning.field == "dimensions" for warning in answer.warnings)
    if warned:
        refused = {"UNSUPPORTED_PARAMETER"}
        codes = {grpc.StatusCode.INVALID_ARGUMENT}
        expect_refused(strict, f"strict {where}", codes, reasons=refused, path="dimensions")
        return f"warned; {sorted(lengths)} instead of {wanted}"
    expect(lengths == {wanted}, f"vectors of the lengths {sorted(lengths)}, no warning", where)
    expect(isinstance(strict, EmbedResponse), f"ended with {strict}", f"strict {where}")
    return f"{usual} and {wanted}"


@feature(
    Feature.FEATURE_EMBEDDINGS,
    "usage and cost of vectors",
    "embedding.proto EmbedResponse.usage: output counts are 0, unset when the provider reports none; the cost follows "
    "from usage and price, and is absent when one of them is unknown",
    needs=_NEEDS,
    subject=Subject.MODEL,
)
async def embedding_usage(target: Target) -> str:
    """Money is counted by it."""
    where = "three texts"
    answer = await _vectors(target, TEXTS, where)
    used, priced = answer.usage, target.asked.HasField("price")
    if not answer.HasField("usage"):
        expect(not answer.HasField("cost"), f"a cost of {answer.cost.usd} without usage", where)
        return "the provider reports no usage; cost absent"
    expect(used.input_tokens or used.input_characters, "nothing was read", where)
    expect(not used.output_tokens, f"output_tokens is {used.output_tokens}", where)
    if not priced:
        expect(not answer.HasField("cost"), f"a cost of {answer.cost.usd} without a price", where)
        return f"{used.input_tokens} in; price unknown, cost absent"
    expect(answer.HasField("cost"), "the model has a price, the answer no cost", where)
    wanted = cost_of(used, target.asked.price).usd
    close = abs(Decimal(answer.cost.usd) - Decimal(wanted)) <= Decimal("1e-9")
    expect(close, f"{answer.cost.usd} instead of {wanted} US dollars", where)
    return f"{used.input_tokens} in, {answer.cost.usd} US dollars"


@feature(
    Feature.FEATURE_EMBEDDINGS,
    "vectors of nothing are refused",
    "embedding.proto rules (buf.validate): 1 to 8192 inputs, a text is not empty; violations name the path; an unknown "
    "model is NOT_FOUND",
    needs=_NEEDS,
    subject=Subject.MODEL,
)
async def embedding_refusals(target: Target) -> str:
    """Never passed on to a provider, never a vector of nothing."""
    invalid = {grpc.StatusCode.INVALID_ARGUMENT}
    expect_refused(await embed(target, ()), "no inputs", invalid, path="inputs")
    expect_refused(await embed(target, (TEXTS[0], "")), "an empty text", invalid, path="inputs[1].text")
    unknown = f"{target.asked.provider}/no-such-model-0"
    answer = await embed(target, TEXTS, model=unknown)
    expect_refused(answer, f"model {unknown}", {grpc.StatusCode.NOT_FOUND}, reasons={"NOT_FOUND"})
    return "inputs, inputs[1].text, model"
