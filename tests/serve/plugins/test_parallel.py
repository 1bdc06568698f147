"""One model over two processes in real vLLM engines, against the plain reference."""

import pytest
import torch

from support import vllm_engines
from support.vaetki_reference import reference_logits
from support.vllm_engines import Options

pytestmark = pytest.mark.engine

PROMPTS = [torch.arange(3, 3 + n).tolist() for n in (2, 33, 90)]
NEW_TOKENS = 6


@pytest.fixture(scope="module")
def own_engines():
    """A process for these engines, whose workers end with it."""
    pool = vllm_engines.pool()
    yield pool
    pool.shutdown()


@pytest.mark.parametrize("split", [{"tensor_parallel": 2}, {"pipeline_parallel": 2}], ids=["tensor", "pipeline"])
def test_two_processes_agree_with_the_reference(own_engines, checkpoint, model, weights, split):
    options = Options(str(checkpoint), **split)
    answers = own_engines.submit(vllm_engines.run, options, PROMPTS, NEW_TOKENS).result()
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = torch.tensor(prompt + answer.tokens)
        expected = reference_logits(model.config, weights, ids).log_softmax(-1)[:-1]
        assert expected[-NEW_TOKENS:].argmax(-1).tolist() == answer.tokens
        given = torch.tensor(answer.prompt_logprobs + answer.logprobs, dtype=torch.float64)
        assert (given - expected.gather(1, ids[1:, None])[:, 0]).abs().max() < 1e-4


def test_experts_in_parallel_are_refused_on_a_cpu(start_fails, checkpoint):
    assert start_fails(checkpoint, expert_parallel=True) == (
        "EngineStartError",
        "vLLM cannot run experts in parallel on a CPU; leave --enable-expert-parallel out",
    )
