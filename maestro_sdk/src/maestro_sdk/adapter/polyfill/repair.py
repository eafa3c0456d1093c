"""One answer out of one or several of the model's: what can't be read or lacks its form is asked for again."""

from __future__ import annotations

from collections.abc import Sequence
from decimal import Decimal

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, Finish, FinishReason
from maestro.llm.v1.chat_pb2 import Warning as ChatWarning
from maestro.llm.v1.usage_pb2 import Usage
from maestro_sdk.adapter.polyfill.attempt import Attempt
from maestro_sdk.adapter.polyfill.calls import Calls
from maestro_sdk.adapter.polyfill.json_schema import Form, Violation, form_of, strip_fences, violation_of
from maestro_sdk.adapter.polyfill.plan import Means, Plan
from maestro_sdk.adapter.polyfill.tools_prompt import RESULT_OPEN, go_on, to_prompted
from maestro_sdk.adapter.toolcalls import PartIndexes
from maestro_sdk.errors import OutputInvalid, StreamBroken, UnsupportedParameter

MAX_REPAIRS = 2
"""How often a model is asked again for calls that can't be read, unless told otherwise."""

_CUT = frozenset({FinishReason.FINISH_REASON_LENGTH, FinishReason.FINISH_REASON_CONTEXT_WINDOW})
# The model did not come to an end of its own: asked again it would be cut, or refuse, again.
_UNDONE = frozenset(
    (
        *_CUT,
        FinishReason.FINISH_REASON_CONTENT_FILTER,
        FinishReason.FINISH_REASON_REFUSAL,
        FinishReason.FINISH_REASON_PAUSED,
    )
)
_WRONG_CALL = (
    "Your tool call can't be used: {error}. {taken}Write the corrected call now, and those that were to follow it, in"
    " the form that was described, and nothing else."
)
_TAKEN = "The calls before it are accepted: do not repeat them. "
_NO_CALL = (
    "You have called no tool, but you must. Call {names} now, in the form that was described, and write nothing else."
)
_WRONG_FORM = (
    "Your answer does not have the form that was described, at {violation}. Answer again, with the corrected JSON only."
)
_NO_LOGPROBS = "what a model writes for a polyfill is not the answer itself: it has no log probabilities"
_COUNTS = tuple(field.name for field in Usage.DESCRIPTOR.fields if field.name != "estimated")


class Session:
    """Turns what the model answers to `prompted` into the answer to the caller's request.

    While `prompted` is not None: `feed` all events that the model answers it with, then `end`. In the end `failure` is
    None and the last event was `finish`, or it is the error with which the answer ends.

    Text goes out as it comes and stays, whatever is repaired after it: a repair asks for calls only. Text that has to
    have a form is held until it has it.
    """

    def __init__(self, request: ChatRequest, plan: Plan, max_repairs: int) -> None:
        """Raises `InvalidRequest` for schemas that are none, and `UnsupportedParameter` for logprobs under `strict`."""
        self.prompted: ChatRequest | None = to_prompted(request, plan)
        self.failure: OutputInvalid | None = None
        self._plan = plan
        self._max_repairs = max_repairs
        self._form: Form | None = None if plan.form is Means.NATIVE else form_of(request)
        self._form_path = "response_format.json_schema.schema"
        self._indexes = PartIndexes()
        self._calls = Calls(request, plan, self._indexes)
        self._stops = bool(request.stop)
        self._attempts = 1
        self._call_repairs = self._form_repairs = 0
        self._response_id = ""
        self._warned: set[bytes] = set()
        self._no_logprobs = request.HasField("logprobs") and (plan.calls or self._form is not None)
        if self._no_logprobs and request.strict:
            raise UnsupportedParameter.at("logprobs", _NO_LOGPROBS)
        self._finishes: list[Finish] = []
        self._finish: Finish | None = None
        self._forwarded: set[int] = set()
        self._attempt = self._begin_attempt(repairing=False)

    def feed(self, events: Sequence[ChatEvent]) -> list[ChatEvent]:
        """The events that go to the caller for some of the model's."""
        out: list[ChatEvent] = []
        for event in events:
            if self._finish is not None:
                raise StreamBroken("the answer went on after its finish event")
            match event.WhichOneof("kind"):
                case "text":
                    self._attempt.citations.extend(event.text.citations)
                    out += self._attempt.feed(event.text.text, event.text.index)
                case "part" if event.part.WhichOneof("kind") == "text":
                    self._attempt.citations.extend(event.part.text.citations)
                    out += self._attempt.feed(event.part.text.text, event.part.index)
                case "started":
                    out += self._start(event)
                case "finish":
                    self._finish = event.finish
                    self._finishes.append(event.finish)
                case "usage":
                    out.append(ChatEvent(usage=self._used(event.usage)))
                case "warning":
                    out += self._warn(event.warning)
                case "switched":
                    out.append(event)
                case "reasoning" | "tool_call" | "part" | "part_state":
                    out += self._forward(event)
                case None:
                    raise StreamBroken("an event has no kind; the adapter speaks a newer contract")
        return out

    def end(self) -> list[ChatEvent]:
        """The events that go to the caller when the model's answer is over. Raises `StreamBroken` when it is not."""
        finish, attempt = self._finish, self._attempt
        if finish is None:
            raise StreamBroken("the adapter's stream ended without a finish event")
        out = attempt.end()
        if finish.reason in _UNDONE:
            self._end_undone(finish, out)
        elif error := self._call_error():
            demand = _WRONG_CALL.format(error=error, taken=_TAKEN if attempt.made else "")
            if not attempt.broken:
                demand = _NO_CALL.format(names=" or ".join(self._plan.offered))
            if self._stopped(attempt):
                self._end_with(finish, finish.reason, out)
            elif (attempt.broken and attempt.partial) or self._call_repairs >= self._max_repairs:
                self._end_with(finish, FinishReason.FINISH_REASON_MALFORMED, out, malformed=error)
            else:
                self._call_repairs += 1
                self._repair(demand, repairing=True)
        else:
            self._end_text(finish, out)
        return out

    def _call_error(self) -> str:
        """What is wrong with the calls; empty when nothing is."""
        if not self._attempt.broken and self._plan.must and not self._has_calls():
            return "no tool is called"
        return self._attempt.broken

    def _stopped(self, attempt: Attempt) -> bool:
        """Whether a stop text may have ended the answer within its reply, which is what was asked for."""
        return self._stops and attempt.cut and attempt.partial and not self._calls.open

    def _end_text(self, finish: Finish, out: list[ChatEvent]) -> None:
        """Ends an answer whose calls are in order, or asks for its text again."""
        attempt, held = self._attempt, self._attempt.held
        if self._form is None:
            if held and not attempt.made:
                # Asked for a call, the model answered in words after all: that is its answer.
                out += attempt.say(held, polyfilled=self._plan.tools is Means.STRUCTURED)
        elif self._has_calls():
            out += self._say_beside_calls(held)
        elif held or not attempt.refused:
            text = strip_fences(held)
            violation = self._violation(text)
            if violation is not None:
                self._miss_form(violation, out)
                return
            out += attempt.say(text, polyfilled=True)
        self._end_with(finish, self._reason(finish), out)

    def _end_undone(self, finish: Finish, out: list[ChatEvent]) -> None:
        """Ends an answer that was cut or refused. What is incomplete does not go out as if it were whole."""
        attempt = self._attempt
        if self._form is not None and attempt.held and not self._has_calls():
            text = strip_fences(attempt.held)
            violation = self._violation(text)
            if violation is not None and finish.reason in _CUT:
                self._fail(violation, f"it was cut: {FinishReason.Name(finish.reason)}", out)
                return
            out += attempt.say(text if violation is None else attempt.held, polyfilled=violation is None)
        elif self._form is None and attempt.held and not attempt.made:
            out += attempt.say(attempt.held, polyfilled=self._plan.tools is Means.STRUCTURED)
        self._end_with(finish, finish.reason, out, malformed=attempt.broken)

    def _miss_form(self, violation: Violation, out: list[ChatEvent]) -> None:
        if self._form is None or self._form_repairs >= self._form.max_repairs:
            self._fail(violation, f"asked again {self._form_repairs} times", out)
            return
        self._form_repairs += 1
        self._repair(_WRONG_FORM.format(violation=violation), repairing=False)

    def _fail(self, violation: Violation, why: str, out: list[ChatEvent]) -> None:
        facts = {"violation": violation.path, "repairs": str(self._repairs)}
        self.failure = OutputInvalid(f"the answer does not have its form ({why}): {violation}", metadata=facts)
        self.prompted = None
        if any(finish.HasField("usage") for finish in self._finishes):
            # Tokens were used all the same, and no finish event will tell of them.
            out.append(ChatEvent(usage=self._used(None)))

    def _say_beside_calls(self, held: str) -> list[ChatEvent]:
        """Words beside calls are no answer; they go out only if they have the answer's form."""
        text = strip_fences(held)
        if not text:
            return []
        if self._violation(text) is None:
            return self._attempt.say(text, polyfilled=True)
        message = "text beside tool calls is left out: it does not have the form of the answer"
        return self._warn(ChatWarning(code="text_left_out", message=message, field="response_format"))

    def _violation(self, text: str) -> Violation | None:
        if self._form is None:
            return None
        return violation_of(text, self._form.text, self._form_path)

    def _repair(self, demand: str, *, repairing: bool) -> None:
        """Asks the model again; whoever only repairs a call has its text held."""
        if self.prompted is None:
            raise StreamBroken("the answer is over")
        self.prompted = go_on(self.prompted, self._attempt.said, demand)
        self._attempts += 1
        self._attempt = self._begin_attempt(repairing=repairing)

    def _begin_attempt(self, *, repairing: bool) -> Attempt:
        self._finish = None
        self._forwarded = set()
        return Attempt(self._plan, self._calls, self._indexes, self._response_id, repairing=repairing)

    def _end_with(
        self, finish: Finish, reason: FinishReason.ValueType, out: list[ChatEvent], *, malformed: str = ""
    ) -> None:
        last = Finish()
        last.CopyFrom(finish)
        last.reason = reason
        if self._plan.halt and last.stop_sequence == RESULT_OPEN:
            # A stop text of ours, which nobody asked for.
            last.ClearField("stop_sequence")
            if last.reason == FinishReason.FINISH_REASON_STOP_SEQUENCE:
                last.reason = FinishReason.FINISH_REASON_STOP
        last.ClearField("usage")
        last.ClearField("cost")
        if any(one.HasField("usage") for one in self._finishes):
            last.usage.CopyFrom(self._used(None))
        if all(one.HasField("cost") for one in self._finishes):
            last.cost.CopyFrom(finish.cost)
            last.cost.usd = str(sum((Decimal(one.cost.usd) for one in self._finishes), Decimal()))
            last.cost.estimated = any(one.cost.estimated for one in self._finishes)
        facts: dict[str, str | int] = {"repairs": self._repairs}
        if self._plan.calls:
            facts["tools"] = self._plan.tools.value
        if self._form is not None:
            facts["json_schema"] = self._plan.form.value
        if malformed:
            facts["malformed"] = malformed
            facts["malformed_text"] = self._attempt.said
        last.provider_metadata["maestro"].update(facts)
        out.append(ChatEvent(finish=last))
        self.prompted = None

    def _reason(self, finish: Finish) -> FinishReason.ValueType:
        if self._has_calls():
            return FinishReason.FINISH_REASON_TOOL_CALLS
        if finish.reason == FinishReason.FINISH_REASON_TOOL_CALLS:
            # The provider's word for something that did not happen.
            return FinishReason.FINISH_REASON_OTHER
        return finish.reason

    @property
    def _repairs(self) -> int:
        return self._attempts - 1

    def _has_calls(self) -> bool:
        return bool(self._calls.count) or self._attempt.native_calls

    def _used(self, current: Usage | None) -> Usage:
        """The tokens of all answers that are over, and those of `current`."""
        total = Usage()
        for usage in (*(finish.usage for finish in self._finishes), *(() if current is None else (current,))):
            for name in _COUNTS:
                if value := getattr(usage, name):
                    setattr(total, name, getattr(total, name) + value)
            total.estimated = total.estimated or usage.estimated
        return total

    def _start(self, event: ChatEvent) -> list[ChatEvent]:
        if self._attempts > 1:
            return []
        self._response_id = event.started.response_id
        self._attempt.response_id = self._response_id
        if not self._no_logprobs:
            return [event]
        warning = ChatWarning(code="unsupported_parameter", message=_NO_LOGPROBS, field="logprobs")
        return [event, *self._warn(warning)]

    def _warn(self, warning: ChatWarning) -> list[ChatEvent]:
        """The warning, once: each repair would bring it again."""
        key = warning.SerializeToString(deterministic=True)
        if key in self._warned:
            return []
        self._warned.add(key)
        return [ChatEvent(warning=warning)]

    def _forward(self, event: ChatEvent) -> list[ChatEvent]:
        """What is no text, under an index that is free here."""
        kind = str(event.WhichOneof("kind"))
        inside = getattr(event, kind)
        if kind == "part_state" and inside.index not in self._forwarded:
            # State of text that was read here: it would be refused with other text, so it does not go out.
            return []
        self._forwarded.add(inside.index)
        self._attempt.see(event)
        copy = ChatEvent()
        copy.CopyFrom(event)
        getattr(copy, kind).index = self._indexes.get((self._attempts, inside.index))
        return [copy]
