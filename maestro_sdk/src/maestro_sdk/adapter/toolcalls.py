"""Assembly of tool calls: providers number and interleave them in their ways, the contract wants one part per call."""

from __future__ import annotations

from collections.abc import Hashable

from maestro.llm.v1.chat_pb2 import ChatEvent, ToolCallDelta


class PartIndexes:
    """Gives each key of a wire (block number, "text", call) its part index, in the order in which the parts begin."""

    __slots__ = ("_indexes", "_next")

    def __init__(self) -> None:
        self._indexes: dict[Hashable, int] = {}
        self._next = 0

    def get(self, key: Hashable) -> int:
        """The index of `key`; a new key gets the next one."""
        index = self._indexes.get(key)
        if index is None:
            index = self._indexes[key] = self._next
            self._next += 1
        return index

    def begin(self, key: Hashable) -> int:
        """A new index for `key`, whatever it had before."""
        self._indexes[key] = self._next
        self._next += 1
        return self._indexes[key]


class ToolCalls:
    """Turns a wire's pieces of tool calls into deltas with distinct part indexes.

    Handles interleaved calls, whole calls in one piece, a second call under the same wire index (another id or another
    name begins another call), and missing ids (one is made from the response id and the position).
    """

    __slots__ = ("_indexes", "_open", "_response_id", "count")

    def __init__(self, indexes: PartIndexes, response_id: str) -> None:
        self._indexes = indexes
        self._response_id = response_id
        # wire key -> (part index, id and name as the wire gave them)
        self._open: dict[Hashable, tuple[int, str, str]] = {}
        self.count = 0
        """Calls seen so far."""

    def delta(self, key: Hashable, call_id: str, name: str, arguments: str) -> ChatEvent:
        """The event for one piece: `key` is the wire's index of the call; texts that the piece lacks are empty."""
        known = self._open.get(key)
        if known is None or _differ(call_id, known[1]) or _differ(name, known[2]):
            index, own_id = self._begin(call_id)
            self._open[key] = (index, call_id, name)
            return _event(index, own_id, name, arguments)
        index, known_id, known_name = known
        # Some servers repeat id and name on every piece; the contract carries them once, but a name may come late.
        late = "" if known_name else name
        if late or (call_id and not known_id):
            self._open[key] = (index, known_id or call_id, known_name or name)
        return _event(index, "", late, arguments)

    def whole(self, call_id: str, name: str, arguments: str) -> ChatEvent:
        """The event for a call that comes whole."""
        index, own_id = self._begin(call_id)
        return _event(index, own_id, name, arguments or "{}")

    def _begin(self, call_id: str) -> tuple[int, str]:
        """Index and id of a new call."""
        self.count += 1
        index = self._indexes.begin(("tool_call", self.count))
        return index, call_id or f"call_{self._response_id}_{self.count}"


def _event(index: int, call_id: str, name: str, arguments: str) -> ChatEvent:
    return ChatEvent(tool_call=ToolCallDelta(index=index, call_id=call_id, name=name, arguments_json=arguments))


def _differ(said: str, known: str) -> bool:
    return bool(said) and bool(known) and said != known
