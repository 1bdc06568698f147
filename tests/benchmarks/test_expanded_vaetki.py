"""The baseline of the benchmarks is the same model: only what it caches differs."""

import json
from functools import partial

import pytest
import torch

import trillion_model
from benchmarks import expanded_vaetki
from support import vllm_engines
from support.engine_parity import assert_agrees
from support.tiny_vaetki import published_weights, tiny_model
from support.vaetki_reference import reference_logits

pytestmark = pytest.mark.engine


def test_the_baseline_agrees_with_the_reference_and_caches_every_head(tmp_path):
    # vLLM's ordinary attention on a CPU knows heads of 192, which the published ones have.
    model = tiny_model(num_hidden_layers=12, sliding_window=32, qk_nope_head_dim=128, v_head_dim=128)
    trillion_model.register()
    model.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["architectures"] = [expanded_vaetki.ARCHITECTURE]
    (tmp_path / "config.json").write_text(json.dumps(config))

    options = vllm_engines.Options(str(tmp_path), block_size=32)
    prompts = [torch.randint(3, 320, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in (5, 33, 130)]
    with vllm_engines.pool() as engines:
        engines.submit(expanded_vaetki.register).result()
        answers = engines.submit(vllm_engines.run, options, prompts, 12).result()
        groups = engines.submit(vllm_engines.report, options).result().groups

    assert_agrees(partial(reference_logits, model.config, published_weights(model)), prompts, answers)
    keys_and_values = 2 * model.config.num_attention_heads * model.config.qk_head_dim
    assert {group.bytes_per_token for group in groups} == {keys_and_values * 4}
    assert {group.spec for group in groups} == {"SlidingWindowSpec", "FullAttentionSpec"}
