"""What MODEL and --engine-arg mean."""

import json
from pathlib import Path

import pytest

from trillion_serve.cli.models import display_name, resolve
from trillion_serve.cli.serve import parse_engine_arg
from trillion_serve.engines.vllm import VllmOptions
from trillion_serve.errors import ModelNotFoundError, ServeError
from trillion_serve.gateway.sampling import SamplingDefaults


def test_a_directory_and_a_hub_id_are_taken_as_they_are(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    assert resolve(str(tmp_path)) == str(tmp_path)
    assert resolve("owner/name-7B") == "owner/name-7B"


def test_a_preset_with_dummy_weights_becomes_a_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRILLION_SERVE_HOME", str(tmp_path))
    directory = resolve("vaetki-7b-a1b", dummy_weights=True)
    config = json.loads((Path(directory) / "config.json").read_text())
    assert Path(directory).is_relative_to(tmp_path)
    assert (config["model_type"], config["hidden_size"]) == ("vaetki", 1536)


@pytest.mark.parametrize("model", ["none", "./none", "a/b/c", "/nowhere/model"])
def test_anything_else_is_an_error_that_lists_the_presets(model: str) -> None:
    with pytest.raises(ModelNotFoundError, match="vaetki-nano"):
        resolve(model)


def test_clients_call_a_directory_by_its_name(tmp_path: Path) -> None:
    assert display_name(str(tmp_path)) == tmp_path.name
    assert display_name("owner/name") == "owner/name"


@pytest.mark.parametrize(
    ("text", "parsed"),
    [
        ("block_size=32", ("block_size", 32)),
        ("block-size=32", ("block_size", 32)),
        ("quantization=fp8", ("quantization", "fp8")),
        ('hf_overrides={"a": [1]}', ("hf_overrides", {"a": [1]})),
        ("x=", ("x", "")),
    ],
)
def test_engine_arguments(text: str, parsed: tuple[str, object]) -> None:
    assert parse_engine_arg(text) == parsed


@pytest.mark.parametrize("text", ["block_size", "=3"])
def test_engine_arguments_need_a_name_and_a_value(text: str) -> None:
    with pytest.raises(ServeError, match="name=value"):
        parse_engine_arg(text)


def test_engine_arguments_win_over_ours() -> None:
    options = VllmOptions("m", kv_cache_memory=0.5, extra={"max_num_batched_tokens": 64, "block_size": 32})
    assert options.engine_args(on_cpu=True) == {
        "model": "m",
        "dtype": "auto",
        "kv_cache_memory_bytes": 2**29,
        "tensor_parallel_size": 1,
        "pipeline_parallel_size": 1,
        "max_num_batched_tokens": 64,
        "load_format": "auto",
        "enforce_eager": True,
        "disable_log_stats": True,
        "structured_outputs_config": {
            "backend": "guidance",
            "disable_any_whitespace": True,
            "enable_in_reasoning": True,
        },
        "block_size": 32,
    }


def test_a_gpu_keeps_its_graphs_and_its_memory() -> None:
    args = VllmOptions("m").engine_args(on_cpu=False)
    assert args["enforce_eager"] is False
    assert "kv_cache_memory_bytes" not in args


@pytest.mark.parametrize(
    ("config", "defaults"),
    [
        (None, SamplingDefaults()),
        ({"temperature": 0.6, "top_k": None, "eos_token_id": 3}, SamplingDefaults(temperature=0.6, end_ids=(3,))),
        ({"do_sample": False, "eos_token_id": [3, 5]}, SamplingDefaults(temperature=0.0, end_ids=(3, 5))),
    ],
)
def test_sampling_defaults_come_from_the_generation_config(
    tmp_path: Path, config: dict | None, defaults: SamplingDefaults
) -> None:
    if config is not None:
        (tmp_path / "generation_config.json").write_text(json.dumps(config))
    assert SamplingDefaults.load(str(tmp_path)) == defaults
