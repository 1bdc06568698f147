"""Megatron-Core's names for an architecture: the family's own table, with every tensor's shape.

Megatron-Core saves ``.distcp`` files beside a pickled ``.metadata``, which are not read, since a pickle can run code.
Its tensors under its names in safetensors are: a directory of ``model.safetensors`` or shards with an index,
``config.json`` in the Hugging Face form, and the tokenizer's files.
"""

from collections.abc import Collection
from importlib.util import find_spec
from types import ModuleType

from trillion_convert.errors import ConvertError
from trillion_model.architecture import Architecture, family, is_ours
from trillion_model.layout import Layout, Shape

EMBEDDING = "embedding.word_embeddings.weight"
"""A name that every Megatron-Core checkpoint of a language model has."""
_STACK = "decoder.layers."


def layout(architecture: Architecture, *, stacked: bool = False) -> Layout:
    """The table between Megatron-Core's names and published ones.

    Args:
        architecture: the model.
        stacked: layers are one tensor, (layers, ...), rather than numbered.

    Raises:
        ConvertError: the family has no such table.
    """
    table = _table(architecture)
    return table.STACKED if stacked else table.LAYOUT


def shapes(architecture: Architecture, *, stacked: bool = False) -> dict[str, Shape]:
    """Every tensor's name and shape.

    Raises:
        ConvertError: the family has no such table, or ``stacked`` is asked for where layers are not all alike.
    """
    table, published = layout(architecture, stacked=stacked), architecture.published_shapes()
    names = _table(architecture).tensor_names(architecture.config, stacked=stacked)
    found = {name: table.module_shape(name, published) for name in names}
    if table.published_shapes(found).keys() != published.keys():
        raise ConvertError("Megatron-Core stacks layers only where all are alike, but this model has dense ones first")
    return found


def is_stacked(names: Collection[str]) -> bool:
    """Whether a checkpoint's layers are one tensor rather than numbered."""
    return any(name.startswith(_STACK) and not name.removeprefix(_STACK)[:1].isdigit() for name in names)


def _table(architecture: Architecture) -> ModuleType:
    config = architecture.config
    folder = type(config).__module__.rpartition(".")[0]
    if not is_ours(type(config)) or find_spec(f"{folder}.megatron") is None:
        raise ConvertError(f"{config.model_type} has no table of Megatron-Core's names; vaetki has one")
    return family(config, "megatron")
