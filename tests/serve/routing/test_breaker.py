"""The circuit breaker, on a clock of its own."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trillion_serve.routing.breaker import BreakerConfig, CircuitBreaker


class Clock:
    """A clock that goes when it is told to."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    return CircuitBreaker(BreakerConfig(failures=3, open_seconds=10.0, most_open_seconds=25.0), clock)


def trip(breaker):
    permits = [breaker.enter() for _ in range(3)]
    for permit in permits:
        breaker.failure(permit)


def test_failures_in_a_row_open_it(breaker):
    for _ in range(5):
        breaker.failure(breaker.enter())
        breaker.failure(breaker.enter())
        breaker.success(breaker.enter())
    assert breaker.state == "closed"
    trip(breaker)
    assert breaker.state == "open"
    assert not breaker.ready


def test_one_probe_after_a_while_closes_it(breaker, clock):
    trip(breaker)
    clock.now += 9.9
    assert not breaker.ready
    clock.now += 0.1
    probe = breaker.enter()
    assert breaker.state == "half_open"
    assert not breaker.ready, "one probe at a time"
    breaker.success(probe)
    assert breaker.state == "closed"
    breaker.failure(breaker.enter())
    assert breaker.state == "closed", "the count began anew"


def test_each_failed_probe_doubles_the_wait_up_to_a_bound(breaker, clock):
    trip(breaker)
    for wait in (10.0, 20.0, 25.0, 25.0):
        clock.now += wait - 0.1
        assert not breaker.ready
        clock.now += 0.1
        breaker.failure(breaker.enter())


def test_a_probe_that_is_given_up_leaves_room_for_the_next(breaker, clock):
    trip(breaker)
    clock.now += 10.0
    breaker.cancel(breaker.enter())
    assert breaker.ready
    assert breaker.state == "half_open"


def test_requests_from_before_it_opened_change_nothing(breaker, clock):
    early = [breaker.enter() for _ in range(3)]
    trip(breaker)
    breaker.success(early[0])
    assert breaker.state == "open"
    clock.now += 10.0
    breaker.failure(early[1])
    assert breaker.ready
    breaker.success(early[2])
    assert breaker.state == "half_open"


@given(st.lists(st.sampled_from(["enter", "success", "failure", "cancel", "wait"]), max_size=60))
def test_a_replica_that_is_broken_never_has_two_probes(steps):
    clock = Clock()
    breaker = CircuitBreaker(BreakerConfig(failures=2, open_seconds=1.0), clock)
    permits = []
    for step in steps:
        if step == "wait":
            clock.now += 1.0
        elif step == "enter":
            if breaker.ready:
                permits.append(breaker.enter())
        elif permits:
            getattr(breaker, step)(permits.pop())
        assert sum(permit.probe for permit in permits) <= 1
