"""The one engine of every conversion: named tensors, each given by a source in small pieces, written into shards.

A file is read and written by one thread, piece by piece, and as many files as there are processors are made side by
side: a piece that went from one thread to another would leave its processor's cache. What is in memory at a time is a
piece or two for each of them, plus the tensors that can only be made whole, which share a budget: the peak does not
depend on the checkpoint's size. Files that are finished are noted in a journal, so that a run that is killed goes on
where it was; the finished directory has a manifest with the digest of every file.

A conversion describes what it writes and hands it over:

    outputs = {name: Output(info, lambda: pieces_of(name)) for name, info in infos.items()}
    outputs |= computed({name: info, name + "_scale": scale_info}, lambda: quantise(name), held=nbytes)
    stream(Conversion("quantize", outputs, {"scheme": "int8"}, [source]), target, finish=write_config_and_tokenizer)
"""

import json
import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from trillion_convert.errors import ConvertError
from trillion_convert.manifest import FileEntry, Source, fingerprint, tool, write_manifest
from trillion_convert.safetensors_writer import SafetensorsWriter
from trillion_convert.staging import Stage, staged_directory
from trillion_convert.tensor_files import INDEX, TensorInfo, all_finite
from trillion_model.errors import CheckpointError

if TYPE_CHECKING:
    import torch

PIECE = 4 * 2**20
"""Bytes that are read, checked, digested and written at a time: few enough to stay in a processor's cache."""
BUDGET = 2**30
"""Bytes that tensors which are made whole may take together; a larger one is made while there is no other."""

_ROOM_FOR_SMALL_FILES = 64 * 2**20


@dataclass(frozen=True)
class Output:
    """A tensor to write.

    Attributes:
        info: its shape and dtype.
        pieces: gives its numbers in order, in its dtype, as tensors of any shape; called once, on any thread.
        held: bytes in memory while it is made, where that is more than a few times PIECE.
    """

    info: TensorInfo
    pieces: "Callable[[], Iterable[torch.Tensor]]"
    held: int = 0


@dataclass(frozen=True)
class Conversion:
    """All that decides what is written; a run that was killed is gone on with only where none of it has changed.

    Attributes:
        command: name of the command.
        outputs: the tensors, in the order in which they are laid out.
        options: what else decides their numbers: dtypes, weights, schemes.
        sources: the directories that they are read from.
    """

    command: str
    outputs: Mapping[str, Output]
    options: Mapping[str, object]
    sources: Sequence[Path]


@dataclass(frozen=True)
class Report:
    """What was written: number of tensors, weight files and bytes of weights."""

    tensors: int
    files: int
    nbytes: int


@dataclass(frozen=True)
class Listener:
    """Whom to tell: ``on_bytes`` of bytes of weights written so far and in all, ``on_note`` of what people may ask."""

    on_bytes: Callable[[int, int], None] = lambda written, total: None
    on_note: Callable[[str], None] = lambda text: None


def computed(
    infos: Mapping[str, TensorInfo], produce: "Callable[[], Mapping[str, torch.Tensor]]", *, held: int
) -> dict[str, Output]:
    """Outputs that can only be made whole, and together.

    Args:
        infos: their names, shapes and dtypes; they should follow each other in the conversion's outputs.
        produce: makes them; called on any thread, and once more where a file ends between two of them.
        held: bytes in memory meanwhile, inputs and results.
    """
    group = _Group(produce)
    return {name: Output(info, partial(group.take, name), held) for name, info in infos.items()}


def stream(
    conversion: Conversion,
    target: Path,
    *,
    finish: Callable[[Path], None],
    max_shard_size: str = "5GB",
    force: bool = False,
    listener: Listener | None = None,
) -> Report:
    """Write ``target``; it appears whole or not at all.

    Args:
        conversion: what to write.
        target: the directory to make.
        finish: writes everything but the weights into the directory that it is given.
        max_shard_size: most bytes of a weight file, such as "5GB"; a larger tensor has a file of its own.
        force: replace a ``target`` that is a model directory.
        listener: whom to tell of progress.

    Raises:
        CheckpointError: a number is infinite or none at all, or a source changed while it was read.
        TargetError: the target is in use, or the disk is too small.
        ConvertError: ``max_shard_size`` is no size.
    """
    infos = {name: output.info for name, output in conversion.outputs.items()}
    shards = plan_shards(infos, max_shard_size)
    total = sum(info.nbytes for info in infos.values())
    listener = listener or Listener()
    read = [Source(name=path.resolve().name, fingerprint=fingerprint(path)) for path in conversion.sources]
    plan, needed = _plan_digest(conversion, shards, read), total + _ROOM_FOR_SMALL_FILES
    with staged_directory(target, sources=conversion.sources, needed=needed, force=force, plan=plan) as stage:
        if stage.note:
            listener.on_note(stage.note)
        _Run(conversion.outputs, shards, stage, lambda written: listener.on_bytes(written, total)).run()
        if len(shards) > 1:
            weight_map = {name: file for file, names in shards.items() for name in names}
            index = {"metadata": {"total_size": total}, "weight_map": weight_map}
            (stage.folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
        finish(stage.folder)
        for path, source in zip(conversion.sources, read, strict=True):
            if fingerprint(path) != source.fingerprint:
                raise CheckpointError(f"{path} was changed while it was read; leave it alone and run this again")
        write_manifest(stage.folder, conversion.command, read, stage.journal.finished)
    return Report(len(infos), len(shards), total)


def plan_shards(infos: Mapping[str, TensorInfo], max_shard_size: str) -> dict[str, list[str]]:
    """Weight files and the tensors that each holds, in order.

    Raises:
        ConvertError: ``max_shard_size`` is no size.
    """
    import torch
    from huggingface_hub import split_torch_state_dict_into_shards

    on_meta = {
        name: torch.empty(info.shape, dtype=getattr(torch, info.dtype), device="meta") for name, info in infos.items()
    }
    try:
        return split_torch_state_dict_into_shards(on_meta, max_shard_size=max_shard_size).filename_to_tensors
    except ValueError as error:
        raise ConvertError(f"--max-shard-size {max_shard_size!r} is no size; write it like 5GB or 500MB") from error


class Budget:
    """Bytes that may be taken at a time, first come, first served.

    Args:
        limit: how many; who asks for more has all of it, alone.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.taken = self.peak = 0
        self._free = threading.Condition()

    @contextmanager
    def take(self, nbytes: int) -> Iterator[None]:
        """Have ``nbytes`` for the length of the block; waits until they are free."""
        with self._free:
            self._free.wait_for(lambda: not self.taken or self.taken + nbytes <= self.limit)
            self.taken += nbytes
            self.peak = max(self.peak, self.taken)
        try:
            yield
        finally:
            with self._free:
                self.taken -= nbytes
                self._free.notify_all()


class _Stopped(Exception):
    """Another file failed."""


@dataclass
class _Run:
    """The files of a conversion being written."""

    outputs: Mapping[str, Output]
    shards: Mapping[str, Sequence[str]]
    stage: Stage
    on_bytes: Callable[[int], None]
    budget: Budget = field(default_factory=lambda: Budget(BUDGET))
    written: int = 0
    _counting: threading.Lock = field(default_factory=threading.Lock)
    _stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        """Write every file that is not finished; the first error ends them all."""
        import torch

        todo = [file for file in self.shards if file not in self.stage.journal.finished]
        self._count(sum(self._nbytes(file) for file in self.shards if file not in todo))
        side_by_side = max(1, min(len(todo), len(os.sched_getaffinity(0))))
        # Threads of torch's own wait for each other in loops, at the cost of the threads that read and write.
        before = torch.get_num_threads()
        with ThreadPoolExecutor(side_by_side, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            files = [pool.submit(self._write_file, file) for file in todo]
            try:
                wait(files, return_when=FIRST_EXCEPTION)
            finally:
                self._stop.set()
                pool.shutdown(cancel_futures=True)
                torch.set_num_threads(before)
            failures = [error for file in files if not file.cancelled() and (error := file.exception())]
            for error in failures:
                if not isinstance(error, _Stopped):
                    raise error

    def _write_file(self, file: str) -> None:
        infos = {name: self.outputs[name].info for name in self.shards[file]}
        with SafetensorsWriter(self.stage.folder / file, infos) as writer:
            for name in infos:
                self._write_tensor(writer, name)
            entry: FileEntry = writer.finish()
        self.stage.journal.add(file, entry)

    def _write_tensor(self, writer: SafetensorsWriter, name: str) -> None:
        output = self.outputs[name]
        left = output.info.nbytes
        with self.budget.take(output.held):
            for made in output.pieces():
                for piece in _cut(made, output.info.dtype):
                    if self._stop.is_set():
                        raise _Stopped
                    if not all_finite(piece):
                        raise CheckpointError(_not_finite(name, output.info.dtype))
                    writer.write(piece)
                    left -= piece.nbytes
                    self._count(piece.nbytes)
        assert left == 0, f"{name}: the source gave {-left} bytes more than its shape has"

    def _count(self, nbytes: int) -> None:
        with self._counting:
            self.written += nbytes
            self.on_bytes(self.written)

    def _nbytes(self, file: str) -> int:
        return sum(self.outputs[name].info.nbytes for name in self.shards[file])


class _Group:
    """What is made together, kept for the thread that made it until it has taken all of it."""

    def __init__(self, produce: "Callable[[], Mapping[str, torch.Tensor]]") -> None:
        self._produce = produce
        self._made = threading.local()

    def take(self, name: str) -> "list[torch.Tensor]":
        made: dict[str, torch.Tensor] = self._made.__dict__
        if name not in made:
            made.clear()
            made.update(self._produce())
        return [made.pop(name)]


def _cut(tensor: "torch.Tensor", dtype: str) -> "Iterator[torch.Tensor]":
    import torch

    assert tensor.dtype is getattr(torch, dtype), f"a piece is {tensor.dtype}, but must be {dtype}"
    yield from tensor.flatten().split(PIECE // tensor.itemsize)


def _not_finite(name: str, dtype: str) -> str:
    return (
        f"{name}: holds numbers that are infinite or none at all once they are {dtype}; the training run diverged, or "
        "they need --dtype bfloat16 or float32"
    )


def _plan_digest(conversion: Conversion, shards: Mapping[str, Sequence[str]], read: Sequence[Source]) -> str:
    from blake3 import blake3

    infos = {name: (output.info.shape, output.info.dtype) for name, output in conversion.outputs.items()}
    plan = [tool(), conversion.command, dict(conversion.options), infos, shards, [s.model_dump() for s in read]]
    return blake3(json.dumps(plan, sort_keys=True).encode()).hexdigest()
