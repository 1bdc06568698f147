"""Verify against a real vLLM engine: our export agrees with its training checkpoint, a wrong window does not."""

import shutil
from pathlib import Path

import pytest

from trillion_convert.checkpoint import open_checkpoint
from trillion_convert.errors import RunError
from trillion_convert.tokenizer import check_tokenizer
from trillion_convert.verify.compare import Report, compare, record
from trillion_convert.verify.forms import RunForm, Target
from trillion_convert.verify.prompts import Prompt, collect
from trillion_convert.verify.run import load_runner
from trillion_convert.verify.torch_runner import TorchRunner
from trillion_convert.verify.vllm_runner import MAX_BATCHED_TOKENS

pytestmark = pytest.mark.engine
MAX_TOKENS = 8
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def prompts(trained, model) -> list[Prompt]:
    """The built-in ones, and one so long that vLLM prefills it in two steps."""
    usual = collect(check_tokenizer(open_checkpoint(trained)), model.config, None, MAX_TOKENS)
    return [*usual, Prompt("two steps", tuple(3 + i * i % 317 for i in range(MAX_BATCHED_TOKENS + 100)))]


@pytest.fixture(scope="module")
def engine(exported, prompts):
    longest = max(len(prompt.token_ids) for prompt in prompts) + MAX_TOKENS
    runner = load_runner(Target(RunForm.VLLM, exported), open_checkpoint(exported), "float32", longest)
    yield runner
    runner.close()


def outcome(path: Path, engine, prompts) -> Report:
    recordings = record(TorchRunner(open_checkpoint(path), "float32"), prompts, MAX_TOKENS)
    return Report(str(path), "vllm", "float32", TOLERANCE, tuple(compare(engine, recordings, MAX_TOKENS, TOLERANCE)))


def test_vllm_agrees_with_the_training_checkpoint(trained, engine, prompts):
    report = outcome(trained, engine, prompts)
    assert report.agree and report.token_mismatches == 0
    assert 0 < report.max_logprob_difference < TOLERANCE


def test_vllm_disagrees_with_a_window_wrong_by_one(trained, engine, prompts, tmp_path):
    changed = shutil.copytree(trained, tmp_path / "changed")
    config = (trained / "config.json").read_text().replace('"sliding_window": 16', '"sliding_window": 17')
    (changed / "config.json").write_text(config)
    report = outcome(changed, engine, prompts)
    assert report.token_mismatches > 0 and report.max_logprob_difference > 0.1


def test_an_engine_that_does_not_start_says_where_its_output_is(exported):
    checkpoint = open_checkpoint(exported)
    beyond = checkpoint.architecture.config.max_position_embeddings + 1
    with pytest.raises(RunError, match=r"vLLM failed: .*its output is in ") as error:
        load_runner(Target(RunForm.VLLM, exported), checkpoint, "float32", beyond)
    log = Path(str(error.value).rpartition(" ")[2])
    assert "max_model_len" in log.read_text()
    log.unlink()
