"""Calls that were read out of text become events, once they name a tool that may be called and fit its schema."""

from __future__ import annotations

from maestro.llm.v1.chat_pb2 import ChatEvent, ChatRequest, ToolCallDelta
from maestro.llm.v1.chat_pb2 import Warning as ChatWarning
from maestro_sdk.adapter.polyfill.json_schema import violation_of
from maestro_sdk.adapter.polyfill.plan import Plan
from maestro_sdk.adapter.polyfill.tools_parser import Call
from maestro_sdk.adapter.toolcalls import PartIndexes


class Calls:
    """The calls of one answer. Their ids are made here, distinct from all in the conversation."""

    def __init__(self, request: ChatRequest, plan: Plan, indexes: PartIndexes) -> None:
        self.count = 0
        """Calls that were given out."""
        self.open = False
        """Whether a call was begun and is not whole."""
        self._indexes = indexes
        self._offered = plan.offered
        self._single = plan.single
        self._schemas = {
            tool.name: (f"tools[{number}].input_schema", tool.input_schema)
            for number, tool in enumerate(request.tools)
            if tool.name in plan.offered
        }
        parts = [part for message in request.messages for part in message.parts]
        self._taken = {part.tool_call.call_id for part in parts if part.HasField("tool_call")}
        self._number = 0
        self._left_out = False
        self._skipping = False

    def flaw(self, name: str, arguments: str | None) -> str:
        """What is wrong with a call, for the model; empty when nothing is. Arguments may still be missing."""
        if name not in self._schemas:
            return f"there is no tool {name!r} to call; there is: {', '.join(self._offered)}"
        path, schema = self._schemas[name]
        if arguments is None or not schema:
            return ""
        violation = violation_of(arguments, schema, path)
        return "" if violation is None else f"the arguments of {name} do not meet their schema: {violation}"

    def whole(self, call: Call, response_id: str) -> list[ChatEvent]:
        """The events of a call that was checked."""
        return [*self.begin(call.name, response_id), *self.more(call.arguments), *self.end()]

    def begin(self, name: str, response_id: str) -> list[ChatEvent]:
        """The events of a call's beginning; a second call where one was allowed is left out, with a warning."""
        if self._single and self.count:
            self._skipping = True
            if self._left_out:
                return []
            self._left_out = True
            message = "the model made more calls than the one that is allowed; they are left out"
            return [_warning("tool_call_left_out", message, "tool_choice.parallel")]
        self.count += 1
        self.open = True
        index = self._indexes.begin("call")
        delta = ToolCallDelta(index=index, call_id=self._id(response_id), name=name, polyfilled=True)
        return [ChatEvent(tool_call=delta)]

    def more(self, fragment: str) -> list[ChatEvent]:
        """The events of a fragment of the call's arguments."""
        if self._skipping:
            return []
        delta = ToolCallDelta(index=self._indexes.get("call"), arguments_json=fragment, polyfilled=True)
        return [ChatEvent(tool_call=delta)]

    def end(self, flaw: str = "") -> list[ChatEvent]:
        """The events of a call's end; `flaw` is what its schema has against arguments that have already gone out."""
        warned = [] if self._skipping or not flaw else [_warning("tool_arguments_invalid", flaw, "tools")]
        self.open = self._skipping = False
        return warned

    def _id(self, response_id: str) -> str:
        while True:
            self._number += 1
            made = f"call_{response_id}_{self._number}" if response_id else f"call_{self._number}"
            if made not in self._taken:
                return made


def _warning(code: str, message: str, field: str) -> ChatEvent:
    return ChatEvent(warning=ChatWarning(code=code, message=message, field=field))
