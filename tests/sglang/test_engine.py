"""VAETKI in a real SGLang server, against the plain reference: full masks, no cache, float64."""

import functools
import re

import pytest

from support.sglang_parity import NEW_TOKENS, Reference, assert_agrees, compare, random_prompts
from support.sglang_references import REFERENCES
from support.sglang_server import CHUNK, POOL, Answer, SglangServer
from support.tiny_vaetki import WINDOW

pytestmark = pytest.mark.engine

# Around the edges of the window (16) and of chunks of a prefill (64), and several windows long.
LENGTHS = [2, 15, 16, 17, 31, 33, CHUNK - 1, CHUNK, CHUNK + 1, 90, 130, 200]


@pytest.fixture(scope="module")
def server(serving) -> SglangServer:
    return serving("vaetki")


@pytest.fixture(scope="module")
def reference(models) -> Reference:
    return REFERENCES["vaetki"](models["vaetki"])


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    return random_prompts(LENGTHS)


@pytest.fixture(scope="module")
def answers(server, prompts) -> list[Answer]:
    """A batch of mixed lengths, longer prompts prefilled in chunks."""
    return server.generate(prompts, NEW_TOKENS)


def test_float32_agrees_with_the_reference(reference, prompts, answers):
    assert_agrees(reference, prompts, answers)
    assert len(compare(reference, prompts, answers)[1]) == sum(LENGTHS) - len(LENGTHS) + NEW_TOKENS * len(LENGTHS)


@pytest.mark.parametrize("wrong", [WINDOW - 1, WINDOW + 1])
def test_a_reference_with_the_window_wrong_by_one_disagrees(reference, prompts, answers, wrong):
    _, distances = compare(functools.partial(reference, window=wrong), prompts, answers)
    assert distances.max() > 1e-2


def test_prefixes_read_from_the_cache_change_nothing(server, reference):
    shared = random_prompts([150], seed=2)[0]
    first, *rest = [shared + tail for tail in random_prompts([5, 1, 20, 40], seed=3)]
    server.generate([first], 4, prompt_logprobs=False)
    answers = server.generate([first, *rest], NEW_TOKENS, prompt_logprobs=False)
    assert all(answer.cached_tokens >= 2 * CHUNK for answer in answers)
    assert_agrees(reference, [first, *rest], answers)


def test_pools_that_are_used_again_and_again_change_nothing(server, reference):
    prompts = random_prompts([100] * 14, seed=4)
    assert sum(map(len, prompts)) > 2 * POOL
    assert_agrees(reference, prompts, server.generate(prompts, 50, prompt_logprobs=False))


def test_local_layers_draw_from_a_pool_of_latents_of_their_own(server):
    log = server.log.read_text()
    assert re.search(rf"SWAKVPool mem usage: [\d.]+ GB, swa size: {POOL * 8 // 10}, full size: {POOL}\b", log)
    # A request holds its window and the chunk in flight there, however long it is.
    held = [(int(full), int(swa)) for full, swa in re.findall(r"#full token: (\d+),.*?#swa token: (\d+)", log)]
    assert any(full > 3 * swa for full, swa in held if swa)
