"""The parity matrix: what agrees is said to agree, another model is not, and no family is left out."""

import pytest

import trillion_model
from benchmarks import parity
from benchmarks.parity import Form, Result, Runners

NAME = "trillion"
ASKED = parity.prompts((5, 40))


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    trillion_model.register()
    folder = tmp_path_factory.mktemp("parity") / "model"
    parity.write_model(NAME, "float32", folder)
    return folder


def test_every_family_is_in_it():
    assert set(parity.families()) == {*trillion_model.FAMILIES, parity.LLAMA}


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
