"""``trillion-serve plan``: exact figures, and what it refuses."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import save_file
from transformers import LlamaConfig
from typer.testing import CliRunner

from support.tiny_vaetki import tiny_config
from trillion_model import presets
from trillion_model.architecture import Architecture
from trillion_model.errors import OutputError, TrillionError
from trillion_model.sizes import expanded_kv_cache, kv_cache
from trillion_serve.cli.main import app
from trillion_serve.errors import ModelNotFoundError, PlanError
from trillion_serve.plan.capacity import capacity, recommended_batched_tokens
from trillion_serve.plan.memory import GIB, Devices, parse_bytes


def plan(tmp_path: Path, *arguments: str) -> dict[str, Any]:
    """The figures that the command writes."""
    file = tmp_path / "plan.json"
    done = CliRunner().invoke(app, ["plan", *arguments, "--json", str(file)])
    if isinstance(done.exception, TrillionError):
        raise done.exception
    assert done.exit_code == 0, done.output
    return json.loads(file.read_text()) | {"output": done.output}


def lines(planned: dict[str, Any]) -> dict[str, str | None]:
    """The engines' commands."""
    return {engine: command["line"] for engine, command in planned["commands"].items()}


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    arguments = ["vaetki-100b-a10b", "--context", "32768", "--memory", "4x80GiB", "--tp", "4"]
    return plan(tmp_path_factory.mktemp("plan"), *arguments)


def test_weights_of_the_100b_model_on_four_devices(large):
    """By hand: what is sharded, what every device holds alike, and the router in float32."""
    parts = {part["part"]: (part["whole"], part["device"], part["repeated"]) for part in large["weights"]}
    queries, latents = 48 * 3072 * 1536, 48 * 3072 * 576
    heads = 48 * (1536 * 24 * 192 + 512 * 24 * 256 + 24 * 128 * 3072)
    norms = 2 * (48 * (4 * 3072 + 1536 + 512) + 3072)
    router = 4 * 45 * 128 * 3072
    experts = 2 * 45 * 128 * 3 * 2048 * 3072
    assert parts == {
        "embeddings": (843_055_104, 210_763_776, 0),
        "attention": (
            2 * (queries + latents + heads),
            2 * (queries + latents) + heads // 2,
            2 * (queries + latents),
        ),
        "norms": (norms, norms, norms),
        "dense feed-forward": (1_019_215_872, 254_803_968, 0),
        "router": (router, router, router),
        "routed experts": (experts, experts // 4, 0),
        "shared experts": (1_698_693_120, 424_673_280, 0),
        "head": (843_055_104, 210_763_776, 0),
    }
    assert large["weight_bytes"] == 56_626_059_264


def test_requests_of_the_100b_model_on_four_devices(large):
    """Latents are on every device; the expanded cache is spread over them."""
    assert large["kv_memory"] == int(80 * GIB * 0.92) - 2 * GIB - 56_626_059_264 == 20_253_855_334
    ours, without, expanded = large["caches"]
    assert [cache["name"] for cache in large["caches"]] == ["ours", "without windows", "expanded"]
    assert (ours["token_bytes"], ours["global_token_bytes"]) == (48 * 1152, 8 * 1152)
    assert (expanded["token_bytes"], expanded["global_token_bytes"]) == (48 * 18_432 // 4, 8 * 18_432 // 4)
    assert ours["request_bytes"] == 1152 * (8 * 32_768 + 40 * 512)
    assert without["request_bytes"] == 1152 * 48 * 32_768
    # Five local groups keep 511 + 2 x 2048 tokens in blocks of 64, and one block for the window's edge.
    assert ours["capacity"]["blocks_per_request"] == expanded["capacity"]["blocks_per_request"] == 512 + 5 * (72 + 1)
    assert without["capacity"]["blocks_per_request"] == 512
    assert [cache["capacity"]["requests"] for cache in large["caches"]] == [39, 11, 9]
    assert [cache["capacity"]["tokens"] for cache in large["caches"]] == [1_282_996, 366_272, 320_730]


def test_the_commands_say_what_was_planned(large):
    assert lines(large) == {
        "vllm": "vllm serve /path/to/vaetki-100b-a10b --tensor-parallel-size 4 --max-model-len 32768 "
        "--max-num-batched-tokens 2048 --block-size 64 --gpu-memory-utilization 0.92 --dtype bfloat16 "
        """--structured-outputs-config '{"backend": "guidance", "disable_any_whitespace": true, """
        """"enable_in_reasoning": true}' --enable-prompt-tokens-details""",
        "sglang": "python -m sglang.launch_server "
        "--model-path /path/to/vaetki-100b-a10b --tp-size 4 --context-length 32768 --chunked-prefill-size 2048 "
        "--mem-fraction-static 0.89 --dtype bfloat16 --attention-backend triton "
        "--grammar-backend llguidance --constrained-json-disable-any-whitespace",
    }


def test_the_tables_hold_the_figures(large):
    for text in ("routed experts", "202.50", "50.62", "leaves 18.86 GiB", "1,282,996", lines(large)["vllm"]):
        assert text in large["output"]


def test_nothing_is_cut_where_lines_are_short(tmp_path, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    for name in presets.names():
        planned = plan(tmp_path, name, "--memory", "8x160GiB", "--tp", "2", "--kv-dtype", "fp8")
        for cache in planned["caches"]:
            for count in (cache["token_bytes"], cache["global_token_bytes"], cache["capacity"]["tokens"]):
                assert f"{count:,}│" in planned["output"]
        tables = [line for line in planned["output"].splitlines() if line.startswith(("│", "┃", "┏"))]
        assert max(map(len, tables)) <= 80 and "…" not in planned["output"]


def test_tensor_parallelism_that_was_never_run_under_sglang_is_said_to_be_so(large, tmp_path):
    assert large["commands"]["sglang"]["note"].startswith("not tried: ")
    assert "SGLang: not tried: " in large["output"]
    alone = plan(tmp_path, "vaetki-7b-a1b", "--memory", "80GiB")
    assert alone["commands"]["sglang"]["note"] == "" and "not tried" not in alone["output"]


def test_the_7b_model_takes_fourteen_and_a_half_gigabytes_in_bfloat16(tmp_path):
    planned = plan(tmp_path, "vaetki-7b-a1b", "--memory", "24GB", "--dtype", "bfloat16")
    assert planned["settings"]["context"] == 16_384
    assert planned["weight_bytes"] == 2 * 7_250_296_320 + 2 * 23 * 64 * 1536  # the router in float32
    assert round(planned["weight_bytes"] / 1e9, 1) == 14.5


@pytest.mark.parametrize(
    ("name", "memory", "tokens"),
    [("vaetki-7b-a1b", 2 * GIB, [330_403, 77_568, 41_300]), ("vaetki-100b-a10b", 7 * GIB, [578_296, 135_808, 36_126])],
)
def test_what_engines_reported_to_benchmarks_kv_cache(name, memory, tokens):
    """On a CPU: blocks of 128, one step of 2,048 tokens under way (docs/benchmarks.md)."""
    cache = kv_cache(presets.get(name))
    fits = [
        capacity(form, dtype="bfloat16", memory=memory, context=32_768, tokens_in_flight=2048, block_size=128)
        for form in (cache, cache.without_windows(), expanded_kv_cache(presets.get(name)))
    ]
    assert [fit.tokens for fit in fits] == tokens


@pytest.mark.parametrize("name", presets.names())
def test_every_preset_can_be_planned(name, tmp_path):
    planned = plan(tmp_path, name, "--memory", "8x160GiB", "--tp", "2")
    ours, without, expanded = (cache["capacity"]["tokens"] for cache in planned["caches"])
    assert ours >= without
    assert (ours > expanded) == (planned["latents"] and name != "vaetki-nano")  # whose two heads are smaller
    assert planned["replicas"] == 4


def test_an_eight_bit_cache_holds_twice_the_tokens(tmp_path):
    arguments = ["vaetki-7b-a1b", "--memory", "80GiB"]
    half, eighth = (plan(tmp_path, *arguments, "--kv-dtype", dtype) for dtype in ("auto", "fp8"))
    assert eighth["caches"][0]["capacity"]["blocks"] // 2 == half["caches"][0]["capacity"]["blocks"]
    assert " --kv-cache-dtype fp8 " in lines(eighth)["vllm"]
    assert " --kv-cache-dtype fp8_e4m3 " in lines(eighth)["sglang"]
    assert "--kv-cache-dtype" not in lines(half)["vllm"]


def test_tokens_of_a_step_decide_how_much_windows_save(tmp_path):
    arguments = ["vaetki-100b-a10b", "--memory", "8x80GiB", "--tp", "8"]
    frugal, wasteful = (plan(tmp_path, *arguments, "--max-num-batched-tokens", n) for n in ("256", "32768"))
    assert frugal["caches"][0]["capacity"]["tokens"] > 3 * wasteful["caches"][0]["capacity"]["tokens"]
    assert [recommended_batched_tokens(context) for context in (1024, 4096, 32_768)] == [256, 512, 2048]


def test_one_step_at_a_time_reserves_less(tmp_path):
    arguments = ["vaetki-7b-a1b", "--memory", "24GiB"]
    two, one = plan(tmp_path, *arguments), plan(tmp_path, *arguments, "--no-async-scheduling")
    assert one["caches"][0]["capacity"]["blocks_per_request"] == 256 + 5 * (40 + 1)
    assert two["caches"][0]["capacity"]["blocks_per_request"] == 256 + 5 * (72 + 1)
    assert " --no-async-scheduling " in lines(one)["vllm"] and "async" not in lines(two)["vllm"]


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A tiny model's configuration, without weights."""
    folder = tmp_path / "tiny"
    tiny_config().save_pretrained(folder)
    return folder


def test_a_directory_is_counted_from_its_configuration(directory, tmp_path):
    planned = plan(tmp_path, str(directory), "--memory", "4GiB", "--dtype", "float32")
    count = sum(np.prod(shape) for shape in Architecture.of(tiny_config()).published_shapes().values())
    assert planned["weight_bytes"] == 4 * count
    assert lines(planned)["vllm"].startswith(f"vllm serve {directory} ")
    # The cache is float32 as the weights are, which is no value of --kv-cache-dtype.
    assert planned["settings"]["kv_dtype"] == "float32"
    assert "--kv-cache-dtype" not in str(lines(planned))


def quantise(directory: Path) -> int:
    """Make the directory a checkpoint of 8-bit weights with a scale a row; returns its bytes."""
    tensors: dict[str, np.ndarray] = {}
    for name, shape in Architecture.of(tiny_config()).published_shapes().items():
        kept = len(shape) < 2 or ".mlp.gate." in name or "embed" in name or "lm_head" in name
        tensors[name] = np.zeros(shape, np.float16 if kept else np.int8)
        if not kept:
            tensors[name.replace(".weight", ".weight_scale")] = np.zeros((shape[0], 1), np.float16)
    save_file(tensors, directory / "model.safetensors")
    return sum(tensor.nbytes for tensor in tensors.values())


def test_a_quantised_checkpoint_is_counted_as_stored(directory, tmp_path):
    config = json.loads((directory / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "compressed-tensors", "format": "int-quantized"}
    (directory / "config.json").write_text(json.dumps(config))
    with pytest.raises(PlanError, match="quantised, but has no safetensors files"):
        plan(tmp_path, str(directory), "--memory", "4GiB")
    stored = quantise(directory)
    planned = plan(tmp_path, str(directory), "--memory", "4GiB")
    assert planned["weight_bytes"] == stored
    assert planned["quantization"] == "compressed-tensors"
    assert lines(planned)["vllm"].startswith(f"vllm serve {directory} ")
    assert lines(planned)["sglang"] is None
    assert "SGLang: no command: it dequantises this checkpoint as it loads" in planned["output"]
    assert {part["part"] for part in planned["weights"]} == {
        "norms", "embeddings", "attention", "router", "routed experts", "shared experts", "dense feed-forward", "head"
    }  # fmt: skip


def test_plain_llama_is_planned_for_too(tmp_path):
    LlamaConfig(
        vocab_size=128, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    ).save_pretrained(tmp_path / "llama")  # fmt: skip
    planned = plan(tmp_path, str(tmp_path / "llama"), "--memory", "4GiB", "--dtype", "float16")
    assert planned["cache"] == {"numbers": 2 * 2 * 16, "local_layers": 0, "global_layers": 2, "window": None}
    assert planned["weight_bytes"] == 2 * (2 * 128 * 64 + 2 * (64 * 64 * 2 + 64 * 32 * 2 + 3 * 64 * 96 + 2 * 64) + 64)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("vaetki-100b-a10b --memory 80GiB", r"does not fit: its weights take 209\.01 GiB of each device"),
        ("vaetki-7b-a1b --memory 24GiB --context 16385", r"16385 is beyond max_position_embeddings of .*, 16384"),
        ("vaetki-7b-a1b --memory 8x24GiB --tp 8", r"--tp 8 does not divide num_attention_heads of .*, 12"),
        ("tri-70b --memory 7x80GiB", r"--tp 7 does not divide num_attention_heads of tri-70b, 64"),
        ("vaetki-7b-a1b --memory 24GiB --tp 2", r"--tp 2 does not divide the number of devices, 1"),
        ("vaetki-7b-a1b --memory 16.9GiB --reserve 2GiB", r"a request of 16,384 tokens does not fit: it takes 0\.17"),
        ("vaetki-7b-a1b --memory 24GiB --dtype int8", r"--dtype is 'int8', but must be auto or one of float32,"),
        ("vaetki-7b-a1b --memory 24GiB --kv-dtype int8", r"--kv-dtype is 'int8', but must be auto, fp8 or bfloat16"),
        ("vaetki-7b-a1b --memory 24GiB --kv-dtype float32", r"--kv-dtype is 'float32', but must be auto, fp8 or bfl"),
        ("vaetki-7b-a1b --memory 24GiB --block-size 7", r"--block-size is 7, but .* blocks of 16, 32, 64, 128, 256"),
        ("vaetki-7b-a1b --memory 24GiB --block-size 1000000", r"--block-size is 1000000, but"),
        ("vaetki-7b-a1b --memory 24gb", r"'24gb' is no amount of memory; write a number above 0 and one of B, kB"),
        ("vaetki-7b-a1b --memory 0x24GB", r"'0x24GB' is no memory; write 80GiB, or 4x80GiB"),
    ],
)
def test_what_is_refused(arguments, message, tmp_path):
    with pytest.raises(PlanError, match=message):
        plan(tmp_path, *arguments.split())


def test_a_context_that_fits_is_named(tmp_path):
    arguments = ["vaetki-7b-a1b", "--memory", "16.9GiB", "--max-num-batched-tokens", "2048"]
    with pytest.raises(PlanError) as refused:
        plan(tmp_path, *arguments)
    longest = int(str(refused.value).rsplit(" ", 1)[1].replace(",", ""))
    assert plan(tmp_path, *arguments, "--context", str(longest))["caches"][0]["capacity"]["requests"] == 1
    with pytest.raises(PlanError):
        plan(tmp_path, *arguments, "--context", str(longest + 1))


def test_figures_that_cannot_be_written_are_refused_first(tmp_path):
    with pytest.raises(OutputError, match="there is no directory"):
        plan(tmp_path / "nowhere", "no-such-model", "--memory", "24GiB")


@pytest.mark.parametrize(
    ("model", "error", "message"),
    [
        ("nothing-of-this-name", ModelNotFoundError, "no directory, no hub id"),
        ("nobody/has-this-model", ModelNotFoundError, "neither in the local cache nor can it be fetched"),
        (".", ModelNotFoundError, "without config.json"),
    ],
)
def test_models_that_are_not_there(model, error, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(error, match=message):
        plan(tmp_path, model, "--memory", "80GiB")


def test_a_family_that_we_do_not_have(tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    with pytest.raises(PlanError, match=r"model_type .* is 'gpt2'; what its cache holds is known of the families"):
        plan(tmp_path, str(tmp_path), "--memory", "80GiB")


@pytest.mark.parametrize(
    ("text", "amount"), [("80GiB", 80 * 2**30), ("24GB", 24 * 10**9), ("1.5kB", 1500), ("512", 512), ("2 TiB", 2**41)]
)
def test_amounts_of_memory(text, amount):
    assert parse_bytes(text) == amount
    assert Devices.parse(f"4x{text}") == Devices(4, amount)
    assert Devices.parse(text) == Devices(1, amount)
