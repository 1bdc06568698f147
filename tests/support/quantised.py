"""Quantised directories for tests."""

import json
from pathlib import Path

from safetensors.torch import load_file, save_file

from trillion_convert.quantize.recipe import Recipe, is_quantized, kept_modules, quantization_config
from trillion_convert.quantize.weights import quantize_weight


def quantise_in_place(directory: Path, recipe: Recipe) -> None:
    """What ``trillion-convert quantize`` makes of a published directory of one file, without its checks."""
    tensors = load_file(directory / "model.safetensors")
    stored = {}
    for name, tensor in tensors.items():
        stored |= quantize_weight(name, tensor, recipe) if is_quantized(name, tensor.shape) else {name: tensor}
    save_file(stored, directory / "model.safetensors", {"format": "pt"})
    config = json.loads((directory / "config.json").read_text())
    kept = kept_modules({name: tensor.shape for name, tensor in tensors.items()})
    config["quantization_config"] = quantization_config(recipe, kept)
    (directory / "config.json").write_text(json.dumps(config))
