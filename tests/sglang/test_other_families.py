"""Trillion-7B, Tri-70B and Gravity in a real SGLang server, against plain references in float64."""

import copy
import functools

import pytest
import torch

from support import tiny_tri70b
from support.sglang_parity import NEW_TOKENS, Reference, assert_agrees, compare, random_prompts
from support.sglang_references import REFERENCES
from support.sglang_server import CHUNK

pytestmark = pytest.mark.engine

LENGTHS = [2, 15, 16, 17, CHUNK - 1, CHUNK + 1, 130, 200]


def without_a_norm(model: torch.nn.Module) -> Reference:
    return functools.partial(REFERENCES["trillion_7b"](model), without="post_mlp_layernorm")


def with_another_window(model: torch.nn.Module) -> Reference:
    return functools.partial(REFERENCES["tri70b"](model), window=tiny_tri70b.WINDOW - 1)


def without_biases(model: torch.nn.Module) -> Reference:
    unbiased = copy.deepcopy(model)
    for name, tensor in unbiased.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            tensor.zero_()
    return REFERENCES["gravity"](unbiased)


WRONG = {"trillion_7b": without_a_norm, "tri70b": with_another_window, "gravity": without_biases}


@pytest.fixture(scope="module", params=list(WRONG))
def family(request, models, serving):
    """A running server, what it must agree with, and a reference with one thing wrong."""
    model = models[request.param]
    return serving(request.param), REFERENCES[request.param](model), WRONG[request.param](model)


def test_float32_agrees_with_the_reference_and_a_wrong_one_does_not(family):
    server, reference, wrong = family
    prompts = random_prompts(LENGTHS)
    answers = server.generate(prompts, NEW_TOKENS)
    assert_agrees(reference, prompts, answers)
    assert compare(wrong, prompts, answers)[1].max() > 1e-2


def test_prefixes_and_pools_that_are_used_again_change_nothing(family):
    server, reference, _ = family
    shared = random_prompts([80], seed=2)[0]
    prompts = [shared + tail for tail in random_prompts([5, 1, 20, 40], seed=3)] + random_prompts([100] * 8, seed=4)
    server.generate(prompts[:1], 4, prompt_logprobs=False)
    answers = server.generate(prompts, 40, prompt_logprobs=False)
    assert answers[0].cached_tokens >= CHUNK
    assert_agrees(reference, prompts, answers)
