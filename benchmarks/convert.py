"""How fast `trillion-convert` rewrites a checkpoint, against `cp -r` of the same files.

A synthetic checkpoint of the 7B-A1B shape (random bfloat16 numbers, as many layers as the size asks for) is imported,
exported and merged with another, in turns with `cp -r`, every command a process of its own. Everybody's clock runs
until the written files are on disk (fsync), start-up included; what a command takes on a checkpoint of next to no
weights is measured too and shown apart. Before every command all checkpoints are dropped from the page cache with
`posix_fadvise`, so that nobody finds there what another has left; with `--warm` what it reads is then put there.

    python benchmarks/convert.py --directory /scratch
    python benchmarks/convert.py --quick --json convert.json
    python benchmarks/convert.py --only import

Rates are bytes of weights written a second: a merge reads two checkpoints to write one.
"""

import json
import multiprocessing
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from enum import StrEnum
from functools import partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

if TYPE_CHECKING:
    import torch

GB = 10**9
QUICK_GB = 2.0
SHARD = "1GB"
TEXT = ["안녕하세요, 무엇을 도와 드릴까요?", "three hundred forty-seven is 347, and 58 < 85."] * 4
COPY = "cp -r"


class Command(StrEnum):
    """What is compared with a copy. A copy reads a published checkpoint."""

    IMPORT = "import"
    EXPORT = "export"
    MERGE = "merge"


@dataclass(frozen=True)
class Run:
    """One command, timed.

    Attributes:
        command: its name.
        seconds: wall clock until what it wrote is on disk.
        processor_seconds: what it kept processors busy, which other load on the machine changes less.
        nbytes: bytes of weights that it wrote.
        peak_bytes: most memory that the process had resident.
    """

    command: str
    seconds: float
    processor_seconds: float
    nbytes: int
    peak_bytes: int


@dataclass(frozen=True)
class Folders:
    """Where the checkpoints are: two published ones, a training one, and what is being written."""

    published: Path
    other: Path
    trained: Path
    out: Path


@dataclass(frozen=True)
class Task:
    """A command to time: what it reads and what it writes."""

    name: str
    command: tuple[str, ...]
    sources: tuple[Path, ...]
    target: Path


def make_checkpoints(folders: Folders, gigabytes: float, commands: Sequence[Command]) -> None:
    """Write what the commands read: published checkpoints with other numbers each, the first as a training one too."""
    from trillion_convert.export import import_checkpoint

    make_published(folders.published, gigabytes, seed=0)
    if Command.MERGE in commands:
        make_published(folders.other, gigabytes, seed=1)
    if Command.EXPORT in commands:
        import_checkpoint(folders.published, folders.trained, max_shard_size=SHARD)


def make_published(folder: Path, gigabytes: float, seed: int) -> None:
    """Write a published checkpoint of about so many bytes; the same seed gives the same numbers."""
    import torch

    from trillion_convert.streaming import Conversion, Output, stream
    from trillion_convert.tensor_files import TensorInfo
    from trillion_model import presets
    from trillion_model.architecture import Architecture
    from trillion_training.tokenizer import to_huggingface, train_sentencepiece

    tokenizer = to_huggingface(train_sentencepiece(TEXT, 320))
    ids = {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id}
    shape = presets.get("vaetki-7b-a1b")

    def published(layers: int, **changes: object) -> Architecture:
        return Architecture.of(shape.replace(num_hidden_layers=layers, **ids, **changes))

    def nbytes(architecture: Architecture) -> int:
        return 2 * sum(map(prod, architecture.published_shapes().values()))

    if gigabytes:
        layer = nbytes(published(3)) - nbytes(published(2))
        rest = nbytes(published(2)) - 2 * layer
        architecture = published(max(2, round((gigabytes * GB - rest) / layer)))
    else:
        architecture = published(2, vocab_size=320, hidden_size=64, intermediate_size=64, moe_intermediate_size=32)
    numbers = torch.randn(2**24, generator=torch.Generator().manual_seed(seed)).bfloat16()

    def pieces(count: int) -> "Iterator[torch.Tensor]":
        for start in range(0, count, len(numbers)):
            yield numbers[: min(len(numbers), count - start)]

    def small_files(target: Path) -> None:
        config = architecture.config.replace()
        config.architectures, config.dtype = [architecture.class_name], "bfloat16"
        config.save_pretrained(target)
        tokenizer.save_pretrained(target)

    outputs = {
        name: Output(TensorInfo(tuple(size), "bfloat16"), partial(pieces, prod(size)))
        for name, size in architecture.published_shapes().items()
    }
    stream(Conversion("synthesise", outputs, {"seed": seed}, []), folder, finish=small_files, max_shard_size=SHARD)


def time_task(task: Task, *, warm: bool) -> Run:
    """Run one command and remove what it wrote."""
    os.sync()
    # All of them, as what others left there leaves this command less memory that is free.
    for path in task.target.parent.rglob("*.safetensors"):
        _forget(path)
    if warm:
        for source in task.sources:
            for path in source.rglob("*.safetensors"):
                _read(path)
    begin = time.perf_counter()
    process = subprocess.Popen(task.command, stdout=subprocess.DEVNULL)
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        sys.exit(f"{' '.join(task.command)} failed")
    for path in (*task.target.rglob("*"), task.target):
        descriptor = os.open(path, os.O_RDONLY)
        os.fsync(descriptor)
        os.close(descriptor)
    seconds = time.perf_counter() - begin
    nbytes = sum(path.stat().st_size for path in task.target.glob("*.safetensors"))
    return Run(task.name, seconds, usage.ru_utime + usage.ru_stime, nbytes, usage.ru_maxrss * 1024)


def tasks(folders: Folders, commands: Sequence[Command]) -> list[Task]:
    """What is run in a turn. Whoever reads a form is compared with a copy, whose files are the same size."""
    tool, size = (sys.executable, "-m", "trillion_convert.cli"), ("--max-shard-size", SHARD)
    sources = {
        Command.IMPORT: (folders.published,),
        Command.EXPORT: (folders.trained,),
        Command.MERGE: (folders.published, folders.other),
    }
    copy = Task(COPY, ("cp", "-r", str(folders.published), str(folders.out)), (folders.published,), folders.out)
    return [
        copy,
        *(
            Task(
                command,
                (*tool, command, *map(str, sources[command]), str(folders.out), *size),
                sources[command],
                folders.out,
            )
            for command in commands
        ),
    ]


def _forget(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(descriptor)


def _read(path: Path) -> None:
    with path.open("rb", buffering=0) as file:
        while file.read(2**24):
            pass


def measure(
    folder: Path, gigabytes: float, commands: Sequence[Command], turns: int, warm: bool, progress: Progress
) -> list[Run]:
    """Make the checkpoints in ``folder`` and run every command ``turns`` times, one after the other."""
    folders = Folders(*(folder / name for name in ("published", "other", "trained", "out")))
    turn = tasks(folders, commands)
    step = progress.add_task("making checkpoints", total=len(turn) * turns)
    # A command's peak memory is never told as less than that of the process that starts it, so torch stays out of ours.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as maker:
        maker.submit(make_checkpoints, folders, gigabytes, commands).result()
    runs = []
    for _ in range(turns):
        for task in turn:
            progress.update(step, description=f"{gigabytes:g} GB: {task.name}")
            runs.append(time_task(task, warm=warm))
            shutil.rmtree(task.target)
            progress.advance(step)
    for path in folder.iterdir():
        shutil.rmtree(path)
    return runs


def median(runs: Sequence[Run], command: str) -> Run:
    """The medians of a command's times, and its largest memory of all."""
    mine = [run for run in runs if run.command == command]
    seconds = statistics.median(run.seconds for run in mine)
    busy = statistics.median(run.processor_seconds for run in mine)
    return Run(command, seconds, busy, mine[0].nbytes, max(run.peak_bytes for run in mine))


def report(runs: Sequence[Run], starts: Sequence[Run], title: str) -> Table:
    """The medians as a table, against the copies: with the start-up and after it, and the most memory resident."""
    table = Table(title=title, title_justify="left")
    for column in ("command", "s", "CPU s", "MB/s", "of cp", "start, s", "MB/s after", "of cp", "MiB"):
        table.add_column(column, justify="left" if column == "command" else "right", no_wrap=True)
    copy = median(runs, COPY)
    copy_rate = copy.nbytes / copy.seconds
    for command in dict.fromkeys(run.command for run in runs):
        run, start = median(runs, command), median(starts, command)
        rate, after = run.nbytes / run.seconds, run.nbytes / (run.seconds - start.seconds)
        copied_after = copy.nbytes / (copy.seconds - median(starts, COPY).seconds)
        table.add_row(
            command,
            f"{run.seconds:.2f}",
            f"{run.processor_seconds:.2f}",
            f"{rate / 1e6:,.0f}",
            f"{rate / copy_rate:.2f}",
            f"{start.seconds:.2f}",
            f"{after / 1e6:,.0f}",
            f"{after / copied_after:.2f}",
            f"{run.peak_bytes / 2**20:,.0f}",
        )
    return table


def main(
    gigabytes: Annotated[float, typer.Option(min=1.0, help="Bytes of weights of the checkpoint, in GB.")] = 20.0,
    quick: Annotated[bool, typer.Option("--quick", help=f"A checkpoint of {QUICK_GB:g} GB.")] = False,
    only: Annotated[list[Command] | None, typer.Option(help="Measure this command; may be given again.")] = None,
    turns: Annotated[int, typer.Option(min=1, help="How often every command is run.")] = 3,
    warm: Annotated[bool, typer.Option("--warm", help="Read from the page cache instead of the disk.")] = False,
    directory: Annotated[Path | None, typer.Option(help="Where to write; the system's place for such files.")] = None,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write every run here.")] = None,
) -> None:
    """Print the rates of import, export and merge, and their ratio to cp -r.

    Example: python benchmarks/convert.py --quick
    """
    gigabytes = QUICK_GB if quick else gigabytes
    commands = only or list(Command)
    # One that is read, one that is written, and what only some commands read.
    copies = 2 + (Command.EXPORT in commands) + (Command.MERGE in commands)
    console = Console()
    with tempfile.TemporaryDirectory(prefix="convert-", dir=directory) as name:
        needed, free = (copies + 0.2) * gigabytes * GB, shutil.disk_usage(name).free
        if needed > free:
            wanted = "give --gigabytes, --only or --directory"
            sys.exit(f"{name} needs {needed / GB:.0f} GB free and has {free / GB:.0f}; {wanted}")
        with Progress(console=Console(stderr=True), transient=True) as progress:
            starts = measure(Path(name), 0, commands, turns, True, progress)
            runs = measure(Path(name), gigabytes, commands, turns, warm, progress)
    state = "from the page cache" if warm else "from the disk"
    title = f"{median(runs, COPY).nbytes / GB:.1f} GB read {state}, median of {turns}, until on disk"
    console.print(report(runs, starts, title))
    if json_file is not None:
        results = {"warm": warm, "starts": [asdict(run) for run in starts], "runs": [asdict(run) for run in runs]}
        json_file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
