"""Asks every operation of an OpenAPI document what it allows and what it does not, and judges the answers by it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import requests
import schemathesis
from hypothesis import HealthCheck as Check
from hypothesis import Phase, given, settings
from schemathesis import APIOperation, Case, GenerationMode, Response
from schemathesis.checks import not_a_server_error
from schemathesis.core.failures import FailureGroup
from schemathesis.core.result import Ok
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
]
TIMEOUT = 15.0
"""Seconds without a byte after which an answer counts as hanging."""
_MOST = 1 << 20
"""Bytes that are read of an answer."""
_ENDLESS = ("/v1/events/stream",)
_HURRIED = (Check.too_slow, Check.data_too_large, Check.filter_too_much, Check.large_base_example)

Operation = APIOperation[Any, Any, Any, Any]


@dataclass
class Tally:
    """What came of all requests."""

    requests: int = 0
    statuses: Counter[int] = field(default_factory=Counter[int])
    failures: dict[str, str] = field(default_factory=dict[str, str])
    """One example for each kind of failure of each operation."""

    def report(self) -> str:
        counts = ", ".join(f"{status}: {count}" for status, count in sorted(self.statuses.items()))
        return f"{self.requests} requests ({counts}), 5xx: {sum(n for s, n in self.statuses.items() if s >= 500)}"


class Fuzz:
    """Runs `examples` requests of each kind against each operation; `known` are paths that exist."""

    def __init__(
        self, document: dict[str, Any], url: str, key: str, examples: int, known: Mapping[str, str] | None = None
    ) -> None:
        self.tally = Tally()
        self._schema = schemathesis.openapi.from_dict(document)
        self._url = url
        self._key = key
        self._examples = examples
        self._known = known or {}
        self._session = requests.Session()

    def operations(self) -> Iterator[Operation]:
        """The operations of the document."""
        for found in self._schema.get_all_operations():
            assert isinstance(found, Ok), found
            yield found.ok()

    def run(self) -> Tally:
        """Asks them all, those that delete things last; what failed stands in the tally."""
        for operation in sorted(self.operations(), key=lambda each: each.method == "delete"):
            self._ask(operation, GenerationMode.POSITIVE)
            if operation.body or operation.query or operation.path_parameters:
                self._ask(operation, GenerationMode.NEGATIVE)
            path = {each.name: self._known.get(each.name) for each in operation.path_parameters}
            if path and all(path.values()):
                self._ask(operation, GenerationMode.POSITIVE, path_parameters=path)
            self._ask_without_a_key(operation)
        return self.tally

    def _ask(self, operation: Operation, mode: GenerationMode, **fixed: Any) -> None:
        @given(case=operation.as_strategy(generation_mode=mode, **fixed))
        @settings(
            max_examples=self._examples,
            database=None,
            deadline=None,
            derandomize=True,
            phases=[Phase.generate],
            suppress_health_check=_HURRIED,
        )
        def ask(case: Case) -> None:
            self._check(case)

        ask()

    def _ask_without_a_key(self, operation: Operation) -> None:
        """Nobody gets in without a good key, but where the document says so."""
        is_open = operation.definition.raw.get("security") == []
        for headers in ({}, {"authorization": "Bearer mk-wrong"}, {"x-api-key": "mk-wrong"}):
            case = operation.Case(path_parameters={each.name: "x" for each in operation.path_parameters})
            response = self._send(case, headers)
            if response is not None and response.status_code != (200 if is_open else 401):
                self._fail(
                    operation.label, f"{response.status_code} instead of 401", f"{headers} {response.text[:300]}"
                )

    def _check(self, case: Case) -> None:
        response = self._send(case, {"authorization": f"Bearer {self._key}"})
        if response is None:
            return
        label, shown = case.operation.label, case.as_curl_command()
        answer = f"{response.status_code} {response.text[:400]}"
        # A stretch of a file that is not there is told by a header.
        if response.status_code not in {*range(400), 416} and "json" not in response.headers.get("content-type", ""):
            self._fail(label, "an error that is no JSON", f"{answer}\n{shown}")
        try:
            case.validate_response(Response.from_any(response), checks=CHECKS)
        except FailureGroup as group:
            for failure in group.exceptions:
                self._fail(label, type(failure).__name__, f"{failure}\n{answer}\n{shown}")

    def _send(self, case: Case, headers: dict[str, str]) -> requests.Response | None:
        """The answer, of which at most a part was read; None for one that never came."""
        sent = case.as_transport_kwargs(base_url=self._url, headers=headers)
        self.tally.requests += 1
        try:
            with self._session.request(**sent, stream=True, timeout=TIMEOUT) as response:
                endless = case.operation.path in _ENDLESS and response.status_code == 200
                response._content = b"" if endless else response.raw.read(_MOST, decode_content=True)
        except requests.RequestException as error:
            self._fail(case.operation.label, "no answer", f"{error!r} to {case.as_curl_command()}")
            return None
        self.tally.statuses[response.status_code] += 1
        return response

    def _fail(self, label: str, kind: str, told: str) -> None:
        self.tally.failures.setdefault(f"{label}: {kind}", told[:1500])
