"""Which jobs get the free places of a gateway, as tables."""

import pytest

from maestro_gateway.jobs.schedule import Queue, admitted_jobs, allot

LOW, NORMAL, HIGH = 1, 2, 3


def queue(job_id: str, tenant: str = "a", priority: int = NORMAL, running: int = 0, most: int = 100) -> Queue:
    return Queue(job_id, tenant, priority, created=float(job_id[1:]), running=running, most=most)


@pytest.mark.parametrize(
    ("queues", "free", "running", "granted"),
    [
        pytest.param([], 8, {}, {}, id="nothing waits"),
        pytest.param([queue("j1")], 0, {}, {}, id="no place is free"),
        pytest.param([queue("j1")], 4, {}, {"j1": 4}, id="one job takes all"),
        pytest.param([queue("j1", most=3)], 8, {}, {"j1": 3}, id="max_parallel"),
        pytest.param([queue("j1", running=2, most=3)], 8, {}, {"j1": 1}, id="max_parallel with some under way"),
        pytest.param([queue("j1"), queue("j2")], 5, {}, {"j1": 3, "j2": 2}, id="jobs of a tenant take turns"),
        pytest.param([queue("j1", running=3), queue("j2")], 3, {"a": 3}, {"j2": 3}, id="who has less goes first"),
        pytest.param([queue("j1"), queue("j2", priority=HIGH)], 4, {}, {"j2": 4}, id="high goes before normal"),
        pytest.param(
            [queue("j1", priority=LOW), queue("j2", most=1)], 4, {}, {"j2": 1, "j1": 3}, id="low gets what is left"
        ),
        pytest.param(
            [*(queue(f"j{n}", "a") for n in range(8)), queue("j9", "b")], 8, {}, {"a": 4, "b": 4}, id="tenants share"
        ),
        pytest.param(
            [queue("j1", "a", HIGH), queue("j2", "b", LOW)], 4, {}, {"j1": 2, "j2": 2}, id="no priority over others"
        ),
        pytest.param([queue("j1", "a"), queue("j2", "b")], 4, {"a": 6}, {"j2": 4}, id="the busy tenant waits"),
        pytest.param([queue("j1", "a")], 9, {"a": 6}, {"j1": 4}, id="per tenant"),
    ],
)
def test_places_are_shared(queues: list[Queue], free: int, running: dict[str, int], granted: dict[str, int]):
    found = allot(queues, free, running, per_tenant=10)
    if set(granted) == {"a", "b"}:
        tenants = {each.job_id: each.tenant for each in queues}
        found = {name: sum(count for job, count in found.items() if tenants[job] == name) for name in ("a", "b")}
    assert found == granted


def test_no_more_than_what_is_free_and_allowed():
    """Whatever the mix, nobody gets more than there is, than the tenant may have, or than the job may have."""
    queues = [queue(f"j{n}", "abc"[n % 3], 1 + n % 3, running=n % 4, most=1 + n % 6) for n in range(60)]
    running = {"a": 9, "b": 3, "c": 0}
    for free in range(40):
        found = allot(queues, free, running, per_tenant=10)
        assert sum(found.values()) <= free
        by_id = {each.job_id: each for each in queues}
        assert all(by_id[job].running + count <= by_id[job].most for job, count in found.items())
        for tenant, had in running.items():
            assert had + sum(count for job, count in found.items() if by_id[job].tenant == tenant) <= 10


@pytest.mark.parametrize(
    ("jobs", "most", "admitted"),
    [
        pytest.param([("a", False, NORMAL, 1.0), ("b", False, NORMAL, 2.0)], None, {"a", "b"}, id="no limit"),
        pytest.param([("a", False, NORMAL, 2.0), ("b", False, NORMAL, 1.0)], 1, {"b"}, id="the older one"),
        pytest.param([("a", False, NORMAL, 1.0), ("b", False, HIGH, 2.0)], 1, {"b"}, id="the higher one"),
        pytest.param([("a", True, LOW, 2.0), ("b", False, HIGH, 1.0)], 1, {"a"}, id="what is under way goes on"),
    ],
)
def test_few_jobs_at_a_time(jobs: list[tuple[str, bool, int, float]], most: int | None, admitted: set[str]):
    assert admitted_jobs(jobs, most) == admitted
