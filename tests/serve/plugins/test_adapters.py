"""LoRA adapters in a real vLLM engine, against the plain reference with their weights added to the model's."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from support import vllm_engines
from support.vaetki_reference import reference_logits
from support.vllm_engines import Options

pytestmark = pytest.mark.engine

RANK, ALPHA = 8, 16
ADAPTED = ["q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj", "gate_proj", "up_proj", "down_proj"]


def save_adapter(directory: Path, pairs: dict[str, tuple[torch.Tensor, torch.Tensor]]) -> str:
    """Write ``pairs`` of A (rank, inputs) and B (outputs, rank), by module, as PEFT does."""
    directory.mkdir()
    modules = sorted({name.rpartition(".")[2] for name in pairs})
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": ALPHA, "target_modules": modules, "bias": "none"}
    (directory / "adapter_config.json").write_text(json.dumps(config), encoding="utf-8")
    tensors = {}
    for name, (a, b) in pairs.items():
        tensors[f"base_model.model.{name}.lora_A.weight"] = a.float().contiguous()
        tensors[f"base_model.model.{name}.lora_B.weight"] = b.float().contiguous()
    save_file(tensors, directory / "adapter_model.safetensors")
    return str(directory)


def random_pair(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    outputs, inputs = weight.shape
    return torch.randn(RANK, inputs) / inputs**0.5, torch.randn(outputs, RANK) * 0.05


@pytest.fixture(scope="module")
def options(checkpoint) -> Options:
    return Options(str(checkpoint), lora_rank=RANK, kv_cache_mib=32)  # vLLM logs an equal capacity once only


def test_an_adapter_is_its_weights_added_to_the_models(engines, options, model, weights, tmp_path):
    torch.manual_seed(0)
    pairs = {
        name.removesuffix(".weight"): random_pair(weight)
        for name, weight in weights.items()
        if name.split(".")[-2] in ADAPTED and ".experts." not in name
    }
    assert len(pairs) == 12 * (4 + 3)
    adapter = save_adapter(tmp_path / "adapter", pairs)
    merged = dict(weights)
    for name, (a, b) in pairs.items():
        merged[f"{name}.weight"] = weights[f"{name}.weight"] + ALPHA / RANK * b.double() @ a.double()

    prompts = [torch.arange(3, 3 + n).tolist() for n in (40, 40, 2)]
    adapted, plain, short = engines.submit(
        vllm_engines.run, options, prompts, 8, adapters=[adapter, None, adapter]
    ).result()

    def distance(prompt, answer, these) -> float:
        ids = torch.tensor(prompt + answer.tokens)
        expected = reference_logits(model.config, these, ids).log_softmax(-1)[:-1].gather(1, ids[1:, None])[:, 0]
        given = torch.tensor(answer.prompt_logprobs + answer.logprobs, dtype=torch.float64)
        return float((given - expected).abs().max())

    assert distance(prompts[0], adapted, merged) < 1e-4
    assert distance(prompts[1], plain, weights) < 1e-4
    assert distance(prompts[2], short, merged) < 1e-4
    assert distance(prompts[0], adapted, weights) > 1e-2


@pytest.mark.parametrize(
    "module",
    [
        "model.layers.1.self_attn.kv_b_proj",
        "model.layers.1.mlp.experts.0.down_proj",
        "model.layers.1.mlp.gate",
        "lm_head",
    ],
)
def test_an_adapter_of_any_other_layer_is_refused(engines, options, weights, tmp_path, module):
    adapter = save_adapter(tmp_path / "adapter", {module: random_pair(weights[f"{module}.weight"])})
    _, message = engines.submit(vllm_engines.refusal, options, adapter).result()
    assert f"an adapter's layer is '{module}', but must be q_a_proj, q_b_proj" in message
