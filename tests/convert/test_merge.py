"""Merge: the numbers of a soup, what it takes over from the first, and what cannot be put into one."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from support.tiny_vaetki import tiny_model
from support.training_checkpoint import write_training_checkpoint
from trillion_convert.errors import ConvertError
from trillion_convert.export import export
from trillion_convert.merge import merge
from trillion_convert.validation import validate
from trillion_model.errors import CheckpointError
from trillion_training.tokenizer import to_huggingface, train_sentencepiece

from .conftest import TEXT, VOCABULARY


@pytest.fixture(scope="module")
def others(tmp_path_factory, tokenizer):
    """Two more checkpoints of the same architecture, with other weights."""
    return [
        write_training_checkpoint(
            tmp_path_factory.mktemp(f"other{seed}"), tiny_model(seed, eos_token_id=tokenizer.eos_token_id), tokenizer
        )
        for seed in (1, 2)
    ]


def weights_of(folder):
    return load_file(folder / "model.safetensors")


@pytest.mark.parametrize(
    ("weights", "shares"), [([0.5, 0.25, 0.25], [0.5, 0.25, 0.25]), ([2, 1, 1], [0.5, 0.25, 0.25]), ([1, -1, 1], None)]
)
def test_a_soup_is_the_weighted_mean(trained, others, tmp_path, weights, shares):
    sources = [trained, *others]
    merge(sources, tmp_path / "soup", weights=weights)
    soup, parts = weights_of(tmp_path / "soup"), [weights_of(folder) for folder in sources]
    for name, tensor in soup.items():
        exact = sum(share * part[name].double() for share, part in zip(shares or weights, parts, strict=True))
        torch.testing.assert_close(tensor.double(), exact, rtol=1e-6, atol=1e-7)
    validate(tmp_path / "soup")


def test_a_soup_of_one_thing_is_that_thing(trained, tmp_path):
    again = shutil.copytree(trained, tmp_path / "again")
    merge([trained, again], tmp_path / "soup", weights=[0.25, 0.75])
    soup = weights_of(tmp_path / "soup")
    assert all(torch.equal(soup[name], tensor) for name, tensor in weights_of(trained).items())


def test_sums_are_made_in_float32_and_rounded_once(trained, others, tmp_path):
    folders = []
    for i, source in enumerate((trained, *others)):
        export(source, tmp_path / f"part{i}", dtype="bfloat16")
        folders.append(tmp_path / f"part{i}")
    merge(folders, tmp_path / "soup")
    parts = [weights_of(folder) for folder in folders]
    for name, tensor in weights_of(tmp_path / "soup").items():
        assert tensor.dtype is torch.bfloat16
        total = torch.zeros_like(tensor, dtype=torch.float32)
        for part in parts:
            total.add_(part[name].float(), alpha=1 / 3)
        assert torch.equal(tensor, total.bfloat16()), name
    merge(folders, tmp_path / "wide", dtype="float32")
    assert {tensor.dtype for tensor in weights_of(tmp_path / "wide").values()} == {torch.float32}


@pytest.mark.parametrize(
    ("weights", "match"),
    [
        ([1.0], r"--weights has 1 number\(s\) for 2 checkpoints; give one for each"),
        ([1.0, -1.0], "--weights are 1.0, -1.0, but their sum must be above 0"),
        ([float("nan"), 1.0], "but their sum must be above 0"),
    ],
)
def test_weights_that_make_no_mean(trained, others, tmp_path, weights, match):
    with pytest.raises(ConvertError, match=match):
        merge([trained, others[0]], tmp_path / "soup", weights=weights)
    assert list(tmp_path.iterdir()) == []


def test_one_checkpoint_is_no_soup(trained, tmp_path):
    with pytest.raises(ConvertError, match="give two checkpoints or more"):
        merge([trained], tmp_path / "soup")


def test_another_form_is_refused(trained, exported, tmp_path):
    with pytest.raises(ConvertError, match=r"is in train form and .* in hf form; convert one of them"):
        merge([trained, exported], tmp_path / "soup")


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"num_hidden_layers": 6}, "layer_types is .*only checkpoints of one architecture can be merged"),
        ({"rope_theta_global": 500_000.0}, r"rope_theta_global is 1000000\.0 in .* and 500000\.0 in"),
    ],
)
def test_another_architecture_is_refused_by_name(trained, tokenizer, tmp_path, change, match):
    (tmp_path / "other").mkdir()
    other = tiny_model(eos_token_id=tokenizer.eos_token_id, **change)
    write_training_checkpoint(tmp_path / "other", other, tokenizer)
    with pytest.raises(ConvertError, match=match):
        merge([trained, tmp_path / "other"], tmp_path / "soup")
    assert not (tmp_path / "soup").exists()


def test_another_family_is_refused_by_its_name(exported, tmp_path, tokenizer):
    LlamaForCausalLM(
        LlamaConfig(vocab_size=VOCABULARY, hidden_size=32, intermediate_size=48, num_hidden_layers=1)
    ).save_pretrained(tmp_path / "llama")
    tokenizer.save_pretrained(tmp_path / "llama")
    with pytest.raises(ConvertError, match=r"model_type is 'vaetki' in .* and 'llama' in .*; only checkpoints of one"):
        merge([exported, tmp_path / "llama"], tmp_path / "soup")


def test_another_vocabulary_is_refused_by_token(trained, model, tmp_path):
    (tmp_path / "other").mkdir()
    tokenizer = to_huggingface(train_sentencepiece(["넷 다섯 여섯 seven eight nine"] * 8 + TEXT[:1], VOCABULARY))
    write_training_checkpoint(tmp_path / "other", model, tokenizer)
    with pytest.raises(ConvertError, match=r"' is token \w+ in .*; only checkpoints of one tokenizer can be merged"):
        merge([trained, tmp_path / "other"], tmp_path / "soup")


def test_a_number_that_overflows_is_refused_by_name(trained, others, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "in")
    weights = weights_of(folder)
    save_file(weights | {"lm_head.weight": weights["lm_head.weight"] + 1e6}, folder / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"lm_head\.weight: holds numbers that are infinite"):
        merge([folder, others[0]], tmp_path / "soup", dtype="float16")
