"""``trillion-convert inspect A --diff B``: two checkpoints compared tensor by tensor, in published names.

Tensors are read in pieces, so memory stays small whatever their size; a quantised tensor is compared as the numbers
that it stands for, and made whole.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from functools import reduce
from math import inf, isfinite, isnan, sqrt
from operator import add
from pathlib import Path
from typing import TYPE_CHECKING

from trillion_convert.checkpoint import Checkpoint, open_checkpoint
from trillion_convert.conversion import PublishedReader
from trillion_convert.errors import ConvertError
from trillion_convert.quantize.plain import PlainTensors
from trillion_model import presets
from trillion_model.layout import Shape
from trillion_model.sizes import part_of

if TYPE_CHECKING:
    import torch

_PIECE = 2**22
_SHOWN = 20


@dataclass(frozen=True)
class TensorDifference:
    """How far apart two tensors of one shape are.

    Attributes:
        name: published name.
        part: of the model.
        dtypes: what each is stored in.
        equal: whether every number is the same.
        largest: largest absolute difference of two numbers.
        relative: norm of the difference over the norm of the first; infinite where only the first is zero.
        cosine: of the angle between the two; None where one of them is zero.
    """

    name: str
    part: str
    dtypes: tuple[str, str]
    equal: bool
    largest: float
    relative: float
    cosine: float | None


@dataclass(frozen=True)
class PartDifference:
    """The tensors of one part together: how many, how many are equal, and as in :class:`TensorDifference`."""

    part: str
    tensors: int
    equal: int
    largest: float
    relative: float


@dataclass(frozen=True)
class Difference:
    """Two checkpoints.

    Attributes:
        a, b: the directories.
        only_in_a, only_in_b: tensors that the other lacks.
        shapes: tensors whose shapes differ, with both.
        tensors: all others, the furthest apart first.
        parts: the same by part, the furthest apart first.
    """

    a: str
    b: str
    only_in_a: tuple[str, ...]
    only_in_b: tuple[str, ...]
    shapes: dict[str, tuple[Shape, Shape]]
    tensors: tuple[TensorDifference, ...]
    parts: tuple[PartDifference, ...]

    @property
    def equal(self) -> bool:
        """Whether both hold the same numbers under the same names."""
        return not (self.only_in_a or self.only_in_b or self.shapes) and all(tensor.equal for tensor in self.tensors)

    def to_json(self) -> str:
        """Everything, for a program; what is not finite is null."""

        def plain(value: object) -> object:
            if isinstance(value, float):
                return value if isfinite(value) else None
            if isinstance(value, dict):
                return {key: plain(item) for key, item in value.items()}
            return [plain(item) for item in value] if isinstance(value, list | tuple) else value

        return json.dumps(plain(asdict(self) | {"equal": self.equal}), indent=2)


def compare(a: Path, b: Path, on_tensor: Callable[[str], None] = lambda name: None) -> Difference:
    """Compare two directories in any form.

    Args:
        a, b: the directories.
        on_tensor: told of each tensor as it is read.

    Raises:
        CheckpointError: one of them does not fit its configuration.
        ConfigError: a configuration is wrong.
        ConvertError: one of them is a preset.
    """
    for path in (a, b):
        if str(path) in presets.names() and not path.is_dir():
            raise ConvertError(f"{path} is a preset, which has no weights to compare; give two directories")
    first, second = _Published(open_checkpoint(a)), _Published(open_checkpoint(b))
    shared = [name for name in first.shapes if name in second.shapes]
    shapes = {name: (first.shapes[name], second.shapes[name]) for name in shared}
    sums: dict[str, _Sums] = {}
    for name in shared:
        if first.shapes[name] == second.shapes[name]:
            on_tensor(name)
            sums[name] = _sums(first.pieces(name), second.pieces(name))
    tensors = [
        TensorDifference(
            name,
            part_of(name),
            (first.dtype(name), second.dtype(name)),
            found.equal,
            found.largest,
            found.relative,
            found.cosine,
        )
        for name, found in sums.items()
    ]
    return Difference(
        str(a),
        str(b),
        tuple(name for name in first.shapes if name not in second.shapes),
        tuple(name for name in second.shapes if name not in first.shapes),
        {name: pair for name, pair in shapes.items() if name not in sums},
        tuple(sorted(tensors, key=_distance)),
        tuple(sorted(_by_part(sums), key=_distance)),
    )


def _by_part(sums: "dict[str, _Sums]") -> list[PartDifference]:
    parts: dict[str, list[_Sums]] = {}
    for name, found in sums.items():
        parts.setdefault(part_of(name), []).append(found)
    differences = []
    for part, members in parts.items():
        total = reduce(add, members)
        equal = sum(found.equal for found in members)
        differences.append(PartDifference(part, len(members), equal, total.largest, total.relative))
    return differences


def _distance(found: TensorDifference | PartDifference) -> tuple[float, float]:
    """Sorts the furthest apart first; numbers that are none at all before all others."""
    relative, largest = (-inf if isnan(value) else -value for value in (found.relative, found.largest))
    return relative, largest


class _Published:
    """A checkpoint's tensors by published name."""

    def __init__(self, checkpoint: Checkpoint) -> None:
        self._tensors, self._recipe = checkpoint.tensors, checkpoint.recipe
        self.shapes = {name: tuple(shape) for name, shape in checkpoint.architecture.published_shapes().items()}
        self._reader = None if checkpoint.recipe else PublishedReader(checkpoint)
        self._plain = PlainTensors(checkpoint)

    def dtype(self, name: str) -> str:
        """What the tensor is stored in."""
        if self._reader:
            name = self._reader.part(name).holder
        elif self._recipe and name not in self._tensors:
            name = self._recipe.stored_names(name)[0]
        return self._tensors[name].dtype

    def pieces(self, name: str) -> "Iterator[torch.Tensor]":
        """The tensor's numbers in order, flat."""
        if self._reader is None:
            return iter(self._plain.read(name).flatten().split(_PIECE))
        part = self._reader.part(name)
        if part.start is None:
            return iter(self._reader.read(name).flatten().split(_PIECE))
        return self._ranges(part.holder, part.start, part.start + part.numbers)

    def _ranges(self, holder: str, start: int, stop: int) -> "Iterator[torch.Tensor]":
        for begin in range(start, stop, _PIECE):
            yield self._tensors.read_range(holder, begin, min(begin + _PIECE, stop))


@dataclass(frozen=True)
class _Sums:
    """What the distance of two vectors follows from: sums over their numbers, in float64."""

    equal: bool = True
    largest: float = 0.0
    squares_a: float = 0.0
    squares_b: float = 0.0
    products: float = 0.0
    squares_of_difference: float = 0.0

    def __add__(self, other: "_Sums") -> "_Sums":
        return _Sums(
            self.equal and other.equal,
            max(self.largest, other.largest, key=lambda value: inf if value != value else value),
            self.squares_a + other.squares_a,
            self.squares_b + other.squares_b,
            self.products + other.products,
            self.squares_of_difference + other.squares_of_difference,
        )

    @property
    def relative(self) -> float:
        if not self.squares_a:
            return inf if self.squares_of_difference else 0.0
        return sqrt(self.squares_of_difference / self.squares_a)

    @property
    def cosine(self) -> float | None:
        norms = sqrt(self.squares_a) * sqrt(self.squares_b)
        return self.products / norms if norms else None


def _sums(a: "Iterator[torch.Tensor]", b: "Iterator[torch.Tensor]") -> _Sums:
    total = _Sums()
    for first, second in zip(a, b, strict=True):
        x, y = first.double(), second.double()
        apart = x - y
        total += _Sums(
            bool((x == y).all()),
            apart.abs().max().item(),
            x.dot(x).item(),
            y.dot(y).item(),
            x.dot(y).item(),
            apart.dot(apart).item(),
        )
    return total


def render(difference: Difference) -> None:
    """Print what differs: by part, then the tensors that are furthest apart."""
    from rich.console import Console
    from rich.table import Table

    console = Console()
    for side, names in ((difference.a, difference.only_in_a), (difference.b, difference.only_in_b)):
        for name in names[:_SHOWN]:
            console.print(f"only in {side}: {name}", soft_wrap=True, markup=False)
        if len(names) > _SHOWN:
            console.print(f"only in {side}: {len(names) - _SHOWN} more", soft_wrap=True, markup=False)
    for name, (first, second) in list(difference.shapes.items())[:_SHOWN]:
        console.print(f"{name}: shape {first} and {second}", soft_wrap=True, markup=False)
    if difference.equal:
        console.print(f"{len(difference.tensors)} tensors, all equal")
        return
    parts = Table(title=f"{difference.a} and {difference.b}", title_justify="left")
    parts.add_column("part", overflow="fold")
    for heading in ("tensors", "equal", "largest", "relative"):
        parts.add_column(heading, justify="right", overflow="fold")
    for part in difference.parts:
        parts.add_row(part.part, str(part.tensors), str(part.equal), f"{part.largest:.3g}", f"{part.relative:.3g}")
    tensors = Table()
    tensors.add_column("tensor", overflow="fold")
    for heading in ("dtypes", "largest", "relative", "cosine"):
        tensors.add_column(heading, justify="right", overflow="fold")
    for tensor in [tensor for tensor in difference.tensors if not tensor.equal][:_SHOWN]:
        cosine = "" if tensor.cosine is None else f"{tensor.cosine:.6f}"
        dtypes = " / ".join(dict.fromkeys(tensor.dtypes))
        tensors.add_row(tensor.name, dtypes, f"{tensor.largest:.3g}", f"{tensor.relative:.3g}", cosine)
    console.print(parts, tensors)
    unequal = sum(not tensor.equal for tensor in difference.tensors)
    if unequal > _SHOWN:
        console.print(f"{unequal - _SHOWN} more tensors differ; --json lists them all")
