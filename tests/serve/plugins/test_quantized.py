"""Quantised models in a real vLLM engine, against the plain reference on the numbers that the directory stands for.

8-bit schemes quantise activations as well, which the reference does not: their distance from it is that. INT4 leaves
activations alone, so only float16 rounding is left. Experts are dequantised as they load, see quantized_experts.py.
"""

import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoTokenizer

import trillion_model
from support import tiny_gravity, tiny_tri70b, tiny_trillion, vllm_engines
from support.engine_parity import Reference, compare, random_prompts
from support.quantised import quantise_in_place
from support.tiny_vaetki import tiny_model
from support.vaetki_reference import reference_logits
from support.vllm_engines import Answer, Options
from trillion_convert.checkpoint import open_checkpoint
from trillion_convert.quantize.directory import quantize
from trillion_convert.quantize.plain import PlainTensors
from trillion_convert.quantize.recipe import Recipe, Scheme
from trillion_convert.verify.torch_runner import TorchRunner

pytestmark = pytest.mark.engine

DTYPES = {Scheme.FP8_DYNAMIC: "float32", Scheme.INT8_W8A8: "float32", Scheme.INT4_W4A16: "float16"}
BOUNDS = {Scheme.FP8_DYNAMIC: (0.2, 0.5), Scheme.INT8_W8A8: (0.1, 0.25), Scheme.INT4_W4A16: (0.03, 0.1)}
"""Mean distance of log-probabilities from the reference's, and share of greedy tokens that differ from its choice.

Wide because the weights are random: the best two tokens are often near each other, and so are two experts.
"""
LENGTHS = (5, 17, 33, 90)
NEW_TOKENS = 16


@pytest.fixture(scope="module")
def source(tokenizer_dir, tmp_path_factory) -> Path:
    """A published directory with a dense layer and layers of experts."""
    trillion_model.register()
    directory = tmp_path_factory.mktemp("plain") / "model"
    shutil.copytree(tokenizer_dir, directory)
    tokenizer = AutoTokenizer.from_pretrained(directory)
    tokens = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    tiny_model(vocab_size=512, **tokens).save_pretrained(directory)
    return directory


@pytest.fixture(scope="module")
def quantised(source, tmp_path_factory) -> dict[Scheme, Path]:
    folder = tmp_path_factory.mktemp("quantised")
    for scheme in Scheme:
        quantize(source, folder / scheme, Recipe(scheme, group_size=32))
    return {scheme: folder / scheme for scheme in Scheme}


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return random_prompts(list(LENGTHS), tokens=range(3, 420))


@pytest.fixture(scope="module", params=list(Scheme))
def case(request, engines, quantised, prompts) -> tuple[Scheme, Path, list[Answer]]:
    directory = quantised[request.param]
    options = Options(str(directory), dtype=DTYPES[request.param])
    return request.param, directory, engines.submit(vllm_engines.run, options, prompts, NEW_TOKENS).result()


def plain_weights(directory: Path) -> dict[str, torch.Tensor]:
    checkpoint = open_checkpoint(directory)
    read = PlainTensors(checkpoint).read
    return {name: read(name).double() for name in checkpoint.architecture.published_shapes()}


def reference(directory: Path, weights: dict[str, torch.Tensor]) -> Reference:
    return partial(reference_logits, open_checkpoint(directory).architecture.config, weights)


def test_an_engine_computes_what_the_numbers_stand_for(case, prompts):
    scheme, directory, answers = case
    mismatches, found = compare(reference(directory, plain_weights(directory)), prompts, answers)
    distance, share = BOUNDS[scheme]
    assert 0 < found.mean() < distance
    assert mismatches <= share * NEW_TOKENS * len(prompts)


def pair(name: str, *parts: object) -> tuple[str, ...]:
    return tuple(name.format(part) for part in parts)


SWAPS = {
    "gate and up of the dense layer": [pair("model.layers.0.mlp.{}_proj.weight", "gate", "up")],
    "gate and up of every expert": [
        pair(f"model.layers.{layer}.mlp.experts.{expert}.{{}}_proj.weight", "gate", "up")
        for layer in range(1, 7)
        for expert in range(4)
    ],
    "two experts": [pair("model.layers.3.mlp.experts.{}.down_proj.weight", 0, 1)],
}


@pytest.mark.parametrize("swapped", SWAPS)
def test_a_reference_with_weights_swapped_disagrees(case, prompts, swapped):
    scheme, directory, answers = case
    weights = plain_weights(directory)
    for first, second in SWAPS[swapped]:
        weights[first], weights[second] = weights[second], weights[first]
    _, found = compare(reference(directory, weights), prompts, answers)
    assert found.mean() > BOUNDS[scheme][0]


@pytest.mark.parametrize(
    ("scheme", "name"),
    [
        (Scheme.INT8_W8A8, "model.layers.0.self_attn.o_proj.weight_scale"),
        (Scheme.FP8_DYNAMIC, "model.layers.0.mlp.up_proj.weight_scale"),
        (Scheme.INT4_W4A16, "model.layers.3.mlp.experts.2.down_proj.weight_scale"),
    ],
)
def test_a_scale_that_is_missing_is_named(quantised, engines, tmp_path, scheme, name):
    broken = shutil.copytree(quantised[scheme], tmp_path / "broken")
    tensors = load_file(broken / "model.safetensors")
    del tensors[name]
    save_file(tensors, broken / "model.safetensors", {"format": "pt"})
    options = Options(str(broken), dtype="bfloat16")
    assert engines.submit(vllm_engines.failure, options).result() == (
        "CheckpointError",
        f"the checkpoint lacks {name}; export it again",
    )


def test_int4_in_float32_is_refused_with_the_flag_that_helps(quantised, engines):
    options = Options(str(quantised[Scheme.INT4_W4A16]), dtype="float32")
    kind, message = engines.submit(vllm_engines.failure, options).result()
    assert kind == "EngineStartError"
    assert message.endswith("on a CPU vLLM multiplies INT4 weights in bfloat16 or float16 only; use --dtype bfloat16")


FAMILIES = {
    "trillion": lambda: tiny_trillion.tiny_model(num_nextn_predict_layers=0),
    "tri70b": tiny_tri70b.tiny_model,
    "gravity": tiny_gravity.tiny_model,
}
"""Models whose layers hold several published tensors together in other ways: queries with keys, vLLM's own experts."""


@pytest.mark.parametrize("family", FAMILIES)
def test_other_families_compute_what_int4_stands_for(family, engines, tmp_path, prompts):
    trillion_model.register()
    prompts = [[token % 320 for token in prompt] for prompt in prompts]
    directory, recipe = tmp_path / family, Recipe(Scheme.INT4_W4A16, group_size=32)
    FAMILIES[family]().save_pretrained(directory)
    original = TorchRunner(open_checkpoint(directory), "float32").score(prompts)
    quantise_in_place(directory, recipe)
    expected = TorchRunner(open_checkpoint(directory), "float32").score(prompts)
    # vLLM's own attention on a CPU has blocks of 32.
    options = Options(str(directory), dtype="float16", block_size=32 if family == "trillion" else 16)
    given = [answer.prompt_logprobs for answer in engines.submit(vllm_engines.run, options, prompts, 1).result()]
    assert mean_distance(given, expected) < 0.01
    assert mean_distance(given, original) > 0.1


def mean_distance(first: list[list[float]], second: list[list[float]]) -> float:
    differences = [
        abs(a - b) for one, other in zip(first, second, strict=True) for a, b in zip(one, other, strict=True)
    ]
    return sum(differences) / len(differences)
