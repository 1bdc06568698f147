"""The warm-up, stable, decay (WSD) learning rate."""

from trillion_training.config import Budget, Schedule


def wsd_factor(schedule: Schedule, progress: float) -> float:
    """Share of the peak learning rate at a point of the run.

    It rises linearly over the first ``warmup`` of the run, stays at 1, and falls linearly to ``floor`` over the last
    ``decay``.

    Args:
        schedule: the shares.
        progress: how much of the run is done, from 0 to 1.
    """
    progress = min(max(progress, 0.0), 1.0)
    if progress < schedule.warmup:
        return progress / schedule.warmup
    start_of_decay = 1 - schedule.decay
    if schedule.decay == 0 or progress <= start_of_decay:
        return 1.0
    return 1 - (1 - schedule.floor) * (progress - start_of_decay) / schedule.decay


def run_progress(budget: Budget, step: int, seconds: float) -> float:
    """How much of a run is done, from 0 to 1: by steps or by minutes, whichever is further.

    Args:
        budget: where the run ends.
        step: steps taken.
        seconds: time spent training, that of earlier parts of a resumed run included.
    """
    by_steps = step / budget.steps if budget.steps else 0.0
    by_time = seconds / (60 * budget.minutes) if budget.minutes else 0.0
    return min(max(by_steps, by_time), 1.0)
