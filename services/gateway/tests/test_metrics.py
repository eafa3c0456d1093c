"""Decisions are counted from the events that end requests, and only where somebody reads the counts."""

from __future__ import annotations

from maestro.event.v1.event_pb2 import Event, RequestCompleted, RequestFailed, RequestStarted
from maestro.router.v1.router_pb2 import Decision
from maestro_gateway.metrics import Decisions, count_decisions
from maestro_sdk.service.events import new_event


def test_decisions_are_counted_by_route_strategy_backend_and_outcome() -> None:
    handed_on: list[Event] = []
    decisions = Decisions(handed_on.append)
    decision = Decision(route="default", strategy="cost")
    completed = RequestCompleted(adapter="claude", provider="anthropic", model="sonnet", decision=decision)
    events = [
        new_event(payload, "request/1", tenant="acme")
        for payload in (RequestStarted(), completed, completed, RequestFailed(decision=decision), RequestFailed())
    ]
    for event in events:
        decisions.take(event)
    assert handed_on == events
    counts = {tuple(facts.values()): count for count, facts in decisions.read()}
    assert counts == {
        ("default", "cost", "claude:anthropic/sonnet", "completed"): 2,
        ("default", "cost", "none", "failed"): 1,
        ("none", "none", "none", "failed"): 1,
    }


def test_without_an_endpoint_publishing_is_as_it_was() -> None:
    handed_on: list[Event] = []
    publish = handed_on.append
    assert count_decisions(publish) is publish
