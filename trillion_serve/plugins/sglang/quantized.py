"""Quantised checkpoints under SGLang: its layers hold plain weights, and these are dequantised as they load.

Answers are what the stored numbers stand for; activations stay as they are. On disk a checkpoint is small, in memory it
is as large as an unquantised one: what saves memory is vLLM, which has kernels for what is stored.
"""

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme, QuantizationStrategy
from pydantic import ValidationError

from trillion_model.errors import CheckpointError
from trillion_serve.plugins.sglang import SglangStartError
from trillion_serve.plugins.weights import lacking

_PARTS = {
    "float-quantized": ("weight", "weight_scale"),
    "int-quantized": ("weight", "weight_scale"),
    "pack-quantized": ("weight_packed", "weight_scale", "weight_shape"),
}
"""What is stored in the place of a weight, by format of compressed-tensors."""
_STRATEGIES = {QuantizationStrategy.CHANNEL, QuantizationStrategy.GROUP}
_QUANTISED = {torch.int8, torch.float8_e4m3fn}


def scheme_of(stated: Mapping[str, Any]) -> QuantizationScheme:
    """How weights are stored, as ``quantization_config`` in ``config.json`` states it.

    Raises:
        SglangStartError: in no way that can be read here.
    """
    try:
        config = QuantizationConfig.model_validate(stated)
    except ValidationError as error:
        raise SglangStartError(f"quantization_config in config.json cannot be read: {error}") from error
    schemes = [group for group in config.config_groups.values() if isinstance(group, QuantizationScheme)]
    weights = schemes[0].weights if len(schemes) == 1 else None
    if config.format in _PARTS and weights and weights.symmetric and weights.strategy in _STRATEGIES:
        return schemes[0].model_copy(update={"format": config.format})
    raise SglangStartError(
        "SGLang cannot serve what quantization_config in config.json describes; quantise with trillion-convert "
        f"quantize, as one of {', '.join(_PARTS)} with a symmetric scale for each row or group"
    )


def dequantized(
    weights: Iterable[tuple[str, torch.Tensor]], scheme: QuantizationScheme
) -> Iterator[tuple[str, torch.Tensor]]:
    """Checkpoint tensors with each quantised weight whole, in float32, as soon as all that is stored of it has come.

    Raises:
        CheckpointError: a part is missing, there twice, or does not go with the others.
    """
    leaves = _PARTS[str(scheme.format)]
    held: dict[str, dict[str, torch.Tensor]] = defaultdict(dict)
    for name, tensor in weights:
        module, _, leaf = name.rpartition(".")
        if leaf not in leaves or (leaf == "weight" and tensor.dtype not in _QUANTISED):
            yield name, tensor
            continue
        if leaf in held[module]:
            raise CheckpointError(f"{name}: the checkpoint holds it twice; remove one of them")
        held[module][leaf] = tensor
        if len(held[module]) == len(leaves):
            yield f"{module}.weight", _plain(module, held.pop(module), scheme)
    if missing := sorted(f"{module}.{leaf}" for module, parts in held.items() for leaf in leaves if leaf not in parts):
        raise lacking(missing)


def _plain(module: str, parts: dict[str, torch.Tensor], scheme: QuantizationScheme) -> torch.Tensor:
    """The weight that ``parts`` stand for, (rows, columns)."""
    decompress = BaseCompressor.get_value_from_registry(str(scheme.format)).decompress
    shapes = {leaf: tuple(part.shape) for leaf, part in parts.items()}
    try:
        return decompress(parts | {"weight_scale": parts["weight_scale"].float()}, scheme)["weight"]
    except (IndexError, RuntimeError, ValueError) as error:
        raise CheckpointError(f"{module}: what is stored of it does not go together, {shapes} ({error})") from error
