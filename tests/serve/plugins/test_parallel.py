"""One model over two processes in real vLLM engines, against the plain reference.

Each start takes seconds, so that not every family is split in both ways unless ALL_SPLITS is in the environment.
"""

import os
from functools import partial
from typing import Any

import pytest
import torch

from support import tiny_gravity, tiny_tri70b, tiny_trillion, tri70b_reference, trillion_reference, vllm_engines
from support.engine_parity import Reference, assert_agrees, saved
from support.random_weights import published_weights
from support.vaetki_reference import reference_logits
from support.vllm_engines import Options

pytestmark = pytest.mark.engine

PROMPTS = [torch.arange(3, 3 + n).tolist() for n in (2, 33, 90)]
NEW_TOKENS = 6
SPLITS = {"tensor": {"tensor_parallel": 2}, "pipeline": {"pipeline_parallel": 2}}
OFTEN = [("vaetki", "tensor"), ("vaetki", "pipeline"), ("tri70b", "tensor")]
OTHERS = [("tri70b", "pipeline"), ("trillion", "tensor"), ("trillion", "pipeline")]
OTHERS += [("gravity", "tensor"), ("gravity", "pipeline")]


@pytest.fixture(scope="module")
def own_engines():
    """A process for these engines, whose workers end with it."""
    pool = vllm_engines.pool()
    yield pool
    pool.shutdown()


def tiny(family: str) -> tuple[Any, Reference, dict[str, int]]:
    """A small model of a family, its reference, and the options that its engine needs."""
    if family == "gravity":
        model = tiny_gravity.tiny_model(q_lora_rank=32, n_group=4, topk_group=2, rope_parameters=tiny_gravity.YARN)
        return model, tiny_gravity.deepseek_logits(model), {}
    if family == "trillion":
        model = tiny_trillion.tiny_model(num_nextn_predict_layers=0)
        logits = trillion_reference.reference_logits
    else:
        model = tiny_tri70b.tiny_model(sliding_window=32)
        logits = tri70b_reference.reference_logits
    return model, partial(logits, model.config, published_weights(model)), {"block_size": 32}


@pytest.mark.parametrize(
    ("family", "split"), [*OFTEN, *(OTHERS if "ALL_SPLITS" in os.environ else ())], ids=lambda name: name
)
def test_two_processes_agree_with_the_reference(own_engines, checkpoint, model, weights, family, split, tmp_path):
    if family == "vaetki":
        directory, reference, more = checkpoint, partial(reference_logits, model.config, weights), {}
    else:
        other, reference, more = tiny(family)
        directory = saved(other, tmp_path)
    options = Options(str(directory), **SPLITS[split], **more)
    answers = own_engines.submit(vllm_engines.run, options, PROMPTS, NEW_TOKENS).result()
    assert_agrees(reference, PROMPTS, answers)


@pytest.mark.parametrize("family", ["vaetki", "gravity"])
def test_experts_in_parallel_are_refused_on_a_cpu(start_fails, checkpoint, family, tmp_path):
    directory = checkpoint if family == "vaetki" else saved(tiny_gravity.tiny_model(), tmp_path)
    assert start_fails(directory, expert_parallel=True) == (
        "EngineStartError",
        "vLLM cannot run experts in parallel on a CPU; leave --enable-expert-parallel out",
    )
