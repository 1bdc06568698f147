"""Checkpoint layouts as tables of invertible operations.

A family's ``layout.py`` lists one row a tensor of its modules. A row knows the published names of that tensor, how
to take the module's tensor apart into them and how to put it together again; a checkpoint is exported by the one
and imported by the other. Names are patterns: ``{layer}`` and ``{expert}`` stand for a number.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import count, takewhile
from typing import TYPE_CHECKING, Any

from trillion_model.errors import CheckpointError

if TYPE_CHECKING:
    import torch

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Same:
    """The tensor is published as it stands, under the same name."""

    name: str

    @property
    def parts(self) -> tuple[str, ...]:
        """Patterns of the published names."""
        return (self.name,)

    def published(self, numbers: Mapping[str, str], shape: Shape) -> dict[str, Shape]:
        """Published names and shapes of a module tensor of ``shape``."""
        return {self.name.format(**numbers): shape}

    def whole(self, numbers: Mapping[str, str], published: Mapping[str, Shape]) -> Shape:
        """Shape of the module's tensor, from those of every published tensor: the inverse of :meth:`published`."""
        return published[self.parts[0].format(**numbers)]

    def split(self, tensor: "torch.Tensor") -> "list[torch.Tensor]":
        """The module's tensor as published ones, in the order of :meth:`published`."""
        return [tensor]

    def join(self, tensors: "Sequence[torch.Tensor]", shape: Shape) -> "torch.Tensor":
        """The module's tensor of ``shape`` from published ones: the inverse of :meth:`split`."""
        return tensors[0]

    def transformers_converter(self) -> Any:
        """The same operation for Transformers' loader; None where there is nothing to do."""
        return None


@dataclass(frozen=True)
class Renamed(Same):
    """The tensor is published as it stands, under another name.

    Attributes:
        name: module tensor.
        part: its published name.
    """

    part: str

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.part,)

    def published(self, numbers: Mapping[str, str], shape: Shape) -> dict[str, Shape]:
        return {self.part.format(**numbers): shape}

    def transformers_converter(self) -> Any:
        from transformers.core_model_loading import WeightRenaming

        return WeightRenaming(source_patterns=_suffix(self.part), target_patterns=_suffix(self.name))


@dataclass(frozen=True)
class Rows:
    """A matrix is published as several with its rows, equally many each.

    Attributes:
        name: module tensor, (rows, columns).
        parts: published names, each (rows / len(parts), columns).
    """

    name: str
    parts: tuple[str, ...]

    def published(self, numbers: Mapping[str, str], shape: Shape) -> dict[str, Shape]:
        rows, columns = shape
        return {part.format(**numbers): (rows // len(self.parts), columns) for part in self.parts}

    def whole(self, numbers: Mapping[str, str], published: Mapping[str, Shape]) -> Shape:
        rows, columns = published[self.parts[0].format(**numbers)]
        return rows * len(self.parts), columns

    def split(self, tensor: "torch.Tensor") -> "list[torch.Tensor]":
        return list(tensor.chunk(len(self.parts)))

    def join(self, tensors: "Sequence[torch.Tensor]", shape: Shape) -> "torch.Tensor":
        import torch

        return torch.cat(list(tensors))

    def transformers_converter(self) -> Any:
        from transformers.core_model_loading import Concatenate, WeightConverter

        return WeightConverter(
            source_patterns=[_suffix(part) for part in self.parts],
            target_patterns=_suffix(self.name),
            operations=[Concatenate(dim=0)],
        )


@dataclass(frozen=True)
class Dropped:
    """The tensor belongs to training only: no published checkpoint has it.

    A model that is read from one must be built without it, so it is never put together.
    """

    name: str

    @property
    def parts(self) -> tuple[str, ...]:
        return ()

    def published(self, numbers: Mapping[str, str], shape: Shape) -> dict[str, Shape]:
        return {}

    def whole(self, numbers: Mapping[str, str], published: Mapping[str, Shape]) -> Shape:
        raise self._absent()

    def split(self, tensor: "torch.Tensor") -> "list[torch.Tensor]":
        return []

    def join(self, tensors: "Sequence[torch.Tensor]", shape: Shape) -> "torch.Tensor":
        raise self._absent()

    def _absent(self) -> CheckpointError:
        return CheckpointError(
            f"{self.name}: is trained and not published, so no published checkpoint has it; build the model from the "
            "published configuration"
        )

    def transformers_converter(self) -> Any:
        return None


@dataclass(frozen=True)
class PerExpert:
    """A stack over experts is published an expert at a time, its rows cut into equal ``parts``.

    Attributes:
        name: module tensor, (experts, rows, columns).
        parts: published names with ``{expert}``, each (rows / len(parts), columns).
    """

    name: str
    parts: tuple[str, ...]

    def published(self, numbers: Mapping[str, str], shape: Shape) -> dict[str, Shape]:
        experts, rows, columns = shape
        return {
            part.format(**numbers, expert=expert): (rows // len(self.parts), columns)
            for expert in range(experts)
            for part in self.parts
        }

    def whole(self, numbers: Mapping[str, str], published: Mapping[str, Shape]) -> Shape:
        rows, columns = published[self.parts[0].format(**numbers, expert=0)]
        names = (self.parts[0].format(**numbers, expert=expert) for expert in count())
        return sum(1 for _ in takewhile(published.__contains__, names)), rows * len(self.parts), columns

    def split(self, tensor: "torch.Tensor") -> "list[torch.Tensor]":
        return [part for expert in tensor for part in expert.chunk(len(self.parts))]

    def join(self, tensors: "Sequence[torch.Tensor]", shape: Shape) -> "torch.Tensor":
        import torch

        return torch.cat(list(tensors)).view(shape)

    def transformers_converter(self) -> Any:
        from transformers.core_model_loading import Concatenate, MergeModulelist, WeightConverter

        merge = [MergeModulelist(dim=0)]
        return WeightConverter(
            source_patterns=[_suffix(part) for part in self.parts],
            target_patterns=_suffix(self.name),
            operations=merge if len(self.parts) == 1 else [*merge, Concatenate(dim=1)],
        )


@dataclass(frozen=True)
class PerLayer:
    """A stack over layers that are all alike, of which each is published by ``row``.

    Attributes:
        row: how one layer's tensor is published; its name has ``layers.{layer}.``.
    """

    row: "Same | Rows | PerExpert"

    @property
    def name(self) -> str:
        """The row's name without the layer's number; the tensor is (layers, ...)."""
        return self.row.name.replace("layers.{layer}.", "layers.")

    @property
    def parts(self) -> tuple[str, ...]:
        return self.row.parts

    def published(self, numbers: Mapping[str, str], shape: Shape) -> dict[str, Shape]:
        return {
            name: part
            for layer in range(shape[0])
            for name, part in self.row.published({**numbers, "layer": str(layer)}, shape[1:]).items()
        }

    def whole(self, numbers: Mapping[str, str], published: Mapping[str, Shape]) -> Shape:
        names = (self.parts[0].format(**numbers, layer=layer, expert=0) for layer in count())
        layers = sum(1 for _ in takewhile(published.__contains__, names))
        return layers, *self.row.whole({**numbers, "layer": "0"}, published)

    def split(self, tensor: "torch.Tensor") -> "list[torch.Tensor]":
        return [part for layer in tensor for part in self.row.split(layer)]

    def join(self, tensors: "Sequence[torch.Tensor]", shape: Shape) -> "torch.Tensor":
        import torch

        each = len(tensors) // shape[0]
        layers = [tensors[begin : begin + each] for begin in range(0, len(tensors), each)]
        return torch.stack([self.row.join(parts, shape[1:]) for parts in layers])

    def transformers_converter(self) -> Any:
        raise NotImplementedError("Transformers' modules hold no stacks over layers")


Row = Same | Rows | PerExpert | PerLayer | Dropped


class Layout:
    """A family's table.

    Args:
        rows: one for each kind of module tensor.
    """

    def __init__(self, rows: Iterable[Row]) -> None:
        self.rows = tuple(rows)
        self._patterns = [(_pattern(row.name), row) for row in self.rows]

    def row(self, module_name: str) -> tuple[Row, dict[str, str]]:
        """The row of a module tensor, and the numbers in its name.

        Raises:
            CheckpointError: the architecture has no such tensor.
        """
        for pattern, row in self._patterns:
            if match := pattern.fullmatch(module_name):
                return row, match.groupdict()
        raise CheckpointError(f"{module_name}: the architecture has no such tensor; remove it from the checkpoint")

    def published_shapes(self, module_shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """Every published tensor's name and shape, from the module's."""
        return {
            name: shape
            for module_name, module_shape in module_shapes.items()
            for name, shape in self.published_names(module_name, module_shape).items()
        }

    def module_shape(self, module_name: str, published: Mapping[str, Shape]) -> Shape:
        """Shape of one module tensor, from those of every published tensor.

        Raises:
            CheckpointError: the architecture has no such tensor.
        """
        row, numbers = self.row(module_name)
        return row.whole(numbers, published)

    def published_names(self, module_name: str, shape: Shape) -> dict[str, Shape]:
        """Published names and shapes of one module tensor."""
        row, numbers = self.row(module_name)
        return row.published(numbers, tuple(shape))

    def to_published(self, module_name: str, tensor: "torch.Tensor") -> "dict[str, torch.Tensor]":
        """Take one module tensor apart into published tensors (views of it)."""
        row, numbers = self.row(module_name)
        return dict(zip(row.published(numbers, tuple(tensor.shape)), row.split(tensor), strict=True))

    def to_module(self, module_name: str, shape: Shape, read: "Callable[[str], torch.Tensor]") -> "torch.Tensor":
        """Put one module tensor together.

        Args:
            module_name: the tensor to build.
            shape: what it must be.
            read: gives a published tensor by name.

        Raises:
            CheckpointError: a published tensor has the wrong shape.
        """
        row, numbers = self.row(module_name)
        tensors = []
        for name, expected in row.published(numbers, tuple(shape)).items():
            tensor = read(name)
            if tuple(tensor.shape) != expected:
                raise CheckpointError(f"{name}: shape is {tuple(tensor.shape)}, but the configuration gives {expected}")
            tensors.append(tensor)
        return row.join(tensors, tuple(shape))

    def transformers_converters(self) -> list[Any]:
        """The table as Transformers' loader takes it, so that ``from_pretrained`` reads published checkpoints."""
        return [converter for row in self.rows if (converter := row.transformers_converter()) is not None]


def _suffix(name: str) -> str:
    """A name as Transformers matches it: from the end, so the layer's own prefix is left out."""
    return name.partition("{layer}.")[2].replace("{expert}", "*")


def _pattern(name: str) -> re.Pattern[str]:
    return re.compile(re.sub(r"\\{(\w+)\\}", r"(?P<\1>\\d+)", re.escape(name)))
