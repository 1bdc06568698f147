"""What is not corrupted has no problem, and what is corrupted in several ways has as many."""

import re
import shutil

import pytest

from support.corruptions import EXPERT, QUERY, config, number
from support.refused import E, Q
from trillion_convert.validation import survey


@pytest.mark.parametrize("form", ["train", "hf", "shards", "fp8", "whole"])
def test_the_good_ones_have_no_problem(good, form):
    assert survey(good / form).problems == ()


def test_every_problem_is_listed_and_not_only_the_first(good, tmp_path):
    source = shutil.copytree(good / "hf", tmp_path / "in")
    config(q_lora_rank=0, hidden_act="gelu", moe_intermediate_size="x")(source)
    number(EXPERT, float("nan"))(source)
    number(QUERY, float("inf"))(source)
    found = [
        r"q_lora_rank is 0",
        r"hidden_act is 'gelu'",
        r"moe_intermediate_size is 'x'",
        rf"{E}: holds",
        rf"{Q}: holds",
    ]
    problems = survey(source).problems
    assert len(problems) == len(found)
    for pattern in found:
        assert any(re.search(pattern, problem) for problem in problems), pattern
