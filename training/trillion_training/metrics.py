"""What a run reports: metrics as JSON lines in a file, and a progress bar on a terminal."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn


@dataclass(frozen=True)
class StepMetrics:
    """One logged step.

    Attributes:
        step: number of the step, from 1.
        loss: mean next-token loss of the step, in nats.
        local_balance, global_balance: load-balancing losses, 1 at perfect balance.
        lr_factor: share of the peak learning rate.
        grad_norm: before clipping.
        tokens: trained on so far, padding aside.
        seconds: spent training so far.
        tokens_per_second: since this process began training.
    """

    step: int
    loss: float
    local_balance: float
    global_balance: float
    lr_factor: float
    grad_norm: float
    tokens: int
    seconds: float
    tokens_per_second: float


class Reporter:
    """Appends metrics to ``path`` and shows progress; the bar is off when standard error is no terminal.

    Args:
        path: a JSON-lines file, appended to.
        title: what the bar says.
    """

    def __init__(self, path: Path, title: str) -> None:
        self._file = path.open("a", encoding="utf-8")
        console = Console(stderr=True)
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.percentage:>3.0f}%  loss {task.fields[loss]:.3f}  {task.fields[speed]:,.0f} tokens/s"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self._task: TaskID = self._progress.add_task(title, total=1.0, loss=float("nan"), speed=0.0)

    def __enter__(self) -> "Reporter":
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()
        self._file.close()

    def advance(self, progress: float, loss: float, tokens_per_second: float) -> None:
        """Show how far the run is, ``progress`` from 0 to 1."""
        self._progress.update(self._task, completed=progress, loss=loss, speed=tokens_per_second)

    def log(self, metrics: StepMetrics) -> None:
        """Write one line, at once."""
        self._file.write(json.dumps(asdict(metrics)) + "\n")
        self._file.flush()
