"""Quantised checkpoints under SGLang: dequantised as they load, they are the model of what their numbers stand for."""

import functools
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from support.quantised import quantise_in_place
from support.sglang_parity import NEW_TOKENS, assert_agrees, compare, random_prompts
from support.sglang_server import SglangServer
from support.tiny_vaetki import published_weights
from support.vaetki_reference import reference_logits
from trillion_convert.checkpoint import open_checkpoint
from trillion_convert.quantize.plain import PlainTensors
from trillion_convert.quantize.recipe import Recipe, Scheme
from trillion_model.errors import CheckpointError
from trillion_serve.plugins.sglang import SglangStartError
from trillion_serve.plugins.sglang.quantized import dequantized, scheme_of

EXPERT = "model.layers.3.mlp.experts.2.down_proj"

Change = Callable[[dict[str, torch.Tensor]], None]


@pytest.fixture(scope="module")
def quantised(checkpoints, tmp_path_factory) -> dict[Scheme, Path]:
    """VAETKI in each scheme."""
    folder = tmp_path_factory.mktemp("quantised")
    for scheme in Scheme:
        shutil.copytree(checkpoints["vaetki"], folder / scheme)
        quantise_in_place(folder / scheme, Recipe(scheme, group_size=32))
    return {scheme: folder / scheme for scheme in Scheme}


def plain(directory: Path) -> dict[str, torch.Tensor]:
    """What its numbers stand for, as ``trillion-convert`` reads them."""
    checkpoint = open_checkpoint(directory)
    return {name: PlainTensors(checkpoint).read(name) for name in checkpoint.architecture.published_shapes()}


def loaded(directory: Path, change: Change = lambda tensors: None) -> dict[str, torch.Tensor]:
    """What its tensors are loaded as, after ``change`` was made to them."""
    tensors = load_file(directory / "model.safetensors")
    change(tensors)
    scheme = scheme_of(open_checkpoint(directory).architecture.config.quantization_config)
    return dict(dequantized(tensors.items(), scheme))


@pytest.mark.parametrize("scheme", list(Scheme))
def test_every_tensor_is_what_its_numbers_stand_for(quantised, scheme):
    expected = plain(quantised[scheme])
    given = loaded(quantised[scheme])
    assert given.keys() == expected.keys()
    assert all(torch.equal(given[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("scheme", "leaf"),
    [(Scheme.FP8_DYNAMIC, "weight_scale"), (Scheme.INT8_W8A8, "weight"), (Scheme.INT4_W4A16, "weight_shape")],
)
def test_a_part_that_is_missing_is_named(quantised, scheme, leaf):
    with pytest.raises(CheckpointError, match=rf"^the checkpoint lacks {EXPERT}\.{leaf}; export it again$"):
        loaded(quantised[scheme], lambda tensors: tensors.pop(f"{EXPERT}.{leaf}"))


def test_parts_that_do_not_go_together_are_named(quantised):
    def change(tensors: dict[str, torch.Tensor]) -> None:
        tensors[f"{EXPERT}.weight_scale"] = torch.ones(3, 1)

    with pytest.raises(CheckpointError, match=f"^{EXPERT}: what is stored of it does not go together"):
        loaded(quantised[Scheme.INT8_W8A8], change)


def test_another_form_is_refused():
    weights = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "tensor"}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    with pytest.raises(SglangStartError, match=r"SGLang cannot serve what quantization_config .* describes"):
        scheme_of({"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": groups})
    with pytest.raises(SglangStartError, match="cannot be read"):
        scheme_of({"quant_method": "gptq", "config_groups": 4})


@pytest.mark.engine
def test_a_server_computes_what_the_numbers_stand_for(quantised, models, tmp_path):
    directory = quantised[Scheme.FP8_DYNAMIC]
    config = models["vaetki"].config
    exact = {name: tensor.double() for name, tensor in plain(directory).items()}
    prompts = random_prompts([5, 40, 90])
    server = SglangServer(directory, tmp_path / "log")
    try:
        server.start()
        answers = server.generate(prompts, NEW_TOKENS)
    finally:
        server.kill()
    assert_agrees(functools.partial(reference_logits, config, exact), prompts, answers)
    unquantised = functools.partial(reference_logits, config, published_weights(models["vaetki"]))
    assert compare(unquantised, prompts, answers)[1].max() > 1e-2
    assert "they are dequantised as they load" in server.log.read_text()
