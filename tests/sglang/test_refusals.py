"""What SGLang is not started with: another version, an attention backend without windows, a broken checkpoint."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from support.sglang_server import SglangServer
from trillion_serve.plugins.sglang import SglangStartError, check_version


def test_another_version_is_refused():
    check_version("0.5.23")
    with pytest.raises(SglangStartError, match=r"works with SGLang 0\.5\.23, but SGLang 0\.5\.22 is installed"):
        check_version("0.5.22")


@pytest.mark.engine
@pytest.mark.parametrize(
    ("family", "flag", "told"),
    [
        ("vaetki", "--attention-backend=fa3", "the prefill attention backend 'fa3'"),
        ("vaetki", "--decode-attention-backend=flashmla", "the decode attention backend 'flashmla'"),
        ("tri70b", "--attention-backend=flex_attention", "the prefill attention backend 'flex_attention'"),
    ],
)
def test_a_backend_that_ignores_windows_is_refused_with_the_flag_to_use(checkpoints, tmp_path, family, flag, told):
    printed = SglangServer(checkpoints[family], tmp_path / "log").refusal(flag, "--port=1")
    assert f"{told} does not keep to the 16-token windows" in printed
    assert printed.rstrip().endswith("start SGLang with --attention-backend triton")


@pytest.mark.engine
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--pp-size=2"], "leave --pp-size out"),
        (["--quantization=fp8"], "leave --quantization out"),
        (["--enable-lora", "--max-lora-rank=8", "--lora-target-modules=o_proj"], "leave --enable-lora"),
    ],
)
def test_what_only_vllm_has_is_refused(checkpoints, tmp_path, flags, told):
    server = SglangServer(checkpoints["gravity"], tmp_path / "log")
    assert told in server.refusal(*flags, "--port=1").splitlines()[-1]


@pytest.mark.engine
def test_a_checkpoint_quantised_in_another_way_is_refused(checkpoints, tmp_path):
    model = shutil.copytree(checkpoints["gravity"], tmp_path / "model")
    config = json.loads((model / "config.json").read_text())
    weights = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    stated = {"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized", "config_groups": groups}
    (model / "config.json").write_text(json.dumps(config | {"quantization_config": stated}))
    told = SglangServer(model, tmp_path / "log").refusal("--port=1").splitlines()[-1]
    assert "SGLang cannot serve what quantization_config in config.json describes" in told


@pytest.mark.engine
def test_a_checkpoint_with_a_tensor_too_many_is_refused_by_name(checkpoints, tmp_path):
    broken = shutil.copytree(checkpoints["vaetki"], tmp_path / "model")
    (file,) = broken.glob("*.safetensors")
    tensors = load_file(file)
    tensors["model.layers.0.mlp.stray.weight"] = tensors["model.norm.weight"].clone()
    save_file(tensors, file, metadata={"format": "pt"})
    printed = SglangServer(broken, tmp_path / "log").refusal("--port=1")
    assert "CheckpointError: model.layers.0.mlp.stray.weight: the architecture has no such tensor" in printed
