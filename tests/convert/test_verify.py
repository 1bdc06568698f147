"""Verify: forms of one model agree, a changed one does not, and ties are told from mismatches."""

import json
import math
import shutil
import sys
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file

from support.folded import unfolded
from trillion_convert.cli import main
from trillion_convert.errors import PromptError, RunError
from trillion_convert.export import export
from trillion_convert.verify.compare import PromptResult, Report, compare, record
from trillion_convert.verify.forms import RunForm, Target
from trillion_convert.verify.prompts import Prompt, collect, read_prompts
from trillion_convert.verify.run import VerifyOptions, render, verify
from trillion_convert.verify.runner import Continuation, Request

FEW = VerifyOptions(max_tokens=8)
END = 0


class TableRunner:
    """A form whose best two tokens after each sequence are written down: ``{sequence: (token, margin)}``.

    Sequences that the table lacks are continued with the end token by a wide margin; every token has log-probability
    ``logprob``.
    """

    def __init__(self, table: dict[tuple[int, ...], tuple[int, float]], logprob: float = -1.0) -> None:
        self.table = table
        self.logprob = logprob

    def greedy(self, requests: list[Request]) -> list[Continuation]:
        return [self._continue(request) for request in requests]

    def score(self, sequences: list[tuple[int, ...]]) -> list[list[float]]:
        return [[self.logprob] * (len(sequence) - 1) for sequence in sequences]

    def close(self) -> None:
        self.table = {}

    def _continue(self, request: Request) -> Continuation:
        sequence, steps = request.token_ids, []
        while len(steps) < request.max_tokens and (not steps or steps[-1][0] != END):
            steps.append(self.table.get(sequence, (END, 5.0)))
            sequence = (*sequence, steps[-1][0])
        return Continuation(tuple(token for token, _ in steps), tuple(margin for _, margin in steps))


def compared(first: TableRunner, second: TableRunner, max_tokens: int = 4):
    (result,) = compare(second, record(first, [Prompt("p", (7, 8))], max_tokens), max_tokens, tolerance=0.01)
    return result


def test_equal_forms_agree():
    table = {(7, 8): (1, 2.0), (7, 8, 1): (2, 2.0)}
    result = compared(TableRunner(table), TableRunner(table))
    assert (result.mismatch_at, result.ties) == (None, ())
    assert (result.prompt_tokens, result.generated_tokens) == (2, 3)
    assert result.max_logprob_difference == 0.0


def test_a_token_that_differs_by_more_than_rounding_is_a_mismatch():
    result = compared(
        TableRunner({(7, 8): (1, 2.0), (7, 8, 1): (2, 0.5)}), TableRunner({(7, 8): (1, 2.0), (7, 8, 1): (3, 0.5)})
    )
    assert (result.mismatch_at, result.ties) == (1, ())


def test_a_difference_at_a_tie_is_forgiven_and_what_follows_is_compared():
    first = TableRunner({(7, 8): (1, 0.004), (7, 8, 1): (2, 2.0)})
    second = TableRunner({(7, 8): (9, 0.003), (7, 8, 1): (2, 2.0)})
    assert (compared(first, second).mismatch_at, compared(first, second).ties) == (None, (0,))
    second.table[7, 8, 1] = (3, 2.0)
    assert (compared(first, second).mismatch_at, compared(first, second).ties) == (1, (0,))


def test_ties_one_after_the_other_up_to_the_last_token():
    first = TableRunner({(7, 8): (1, 0.0), (7, 8, 1): (1, 0.0), (7, 8, 1, 1): (1, 0.0), (7, 8, 1, 1, 1): (1, 0.0)})
    second = TableRunner({sequence: (2, 0.0) for sequence in first.table})
    result = compared(first, second)
    assert (result.mismatch_at, result.ties) == (None, (0, 1, 2, 3))


def test_an_end_that_only_one_form_reaches_is_a_mismatch():
    result = compared(TableRunner({(7, 8): (1, 2.0), (7, 8, 1): (2, 2.0)}), TableRunner({(7, 8): (1, 2.0)}))
    assert result.mismatch_at == 1


def report(*results) -> Report:
    return Report("hf:a", "vllm:b", "float32", 0.01, results)


@pytest.mark.parametrize(
    ("first", "second", "agree"),
    [(-1.0, -1.009, True), (-1.0, -1.011, False), (-0.1, -0.109, True), (-0.1, -0.111, False)],
)
def test_log_probabilities_decide_too(first, second, agree):
    outcome = report(compared(TableRunner({}, first), TableRunner({}, second)))
    assert outcome.agree == agree
    assert outcome.max_logprob_difference == pytest.approx(first - second)


@pytest.mark.parametrize(("second", "agree"), [(-30.29, True), (-30.31, False)])
def test_an_unlikely_token_may_differ_in_proportion(second, agree):
    outcome = report(compared(TableRunner({}, -30.0), TableRunner({}, second)))
    assert outcome.agree == agree
    assert outcome.max_relative_difference == pytest.approx((-30 - second) / 30)


def test_the_worst_prompt_decides():
    near, far = (compared(TableRunner({}), TableRunner({}, logprob)) for logprob in (-1.0, -2.0))
    assert report(near).agree and not report(near, far).agree and not report(far, near).agree


def test_a_form_that_gives_no_number_disagrees():
    lost = compared(TableRunner({}), TableRunner({}, math.nan))
    assert not report(lost).agree
    assert json.loads(report(lost).to_json())["max_logprob_difference"] is None


def test_training_and_transformers_forms_agree_exactly(trained, exported):
    outcome = verify(Target(RunForm.TRAIN, trained), Target(RunForm.HF, exported), FEW)
    assert outcome.agree and outcome.token_mismatches == 0 and outcome.max_logprob_difference == 0.0
    lengths = [result.prompt_tokens for result in outcome.prompts if "random" in result.name]
    assert lengths == [16 + 3, 3 * 16 + 3, 5 * 16 + 3]


def test_bfloat16_runs_both_forms_rounded(trained, exported):
    options = VerifyOptions(max_tokens=4, dtype="bfloat16")
    outcome = verify(Target(RunForm.TRAIN, trained), Target(RunForm.HF, exported), options)
    assert outcome.agree and outcome.tolerance == 0.5


def run_cli(monkeypatch, *arguments) -> int:
    monkeypatch.setattr(sys, "argv", ["trillion-convert", "verify", *map(str, arguments), "--max-tokens", "4"])
    with pytest.raises(SystemExit) as stop:
        main()
    return stop.value.code


def test_exit_code_and_report_of_agreement(monkeypatch, capsys, trained, exported, tmp_path):
    assert run_cli(monkeypatch, trained, f"hf:{exported}", "--json", tmp_path / "report.json") == 0
    assert "agree: 0 token mismatches; largest log-probability difference 0.00e+00" in capsys.readouterr().out
    found = json.loads((tmp_path / "report.json").read_text())
    assert (found["agree"], found["token_mismatches"], found["ties"]) == (True, 0, 0)
    assert (found["a"], found["b"]) == (f"train:{trained}", f"hf:{exported}")
    assert len(found["prompts"]) == 9


def test_one_changed_weight_is_exit_code_1(monkeypatch, capsys, trained, exported, tmp_path):
    changed = shutil.copytree(exported, tmp_path / "changed")
    weights = load_file(changed / "model.safetensors")
    weights["model.layers.0.self_attn.o_proj.weight"][0, 0] += 0.5
    save_file(weights, changed / "model.safetensors", metadata={"format": "pt"})
    assert run_cli(monkeypatch, trained, changed) == 1
    assert "DISAGREE" in capsys.readouterr().out


@pytest.mark.parametrize("off_by", [-1, 1])
def test_a_window_wrong_by_one_is_exit_code_1(monkeypatch, trained, exported, tmp_path, off_by):
    changed = shutil.copytree(exported, tmp_path / "changed")
    config = json.loads((changed / "config.json").read_text())
    config["sliding_window"] += off_by
    (changed / "config.json").write_text(json.dumps(config))
    assert run_cli(monkeypatch, trained, changed) == 1


def test_forms_are_named_or_seen(trained, exported, tmp_path):
    assert Target.parse(str(trained)) == Target(RunForm.TRAIN, trained)
    assert Target.parse(str(exported)) == Target(RunForm.HF, exported)
    assert Target.parse(f"vllm:{exported}") == Target(RunForm.VLLM, exported)
    assert str(Target.parse(f"vllm:{exported}")) == f"vllm:{exported}"
    odd = tmp_path / "a:b"
    odd.mkdir()
    assert Target.parse(str(odd)) == Target(RunForm.HF, odd)
    with pytest.raises(RunError, match="'gguf:model' is neither a path nor FORM:PATH; the forms are train, hf, "):
        Target.parse("gguf:model")


def test_a_users_prompts(tokenizer, model, tmp_path):
    text = tmp_path / "questions.txt"
    text.write_text("347?\n\n안녕?\n", encoding="utf-8")
    lines = tmp_path / "questions.jsonl"
    system = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "347?"}]
    lines.write_text('{"prompt": "347?"}\n' + json.dumps({"messages": system}), encoding="utf-8")
    plain, structured = read_prompts(text, tokenizer), read_prompts(lines, tokenizer)
    assert [prompt.name for prompt in plain] == ["questions.txt:1", "questions.txt:3"]
    assert structured[0].token_ids == plain[0].token_ids
    assert tokenizer.decode(structured[1].token_ids).startswith("<|START|><|role_start|>system<|role_end|>\nBe brief.")
    assert collect(tokenizer, model.config, text, 8)[-2:] == plain


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("p.jsonl", '{"prompt": "a"}\n{', r"p\.jsonl:2: not JSON"),
        ("p.jsonl", '{"question": "a"}', r'p\.jsonl:1: expected an object with "prompt"'),
        ("p.jsonl", '{"messages": [{"content": 1, "role": "user"}]}', r"p\.jsonl:1: the chat template refuses it"),
        ("p.txt", "\n \n", "holds no prompt"),
        ("p.txt", "가" * 2000, r"p\.txt:1 has \d+ tokens, but the context has room for 1016"),
    ],
)
def test_prompts_that_cannot_be_used(tokenizer, model, tmp_path, name, content, match):
    (tmp_path / name).write_text(content, encoding="utf-8")
    with pytest.raises(PromptError, match=match):
        collect(tokenizer, model.config, tmp_path / name, 8)


def test_a_file_that_is_not_there(tokenizer):
    with pytest.raises(PromptError, match="cannot be read"):
        read_prompts(Path("no-such-file.txt"), tokenizer)


def test_random_prompts_stay_within_the_context(tokenizer, model):
    prompts = collect(tokenizer, model.config.replace(max_position_embeddings=60), None, 20)
    assert max(len(prompt.token_ids) for prompt in prompts) == 40
    with pytest.raises(PromptError, match="--max-tokens 60 leaves no room in a context of 60"):
        collect(tokenizer, model.config.replace(max_position_embeddings=60), None, 60)


def test_tokenizers_that_differ_are_told(trained, exported, tmp_path):
    changed = shutil.copytree(exported, tmp_path / "changed")
    (changed / "chat_template.jinja").write_text("{{ messages[0].content }}")
    with pytest.raises(PromptError, match="chat 1: the two tokenizers or chat templates make different tokens of it"):
        verify(Target(RunForm.TRAIN, trained), Target(RunForm.HF, changed), FEW)


def test_a_bfloat16_export_is_near_its_float32_model(trained, tmp_path):
    export(trained, tmp_path / "half", dtype="bfloat16")
    options = VerifyOptions(max_tokens=4, tolerance=0.5)
    outcome = verify(Target(RunForm.TRAIN, trained), Target(RunForm.HF, tmp_path / "half"), options)
    assert outcome.max_logprob_difference > 0


def test_no_figure_is_cut_where_lines_are_short(monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    name = "held-out problems in Korean, number 1234567"
    result = PromptResult(name, 131_072, 131_072, None, tuple(range(1000)), 1.3e-05, 3.8e-06, 262_143)
    render(Report("train:runs/sft", "hf:models/my-vaetki", "float32", 1e-4, (result,)))
    out = capsys.readouterr().out
    for figure in ("131072", "1.3e-05", "3.8e-06", "262143"):
        assert figure in unfolded(out)
    assert "…" not in out and max(map(len, out.splitlines()[:-1])) <= 80
