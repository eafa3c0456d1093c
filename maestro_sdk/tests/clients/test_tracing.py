"""Names of requests: they tell when they were made, and are accepted everywhere."""

from __future__ import annotations

import time

import pytest

from maestro_sdk.tracing import call_from_metadata, new_request_id, time_of


def test_a_request_id_tells_its_time_and_is_accepted() -> None:
    made = [new_request_id() for _ in range(100)]
    assert len(set(made)) == 100
    assert all(len(name) == 28 for name in made)
    for name in made:
        assert time_of(name) == pytest.approx(time.time(), abs=5)
        assert call_from_metadata([("x-request-id", name)]).request_id == name


@pytest.mark.parametrize(
    ("name", "moment"),
    [
        ("req_019ab9cc9d7f0123456789ab", 0x019AB9CC9D7F / 1000),
        ("req_1763855990123.75866e26-9b0f-4c3e-8a41-1f2e3d4c5b6a", 1763855990.123),
        ("req_19ab9cc9d7f", None),
        ("req_zzzzzzzzzzzz0123456789ab", None),
        ("75866e26-9b0f-4c3e-8a41-1f2e3d4c5b6a", None),
        ("order-17", None),
        ("", None),
    ],
)
def test_the_time_of_a_request_id(name: str, moment: float | None) -> None:
    assert time_of(name) == moment
