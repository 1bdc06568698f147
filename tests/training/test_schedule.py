"""The warm-up, stable, decay learning rate, and how far a run is."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from trillion_training.config import Budget, Schedule
from trillion_training.schedule import run_progress, wsd_factor

SCHEDULE = Schedule(warmup=0.1, decay=0.4, floor=0.2)


@pytest.mark.parametrize(
    ("progress", "factor"),
    [(0.0, 0.0), (0.05, 0.5), (0.1, 1.0), (0.3, 1.0), (0.6, 1.0), (0.7, 0.8), (0.8, 0.6), (1.0, 0.2), (1.5, 0.2)],
)
def test_factor_rises_stays_and_falls(progress: float, factor: float) -> None:
    assert wsd_factor(SCHEDULE, progress) == pytest.approx(factor, abs=1e-12)


@given(st.floats(0, 1))
def test_without_warmup_and_decay_the_rate_is_constant(progress: float) -> None:
    assert wsd_factor(Schedule(warmup=0, decay=0), progress) == 1.0


@given(st.floats(0, 0.999), st.floats(0, 0.001))
def test_the_rate_never_jumps(progress: float, step: float) -> None:
    assert abs(wsd_factor(SCHEDULE, progress + step) - wsd_factor(SCHEDULE, progress)) <= step / 0.1 + 1e-9


def test_the_nearer_end_decides_how_far_a_run_is() -> None:
    both = Budget(steps=100, minutes=2)
    assert run_progress(both, 50, 12) == 0.5
    assert run_progress(both, 10, 90) == 0.75
    assert run_progress(both, 100, 0) == 1.0
    assert run_progress(Budget(minutes=1), 10**6, 30) == 0.5
    assert run_progress(Budget(steps=4), 1, 10**6) == 0.25
