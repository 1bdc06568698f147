"""``trillion-convert verify`` against a running SGLang: it agrees with the model it serves, and not with another."""

import pytest

from support.tiny_vaetki import tiny_model
from trillion_convert.verify.compare import Report, compare, record
from trillion_convert.verify.prompts import Prompt
from trillion_convert.verify.server_runner import SglangServer
from trillion_convert.verify.torch_runner import TorchModel

pytestmark = pytest.mark.engine

MAX_TOKENS = 12
TOLERANCE = 1e-4
END = 3
PROMPTS = [Prompt(f"{n} tokens", tuple(20 + (i * i + n) % 400 for i in range(n))) for n in (2, 40, 200)]


@pytest.fixture
def server(serving):
    runner = SglangServer(serving("vaetki").url, [END])
    yield runner
    runner.close()


def outcome(server, model) -> Report:
    recordings = record(TorchModel(model, [END]), PROMPTS, MAX_TOKENS)
    return Report("hf", "sglang", "float32", TOLERANCE, tuple(compare(server, recordings, MAX_TOKENS, TOLERANCE)))


def test_a_server_agrees_with_the_model_it_serves(server, models):
    report = outcome(server, models["vaetki"])
    assert report.agree and report.token_mismatches == 0
    assert 0 < report.max_logprob_difference < TOLERANCE


def test_a_server_disagrees_with_another_model(server):
    report = outcome(server, tiny_model(seed=1, vocab_size=512))
    assert not report.agree and report.token_mismatches == len(PROMPTS)
