"""The parity matrix: what agrees is said to agree, another model is not, and no family is left out."""

from pathlib import Path

import pytest
import typer
from click.testing import Result as Run
from typer.testing import CliRunner

import trillion_model
from benchmarks import parity
from benchmarks.parity import Form, Result, Runners

NAME = "trillion_7b"
ASKED = parity.prompts((5, 40))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    trillion_model.register()
    folder = tmp_path_factory.mktemp("parity") / "model"
    parity.write_model(NAME, "float32", folder)
    return folder


def run(*arguments: str) -> Run:
    app = typer.Typer()
    app.command()(parity.main)
    return CliRunner().invoke(app, arguments)


def test_every_family_is_in_it():
    assert {model.folder for model in parity.MODELS.values()} == {*trillion_model.FAMILIES, None}


def test_the_matrix_in_the_docs_names_the_models_as_the_command_does():
    page = (Path(__file__).parents[2] / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    section = page.partition("## Every model in every form")[2].partition("\n## ")[0]
    assert [line.split()[1] for line in section.splitlines() if line.startswith("| ")][1:] == ["---", *parity.MODELS]


def test_a_model_that_is_none_of_them_is_refused():
    refused = run("--only", "vaetki", "--only", "nosuch")
    assert refused.exit_code == 2
    told = " ".join(refused.output.replace("│", " ").split())
    assert "'nosuch' is none of vaetki, trillion_7b, tri70b, gravity, llama" in told


def test_a_form_that_is_missing_ends_the_command_unless_it_may_be(monkeypatch):
    monkeypatch.setattr(parity, "missing_forms", lambda: [Form.SGLANG])
    assert run("--quick").exit_code == 1

    class Here(Runners):
        def start(self, form, directory, dtype, longest):
            return super().start(form, directory, dtype, longest) if form is Form.TRANSFORMERS else None

    monkeypatch.setattr(parity, "Runners", Here)
    done = run("--quick", "--only", NAME, "--skip-missing")
    assert done.exit_code == 0, done.output
    assert "0/72" in done.output and "not installed" in done.output and NAME in done.output


def of(form: Form, dtype: str, mean: float, mismatches: int = 0) -> Result:
    return Result(NAME, form, dtype, 120, mismatches, 2 * mean, mean)


def test_float32_must_agree():
    assert parity.faults([of(Form.VLLM, "float32", 1e-6)]) == []
    for wrong in (of(Form.VLLM, "float32", 1e-6, mismatches=1), of(Form.VLLM, "float32", 1e-3)):
        assert parity.faults([of(Form.TRANSFORMERS, "float32", 1e-6), wrong])[0].startswith(f"{NAME}, vLLM, float32: ")


def test_bfloat16_must_be_nearly_as_close_as_transformers_is():
    plain = of(Form.TRANSFORMERS, "bfloat16", 0.01, mismatches=3)
    assert parity.faults([plain, of(Form.VLLM, "bfloat16", 0.014, mismatches=5)]) == []
    assert parity.faults([plain, of(Form.VLLM, "bfloat16", 0.021)]) == [
        f"{NAME}, vLLM, bfloat16: mean difference 2.1e-02, where 2.0e-02 is rounding"
    ]
    assert parity.faults([plain, of(Form.VLLM, "bfloat16", 0.01, mismatches=13)]) == [
        f"{NAME}, vLLM, bfloat16: 13 mismatches, where 12 are rounding"
    ]
    assert parity.faults([of(Form.TRANSFORMERS, "bfloat16", 0.06)]) != []


def test_a_form_that_fails_is_a_fault():
    failed = Result(NAME, Form.SGLANG, "bfloat16", note="failed: it does not start")
    assert parity.faults([failed]) == [f"{NAME}, SGLang, bfloat16: failed: it does not start"]


def test_a_form_that_agrees(directory):
    with Runners() as runners:
        result = parity.hold(runners, NAME, Form.TRANSFORMERS, "float32", directory, ASKED)
    assert (result.tokens, result.mismatches) == (2 * parity.NEW_TOKENS, 0)
    assert 0 < result.mean_difference < result.max_difference < parity.LIMIT
    assert parity.cell(result).startswith("0/48 ")


def test_a_form_that_runs_other_weights(directory, tmp_path, monkeypatch):
    monkeypatch.setattr(parity, "SEED", parity.SEED + 1)
    parity.write_model(NAME, "float32", tmp_path / "other")

    class Astray(Runners):
        def start(self, form, directory, dtype, longest):
            return super().start(form, tmp_path / "other", dtype, longest)

    with Astray() as runners:
        result = parity.hold(runners, NAME, Form.TRANSFORMERS, "float32", directory, ASKED)
    assert result.mismatches > parity.NEW_TOKENS and result.max_difference > 1


def test_a_form_that_is_not_there_says_so():
    assert parity.cell(Result(NAME, Form.SGLANG, "float32", note="not installed")) == "not installed"
