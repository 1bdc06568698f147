"""A checkpoint that is not exactly right does not load into vLLM, and the error names the tensor."""

import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

pytestmark = pytest.mark.engine

EXPERT = "model.layers.3.mlp.experts.2.down_proj.weight"


@pytest.fixture
def broken(checkpoint, tmp_path):
    """Write the checkpoint anew with ``change`` made to its tensors, which are a dictionary."""

    def write(change):
        shutil.copy(checkpoint / "config.json", tmp_path)
        tensors = load_file(checkpoint / "model.safetensors")
        change(tensors)
        save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
        return tmp_path

    return write


def test_an_unknown_tensor(broken, start_fails):
    directory = broken(lambda tensors: tensors.update({"model.layers.0.self_attn.bias": torch.zeros(3)}))
    assert start_fails(directory) == (
        "CheckpointError",
        "model.layers.0.self_attn.bias: the architecture has no such tensor; remove it from the checkpoint",
    )


def test_an_expert_too_many(broken, start_fails):
    name = EXPERT.replace("experts.2", "experts.4")
    directory = broken(lambda tensors: tensors.update({name: torch.zeros(64, 32)}))
    assert start_fails(directory) == (
        "CheckpointError",
        f"{name}: the architecture has no such tensor; remove it from the checkpoint",
    )


@pytest.mark.parametrize(
    "name",
    ["model.norm.weight", "model.layers.0.mlp.up_proj.weight", "model.layers.7.mlp.gate.weight", EXPERT],
)
def test_a_missing_tensor(broken, start_fails, name):
    directory = broken(lambda tensors: tensors.pop(name))
    assert start_fails(directory) == ("CheckpointError", f"the checkpoint lacks {name}; export it again")


def test_many_missing_tensors_are_counted(broken, start_fails):
    def change(tensors):
        for name in [name for name in tensors if ".experts.1." in name]:
            del tensors[name]

    kind, message = start_fails(broken(change))
    assert kind == "CheckpointError"
    assert message.endswith("and 28 more; export it again")


@pytest.mark.parametrize(
    ("name", "shape", "expected"),
    [
        ("model.layers.0.self_attn.q_b_proj.weight", (192, 32), (160, 32)),
        ("model.embed_tokens.weight", (321, 64), (320, 64)),
        (EXPERT, (64, 64), (64, 32)),
    ],
)
def test_a_tensor_of_another_shape(broken, start_fails, name, shape, expected):
    directory = broken(lambda tensors: tensors.update({name: torch.zeros(shape)}))
    assert start_fails(directory) == (
        "CheckpointError",
        f"{name}: shape is {shape}, but the configuration gives {expected}",
    )


def test_a_tensor_that_is_there_twice(broken, start_fails):
    directory = broken(lambda tensors: None)
    save_file({"model.norm.weight": torch.zeros(64)}, directory / "more.safetensors", {"format": "pt"})
    assert start_fails(directory) == (
        "CheckpointError",
        "model.norm.weight: the checkpoint holds it twice; remove one of them",
    )
