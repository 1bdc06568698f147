"""The forms that a checkpoint can have, a row each.

Published names are what all forms are told in: a row says which tensors its form has, and which published tensors each
of them is made of. Any form is converted into any other through them, and a form is added by adding a row.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from functools import partial
from typing import TYPE_CHECKING, Protocol

from trillion_convert import megatron

if TYPE_CHECKING:
    import torch

    from trillion_model.architecture import Architecture
    from trillion_model.layout import Shape


class Form(StrEnum):
    """How a directory's tensors are named."""

    TRAIN = "train"
    """As the modules name them, experts stacked; written by trillion-train."""
    HF = "hf"
    """As checkpoints are published, experts one by one."""
    MEGATRON = "megatron"
    """As Megatron-Core names them, layers numbered."""
    MEGATRON_STACKED = "megatron-stacked"
    """As Megatron-Core names them where all layers are alike: one tensor for all layers."""


class Table(Protocol):
    """How a form's tensors are made of published ones; :class:`trillion_model.layout.Layout` is one."""

    def to_published(self, module_name: str, tensor: "torch.Tensor") -> "dict[str, torch.Tensor]":
        """Take one tensor of the form apart, into views of it where that can be."""

    def to_module(self, module_name: str, shape: "Shape", read: "Callable[[str], torch.Tensor]") -> "torch.Tensor":
        """Put one tensor of the form together; ``read`` gives a published tensor by name."""


@dataclass(frozen=True)
class FormRow:
    """What is to know of a form.

    Attributes:
        table: the form's table, for an architecture.
        shapes: every tensor's name and shape, for an architecture.
        tokenizer: the folder of the tokenizer's files, from the checkpoint's.
    """

    table: "Callable[[Architecture], Table]"
    shapes: "Callable[[Architecture], Mapping[str, Shape]]"
    tokenizer: str


class AsPublished:
    """The table of the published form itself."""

    def to_published(self, module_name: str, tensor: "torch.Tensor") -> "dict[str, torch.Tensor]":
        return {module_name: tensor}

    def to_module(self, module_name: str, shape: "Shape", read: "Callable[[str], torch.Tensor]") -> "torch.Tensor":
        return read(module_name)


FORMS = {
    Form.TRAIN: FormRow(
        table=lambda architecture: architecture.layout,
        shapes=lambda architecture: architecture.module_shapes,
        tokenizer="tokenizer",
    ),
    Form.HF: FormRow(
        table=lambda architecture: AsPublished(),
        shapes=lambda architecture: architecture.published_shapes(),
        tokenizer=".",
    ),
    Form.MEGATRON: FormRow(table=megatron.layout, shapes=megatron.shapes, tokenizer="."),
    Form.MEGATRON_STACKED: FormRow(
        table=partial(megatron.layout, stacked=True),
        shapes=partial(megatron.shapes, stacked=True),
        tokenizer=".",
    ),
}
