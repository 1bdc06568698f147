"""Quantising: the numbers of a weight, the files of a directory, what is kept, what it costs, what is refused."""

import json
import math
import shutil
import sys

import pytest
import torch
from compressed_tensors.quantization import QuantizationConfig
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file, save_file

from trillion_convert.checkpoint import open_checkpoint
from trillion_convert.cli import main
from trillion_convert.errors import ConvertError, PromptError, TargetError
from trillion_convert.quantize import directory as quantize_directory
from trillion_convert.quantize.directory import quantize
from trillion_convert.quantize.loss import read_pieces
from trillion_convert.quantize.plain import PlainTensors
from trillion_convert.quantize.recipe import Recipe, Scheme, is_quantized
from trillion_convert.quantize.weights import dequantize_weight, quantize_stored, quantize_weight, relative_error
from trillion_convert.verify.forms import RunForm, Target
from trillion_convert.verify.run import VerifyOptions, verify
from trillion_model import presets
from trillion_model.architecture import Architecture
from trillion_model.errors import CheckpointError

NAME = "model.layers.0.mlp.down_proj.weight"
GROUP = 32
FEW = VerifyOptions(max_tokens=4)
FORMATS = dict(zip(Scheme, ("float-quantized", "int-quantized", "pack-quantized"), strict=True))
RECIPES = [Recipe(scheme, GROUP) for scheme in Scheme]


@pytest.fixture(scope="module")
def quantised(exported, tmp_path_factory):
    """A directory of each scheme, that no test changes."""
    folder = tmp_path_factory.mktemp("quantised")
    for recipe in RECIPES:
        quantize(exported, folder / recipe.scheme, recipe)
    return {recipe.scheme: folder / recipe.scheme for recipe in RECIPES}


def change(folder, edit) -> None:
    weights = load_file(folder / "model.safetensors")
    edit(weights)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def test_int8_is_the_nearest_of_255_parts_of_the_rows_range():
    weight = torch.tensor([[127.5, -20.2, 0.6, 0.0], [0.0, 0.0, 0.0, 0.0]])
    parts = quantize_weight(NAME, weight, Recipe(Scheme.INT8_W8A8))
    assert parts["model.layers.0.mlp.down_proj.weight_scale"][0].item() == 1.0
    assert parts[NAME].tolist() == [[127, -20, 1, 0], [0, 0, 0, 0]]
    restored = dequantize_weight(NAME, parts, Recipe(Scheme.INT8_W8A8))
    assert restored.tolist() == [[127.0, -20.0, 1.0, 0.0], [0.0] * 4]


def test_int4_lies_eight_in_a_word_the_first_lowest():
    weight = torch.tensor([[7.5, -7.5, 0.0, 1.0, 2.0, 3.0, 4.0, 5.0]])
    parts = quantize_weight(NAME, weight, Recipe(Scheme.INT4_W4A16, group_size=8))
    (word,) = parts["model.layers.0.mlp.down_proj.weight_packed"].flatten().tolist()
    assert [((word >> 4 * place) & 15) - 8 for place in range(8)] == [7, -8, 0, 1, 2, 3, 4, 5]
    assert parts["model.layers.0.mlp.down_proj.weight_scale"].tolist() == [[1.0]]
    assert parts["model.layers.0.mlp.down_proj.weight_shape"].tolist() == [1, 8]


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10_000), spread=st.floats(1e-6, 1e3), dtype=st.sampled_from(["float32", "bfloat16"]))
@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.scheme for recipe in RECIPES])
def test_no_number_moves_by_more_than_half_a_step(recipe, seed, spread, dtype):
    weight = torch.randn(6, 64, generator=torch.Generator().manual_seed(seed)).mul(spread).to(getattr(torch, dtype))
    parts = quantize_weight(NAME, weight, recipe)
    moved = (dequantize_weight(NAME, parts, recipe) - weight.float()).abs()
    scale = (
        parts[recipe.stored_names(NAME)[1]]
        .float()
        .repeat_interleave(GROUP if recipe.grouped else weight.shape[1], dim=1)
    )
    if recipe.scheme is Scheme.FP8_DYNAMIC:
        # Three bits behind the point; below 2^-6 the steps are 2^-9.
        half = torch.maximum(weight.float().abs() / 16, scale * 2**-10)
    else:
        half = scale / 2
    # The greatest number of a row may lie half a step beyond the last; a scale in bfloat16 is off by up to 2^-9.
    assert (moved <= half * 1.001 + weight.float().abs() * (2**-8 if recipe.grouped else 0) + 1e-9).all()


@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.scheme for recipe in RECIPES])
def test_what_is_stored_is_what_was_announced(recipe, exported):
    tensors = open_checkpoint(exported).tensors
    parts = quantize_weight(NAME, tensors.read(NAME), recipe)
    stored = recipe.stored(NAME, tensors[NAME])
    assert {name: (tuple(part.shape), str(part.dtype)) for name, part in parts.items()} == {
        name: (info.shape, f"torch.{info.dtype}") for name, info in stored.items()
    }


@pytest.mark.parametrize("block", [1, 3 * 96, 2**22], ids=["a row at a time", "three rows", "whole"])
@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.scheme for recipe in RECIPES])
def test_blocks_of_rows_make_what_the_whole_weight_makes(recipe, exported, block):
    tensors = open_checkpoint(exported).tensors
    weight = tensors.read(NAME)  # (64, 96)
    parts, error = quantize_stored(tensors, NAME, recipe, block)
    whole = quantize_weight(NAME, weight, recipe)
    assert parts.keys() == whole.keys()
    assert all(torch.equal(parts[name].view(torch.uint8), part.view(torch.uint8)) for name, part in whole.items())
    assert error == pytest.approx(relative_error(weight, dequantize_weight(NAME, whole, recipe)), rel=1e-4)


def test_router_norms_embeddings_head_and_what_attention_absorbs_are_kept(model):
    kept = {
        name.replace("layers.1.", "layers.N.")
        for name, shape in Architecture.of(model.config).published_shapes().items()
        if not is_quantized(name, shape) and (".layers." not in name or ".layers.1." in name)
    }
    norms = ("input_layernorm", "post_attention_layernorm", "pre_mlp_layernorm", "post_mlp_layernorm")
    modules = (*norms, "self_attn.q_a_layernorm", "self_attn.kv_a_layernorm", "self_attn.kv_b_proj", "mlp.gate")
    assert kept == {
        "model.embed_tokens.weight",
        "model.norm.weight",
        "lm_head.weight",
        *(f"model.layers.N.{module}.weight" for module in modules),
    }


@pytest.mark.parametrize("scheme", Scheme)
def test_a_directory_is_whole_and_says_how_it_is_quantised(quantised, exported, scheme):
    directory = quantised[scheme]
    assert {path.name for path in directory.iterdir()} >= {path.name for path in exported.iterdir()}
    config = json.loads((directory / "config.json").read_text())
    stated = QuantizationConfig.model_validate(config["quantization_config"])
    assert stated.format == FORMATS[scheme]
    assert "model.layers.3.mlp.gate" in stated.ignore and "model.layers.3.self_attn.kv_b_proj" in stated.ignore
    assert not any(name in stated.ignore for name in ("model.layers.3.self_attn.q_b_proj", "model.norm"))
    checkpoint = open_checkpoint(directory)
    assert checkpoint.recipe == Recipe(scheme, GROUP if scheme is Scheme.INT4_W4A16 else 128)
    plain, original = PlainTensors(checkpoint), open_checkpoint(exported)
    errors = {name: relative_error(original.tensors.read(name), plain.read(name)) for name in original.tensors}
    bound = {Scheme.FP8_DYNAMIC: 0.03, Scheme.INT8_W8A8: 0.01, Scheme.INT4_W4A16: 0.12}[scheme]
    for name, shape in original.architecture.published_shapes().items():
        assert 0 < errors[name] < bound if is_quantized(name, shape) else errors[name] == 0


def test_the_loss_is_the_models_own(exported, tmp_path):
    text = tmp_path / "text.txt"
    text.write_text("삼백사십칠은 347입니다.\n\n" + "58 < 85 " * 200, encoding="utf-8")
    report = quantize(exported, tmp_path / "out", Recipe(Scheme.INT4_W4A16, GROUP), text=text)
    checkpoint = open_checkpoint(tmp_path / "out")
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(exported)
    pieces = read_pieces(text, tokenizer, checkpoint.architecture.config.max_position_embeddings)
    assert len(pieces) > 2 and max(map(len, pieces)) == 1024
    model = AutoModelForCausalLM.from_pretrained(exported)
    plain = PlainTensors(checkpoint)
    for loss, load in ((report.before, False), (report.after, True)):
        if load:
            architecture = checkpoint.architecture
            model.load_state_dict(
                {n: architecture.layout.to_module(n, s, plain.read) for n, s in architecture.module_shapes.items()}
            )
        with torch.no_grad():
            total = sum(
                model(input_ids=torch.tensor([ids]), labels=torch.tensor([ids])).loss.item() * (len(ids) - 1)
                for ids in pieces
            )
        assert loss.tokens == sum(map(len, pieces)) - len(pieces)
        assert loss.total == pytest.approx(total, rel=1e-5)
        assert loss.perplexity == pytest.approx(math.exp(total / loss.tokens), rel=1e-4)
    assert report.before != report.after


def test_a_target_in_use_is_refused_before_a_loss_is_measured(exported, tmp_path, monkeypatch):
    (tmp_path / "text.txt").write_text("347 < 358")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    monkeypatch.setattr(quantize_directory, "_loss", lambda *arguments: pytest.fail("the model was loaded"))
    with pytest.raises(TargetError, match="is not empty"):
        quantize(exported, tmp_path / "out", Recipe(Scheme.INT8_W8A8), text=tmp_path / "text.txt")


def test_a_quantised_directory_is_near_its_original_and_a_wrong_scale_is_not(quantised, exported, tmp_path):
    near = verify(Target(RunForm.HF, exported), Target(RunForm.HF, quantised[Scheme.INT8_W8A8]), FEW)
    assert near.agree and near.tolerance == 1.0 and near.max_logprob_difference > 0
    broken = shutil.copytree(quantised[Scheme.INT8_W8A8], tmp_path / "broken")
    change(broken, lambda weights: weights["model.layers.0.mlp.down_proj.weight_scale"].mul_(-1))
    far = verify(Target(RunForm.HF, exported), Target(RunForm.HF, broken), FEW)
    assert not far.agree


@pytest.mark.parametrize(
    ("group", "match"),
    [
        (128, r"q_a_proj\.weight: 64 columns are no multiple of --group-size 128; --group-size 32 divides every row"),
        (12, r"--group-size is 12, but must be a multiple of 8"),
        (4, r"--group-size is 4, but must be a multiple of 8"),
    ],
)
def test_a_group_that_does_not_fit_is_refused(exported, tmp_path, group, match):
    with pytest.raises(ConvertError, match=match):
        quantize(exported, tmp_path / "out", Recipe(Scheme.INT4_W4A16, group))
    assert list(tmp_path.iterdir()) == []


def test_the_published_7b_shape_takes_groups_of_64():
    shapes = Architecture.of(presets.get("vaetki-7b-a1b")).published_shapes()
    with pytest.raises(ConvertError, match="960 columns are no multiple of --group-size 128; --group-size 64 divides"):
        Recipe(Scheme.INT4_W4A16).check(shapes)
    Recipe(Scheme.INT4_W4A16, 64).check(shapes)


def test_other_sources_are_refused(trained, quantised, tmp_path):
    with pytest.raises(ConvertError, match="has the form train; write it as a published directory first"):
        quantize(trained, tmp_path / "out", Recipe(Scheme.INT8_W8A8))
    with pytest.raises(ConvertError, match="is quantised already, as fp8-dynamic"):
        quantize(quantised[Scheme.FP8_DYNAMIC], tmp_path / "out", Recipe(Scheme.INT8_W8A8))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [math.nan, math.inf])
@pytest.mark.parametrize("recipe", RECIPES, ids=[recipe.scheme for recipe in RECIPES])
def test_a_number_that_is_none_is_refused_by_name(exported, tmp_path, recipe, number):
    source = shutil.copytree(exported, tmp_path / "in")
    change(source, lambda weights: weights[NAME][3].fill_(number))
    with pytest.raises(CheckpointError, match=r"model\.layers\.0\.mlp\.down_proj\.weight"):
        quantize(source, tmp_path / "out", recipe)
    assert [path.name for path in tmp_path.iterdir()] == ["in"]


def test_a_missing_scale_and_a_foreign_configuration_are_refused(quantised, tmp_path):
    broken = shutil.copytree(quantised[Scheme.FP8_DYNAMIC], tmp_path / "broken")
    change(broken, lambda weights: weights.pop("model.layers.3.self_attn.o_proj.weight_scale"))
    with pytest.raises(CheckpointError, match=r"lacks model\.layers\.3\.self_attn\.o_proj\.weight_scale"):
        open_checkpoint(broken)
    path = broken / "config.json"
    config = json.loads(path.read_text())
    config["quantization_config"]["config_groups"]["group_0"]["weights"]["strategy"] = "tensor"
    path.write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="none that trillion-convert writes"):
        open_checkpoint(broken)


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("t.jsonl", '{"text": "a b"}\n{', r"t\.jsonl:2: not JSON"),
        ("t.jsonl", '{"prompt": "a"}', r't\.jsonl:1: expected an object with "text"'),
        ("t.txt", "\n \n", "holds no line of two tokens or more"),
    ],
)
def test_texts_that_cannot_be_used(tokenizer, tmp_path, name, content, match):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(PromptError, match=match):
        read_pieces(tmp_path / name, tokenizer, 1024)
    with pytest.raises(PromptError, match="cannot be read"):
        read_pieces(tmp_path / "none.txt", tokenizer, 1024)


def run_cli(monkeypatch, *arguments) -> None:
    monkeypatch.setattr(sys, "argv", ["trillion-convert", "quantize", *map(str, arguments)])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0


def test_the_command_says_what_it_did_and_what_it_costs(monkeypatch, capsys, exported, tmp_path):
    run_cli(monkeypatch, exported, tmp_path / "out", "--scheme", "fp8-dynamic")
    out = capsys.readouterr().out.splitlines()
    assert out[0] == (
        f"{tmp_path / 'out'}: 121 weights quantised as fp8-dynamic, 58 tensors kept; 1,675,136 bytes of weights in "
        "1 file(s), 0.52 of the source's"
    )
    assert out[1].startswith("relative error of the weights: 0.02") and "at most 0.02" in out[1]
    assert out[2].startswith("loss: not measured, which takes a text (--text FILE)")
    text = tmp_path / "text.jsonl"
    text.write_text('{"text": "347 < 358"}\n', encoding="utf-8")
    run_cli(monkeypatch, exported, tmp_path / "out", "--scheme", "fp8-dynamic", "--text", text, "--force")
    assert " nats a token before, " in capsys.readouterr().out.splitlines()[2]
