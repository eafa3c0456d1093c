"""Vectors of one request: which backends give comparable ones, how many fit into a call, parts put together. Pure."""

from __future__ import annotations

import re
from dataclasses import replace

from maestro.llm.v1.embedding_pb2 import EmbedRequest, EmbedResponse
from maestro.llm.v1.model_pb2 import Feature
from maestro.llm.v1.usage_pb2 import Cost, Usage
from maestro_sdk.errors import MaestroError, StreamBroken, TooLarge, Violation
from maestro_sdk.mesh.judge import Dropped
from maestro_sdk.mesh.needs import estimate_tokens
from maestro_sdk.mesh.plan import Plan
from maestro_sdk.mesh.spend import cost_at, sum_costs, sum_usages
from maestro_sdk.mesh.table import Backend, Targets

MOST_NUMBERS = 6_250_000
"""Numbers of an answer in one message: four bytes each, below the limit of gRPC's messages."""
USUAL_LENGTH = 3072
"""Length of vectors that is reckoned with where none is asked for: that of the longest that are common."""
CALL_INPUTS = 512
"""The most inputs of one call to an adapter: up to a length of 12 207, its answer fits into a message unasked."""
_PLACE = re.compile(r"^inputs\[(\d+)\]")
_EMBEDDINGS = 1 << Feature.FEATURE_EMBEDDINGS


def refuse_too_many(count: int, length: int, most: int) -> None:
    """Raises `TooLarge` when so many vectors of that length have more than `most` numbers; 0 is an unknown length."""
    reckoned = length or USUAL_LENGTH
    if count * reckoned > most:
        unset = "" if length else ", the length reckoned with unless `dimensions` is given"
        raise TooLarge(
            f"{count} vectors of {reckoned} numbers{unset} are more than the {most} numbers that one answer may have; "
            f"send at most {most // reckoned} inputs of that length, or ask for fewer dimensions"
        )


def split(request: EmbedRequest) -> list[range]:
    """The places of the inputs of each call to an adapter, in order: no answer is longer than a message may be."""
    size = CALL_INPUTS
    if request.dimensions:
        size = max(1, min(size, MOST_NUMBERS // request.dimensions))
    count = len(request.inputs)
    return [range(start, min(start + size, count)) for start in range(0, count, size)]


def keep_comparable(plan: Plan) -> Plan:
    """The plan without backends of other models than the one whose vectors its route gives.

    Vectors of two models say nothing about each other: whoever stored those of one would search with those of another.
    The same model at another adapter or provider has the same name there, and goes on.
    """
    route = plan.route
    targets = route.targets
    if route.experiment is not None and plan.variant:
        targets = route.experiment.variants[plan.variant]
    name = vector_model(targets)
    if not name or all(ranked.choice.backend.message.model.name == name for ranked in plan.kept):
        return plan
    kept = [ranked for ranked in plan.kept if ranked.choice.backend.message.model.name == name]
    why = f"its vectors can't be compared with those of {name}, which the route gives"
    others = [
        Dropped(ranked.choice.backend, why, lasting=True)
        for ranked in plan.kept
        if ranked.choice.backend.message.model.name != name
    ]
    return replace(plan, kept=kept, dropped=[*plan.dropped, *others])


def vector_model(targets: Targets) -> str:
    """The name, without provider, of the model whose vectors a route gives: its first target that embeds.

    One that no adapter offers now counts, since nobody can tell that it does not embed: an adapter that is away shall
    not change what the vectors of a route mean. Empty when none embeds.
    """
    known: dict[int, Backend] = {entry.number: entry.backend for entry in targets.entries}
    absent = iter(targets.missing)
    for number in range(1, len(known) + len(targets.missing) + 1):
        backend = known.get(number)
        if backend is None:
            return next(absent, "").partition("/")[2]
        if backend.able & _EMBEDDINGS:
            return backend.message.model.name
    return ""


class Spend:
    """What calls used that were answered so far."""

    __slots__ = ("_costs", "_usages")

    def __init__(self) -> None:
        self._usages: list[Usage] = []
        self._costs: list[Cost | None] = []

    @property
    def usage(self) -> Usage | None:
        """None while nothing was answered."""
        return sum_usages(self._usages)

    @property
    def cost(self) -> Cost | None:
        """None when it is unknown."""
        return sum_costs(self._costs)

    def add(self, backend: Backend, answer: EmbedResponse, estimated: int) -> None:
        """Adds a call; `estimated` is its tokens where the provider does not count."""
        usage = answer.usage if answer.HasField("usage") else Usage(input_tokens=estimated, estimated=True)
        self._usages.append(usage)
        self._costs.append(answer.cost if answer.HasField("cost") else cost_at(backend, usage))


class Assembly:
    """The answer of a request as it grows, call by call, whichever backends they went to."""

    __slots__ = ("_request", "_warned", "calls", "done", "length", "response", "spend")

    def __init__(self, request: EmbedRequest) -> None:
        self._request = request
        self._warned: set[tuple[str, str, str]] = set()
        self.calls = split(request)
        self.done = 0
        """Calls that were answered."""
        self.length = 0
        """Length of the vectors; 0 while none is there."""
        self.response = EmbedResponse()
        self.spend = Spend()
        """What the calls used whose vectors are in the answer."""

    def ask(self, model: str) -> EmbedRequest:
        """The next call to be made."""
        places, whole = self.calls[self.done], self._request
        if len(self.calls) == 1:
            whole.model = model
            return whole
        part = EmbedRequest(
            model=model,
            inputs=whole.inputs[places.start : places.stop],
            purpose=whole.purpose,
            strict=whole.strict,
            metadata=whole.metadata,
            provider_options=whole.provider_options,
        )
        for name in ("dimensions", "truncate", "normalize"):
            if whole.HasField(name):
                setattr(part, name, getattr(whole, name))
        if whole.HasField("routing"):
            part.routing.CopyFrom(whole.routing)
        return part

    @property
    def count(self) -> int:
        """Number of the inputs."""
        return len(self._request.inputs)

    def estimate(self) -> int:
        """Tokens of the next call, by rule of thumb."""
        inputs = self._request.inputs
        return sum(estimate_tokens(inputs[place]) for place in self.calls[self.done])

    def place(self, error: MaestroError) -> MaestroError:
        """The error of the call that was next, with the places of its inputs in the whole list."""
        start = self.calls[self.done].start if self.done < len(self.calls) else 0
        if start:

            def shift(found: re.Match[str]) -> str:
                return f"inputs[{int(found[1]) + start}]"

            error.message = _PLACE.sub(shift, error.message)
            error.violations = tuple(
                Violation(_PLACE.sub(shift, wrong.field), wrong.message) for wrong in error.violations
            )
        return error

    def add(self, answer: EmbedResponse) -> None:
        """Adds the answer of the call that was next. Raises `StreamBroken` when it is not one vector per input."""
        places = self.calls[self.done]
        found = answer.embeddings
        if len(found) != len(places):
            raise _broken(f"{len(places)} inputs were sent and {len(found)} vectors came", "not a vector per input")
        length = len(found[0].values)
        for number, vector in enumerate(found):
            if vector.index != number:
                raise _broken(f"vector {vector.index} stands at {number}", "vectors out of order")
            if not length or len(vector.values) != length:
                raise _broken(f"a vector has {len(vector.values)} numbers, another {length}", "vectors of two lengths")
        if self.length and self.length != length:
            # The earlier ones may be another backend's, which keeps its promises as well as this one.
            raise StreamBroken(f"vectors of {length} numbers came after some of {self.length}")
        for place, vector in zip(places, found, strict=True):
            vector.index = place
        self.length = length
        self.done += 1
        response = self.response
        warnings = [one for one in answer.warnings if (one.code, one.field, one.message) not in self._warned]
        self._warned.update((one.code, one.field, one.message) for one in warnings)
        answer.ClearField("warnings")
        response.MergeFrom(answer)
        response.warnings.extend(warnings)


def _broken(what: str, breach: str) -> StreamBroken:
    return StreamBroken(f"the adapter broke the contract: {what}", metadata={"breach": breach})
