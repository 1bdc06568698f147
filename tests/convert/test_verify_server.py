"""Verify against a running ``vllm serve``: it agrees with the model it serves, and not with another."""

import pytest

from support.tiny_vaetki import tiny_model
from trillion_convert.errors import RunError
from trillion_convert.verify.compare import Report, compare, record
from trillion_convert.verify.prompts import Prompt
from trillion_convert.verify.runner import Request
from trillion_convert.verify.server_runner import SglangServer, VllmServer
from trillion_convert.verify.torch_runner import TorchModel

pytestmark = pytest.mark.engine

MAX_TOKENS = 12
TOLERANCE = 1e-4
END = 2
PROMPTS = [Prompt(f"{n} tokens", tuple(3 + (i * i + n) % 400 for i in range(n))) for n in (2, 40, 200)]


@pytest.fixture
def server(vllm_server):
    runner = VllmServer(vllm_server.url, [END])
    yield runner
    runner.close()


def outcome(server, model) -> Report:
    recordings = record(TorchModel(model, [END]), PROMPTS, MAX_TOKENS)
    return Report("hf", "vllm", "float32", TOLERANCE, tuple(compare(server, recordings, MAX_TOKENS, TOLERANCE)))


def test_a_server_agrees_with_the_model_it_serves(server, vllm_server):
    report = outcome(server, vllm_server.model)
    assert report.agree and report.token_mismatches == 0
    assert 0 < report.max_logprob_difference < TOLERANCE


def test_a_server_disagrees_with_another_model(server):
    report = outcome(server, tiny_model(seed=1, vocab_size=512))
    assert not report.agree and report.token_mismatches == len(PROMPTS)


def test_an_end_token_ends_a_continuation_and_is_part_of_it(server, vllm_server):
    request = Request(PROMPTS[1].token_ids, MAX_TOKENS)
    (whole,) = server.greedy([request])
    runner = VllmServer(vllm_server.url, [whole.token_ids[3]])
    (ended,) = runner.greedy([request])
    runner.close()
    stop = whole.token_ids.index(whole.token_ids[3]) + 1
    assert ended.token_ids == whole.token_ids[:stop]
    assert len(ended.margins) == len(ended.logprobs) == stop


def test_a_server_of_the_other_kind_is_told(vllm_server):
    with pytest.raises(RunError, match="/server_info refuses with 404"):
        SglangServer(vllm_server.url, [END])
