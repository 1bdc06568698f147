"""Verify between the forms that are not one directory of ours: Megatron-Core's names, a directory's own modelling
code, and servers by their URL."""

import pytest

from trillion_convert.errors import RunError
from trillion_convert.export import export
from trillion_convert.forms import Form
from trillion_convert.verify.forms import RunForm, Target
from trillion_convert.verify.run import VerifyOptions, verify

FEW = VerifyOptions(max_tokens=4)
NOWHERE = "http://127.0.0.1:1"


def test_megatron_names_agree_exactly_with_the_training_checkpoint(trained, tmp_path):
    export(trained, tmp_path / "megatron", to=Form.MEGATRON)
    outcome = verify(Target.parse(str(trained)), Target.parse(f"megatron:{tmp_path / 'megatron'}"), FEW)
    assert outcome.agree and outcome.max_logprob_difference == 0


def test_a_directory_runs_in_its_own_code(trained, tmp_path):
    options = VerifyOptions(max_tokens=4, remote_code=True)
    export(trained, tmp_path / "model", remote_code=True)
    sides = Target(RunForm.TRAIN, trained), Target(RunForm.HF, tmp_path / "model")
    assert verify(*sides, options).agree
    path = next((tmp_path / "model").glob("*modeling*.py"))
    path.write_text(path.read_text() + "\nraise ValueError('not today')\n")
    with pytest.raises(RunError, match=r"the code of .* failed: .*not today"):
        verify(*sides, options)


def test_a_directory_without_code_says_so(trained, exported):
    with pytest.raises(RunError, match=r"has no modelling code of its own \(auto_map in config\.json\)"):
        verify(Target(RunForm.TRAIN, trained), Target(RunForm.HF, exported), VerifyOptions(remote_code=True))


def test_servers_are_named_by_kind_and_url(exported):
    target = Target.parse("vllm:http://127.0.0.1:8000")
    assert (target.form, target.url, str(target)) == (
        RunForm.VLLM,
        "http://127.0.0.1:8000",
        "vllm:http://127.0.0.1:8000",
    )
    assert Target.parse("sglang:https://host/base").url == "https://host/base"
    assert Target.parse(f"vllm:{exported}").url is None


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("http://127.0.0.1:8000", "may be either kind of server; write vllm:http"),
        ("hf:http://127.0.0.1:8000", "hf is a directory's form, but http://127.0.0.1:8000 is a server"),
        ("sglang:models/x", "SGLang is compared as a running server: start one on models/x and write sglang:http"),
    ],
)
def test_targets_that_cannot_be(text, match):
    with pytest.raises(RunError, match=match):
        Target.parse(text)


@pytest.mark.parametrize("form", [RunForm.VLLM, RunForm.SGLANG])
def test_a_server_that_is_not_there(exported, form):
    with pytest.raises(RunError, match=rf"{NOWHERE}/\S+ does not answer as a server of this kind does: .*refused"):
        verify(Target(RunForm.HF, exported), Target(form, NOWHERE), FEW)


def test_two_servers_lack_a_tokenizer():
    with pytest.raises(RunError, match="two servers cannot be compared without a directory"):
        verify(Target(RunForm.VLLM, NOWHERE), Target(RunForm.SGLANG, NOWHERE), FEW)
