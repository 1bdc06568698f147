"""Trillion-7B, Tri-70B and Gravity in a real SGLang server, against plain references in float64."""

import copy
import functools

import pytest
import torch

from support import tiny_tri70b, tiny_trillion, tri70b_reference, trillion_reference
from support.sglang_parity import NEW_TOKENS, Reference, assert_agrees, compare, random_prompts
from support.sglang_server import CHUNK

pytestmark = pytest.mark.engine

LENGTHS = [2, 15, 16, 17, CHUNK - 1, CHUNK + 1, 130, 200]


def trillion_7b(model) -> tuple[Reference, Reference]:
    reference = functools.partial(
        trillion_reference.reference_logits, model.config, tiny_trillion.published_weights(model)
    )
    return reference, functools.partial(reference, without="post_mlp_layernorm")


def tri70b(model) -> tuple[Reference, Reference]:
    reference = functools.partial(tri70b_reference.reference_logits, model.config, tiny_tri70b.published_weights(model))
    return reference, functools.partial(reference, window=tiny_tri70b.WINDOW - 1)


def gravity(model) -> tuple[Reference, Reference]:
    def logits(model: torch.nn.Module, ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return model(ids[None]).logits[0]

    exact = copy.deepcopy(model).double()
    unbiased = copy.deepcopy(exact)
    for name, tensor in unbiased.state_dict().items():
        if name.endswith("e_score_correction_bias"):
            tensor.zero_()
    return functools.partial(logits, exact), functools.partial(logits, unbiased)


@pytest.fixture(scope="module", params=[trillion_7b, tri70b, gravity], ids=lambda make: make.__name__)
def family(request, models, serving):
    """A running server, what it must agree with, and a reference with one thing wrong."""
    name = request.param.__name__
    reference, wrong = request.param(models[name])
    return serving(name), reference, wrong


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
