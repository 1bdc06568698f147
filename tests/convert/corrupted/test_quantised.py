"""A quantised checkpoint lacks a scale, or holds other numbers than it says."""

import pytest
import torch

from support.corruptions import QUERY, SCALE, config, number, tensor, weights
from support.refused import Q, Row, S, assert_refused, rows

TABLE = {
    "a scale that is missing": Row("fp8", weights(lambda t: t.pop(SCALE)), rf"lacks {S}", commands=False),
    "a scale of another shape": Row("fp8", tensor(SCALE, lambda t: t.T), rf"{S}: shape is \(1, 32\)", commands=False),
    "a scale that is none": Row("fp8", number(SCALE, float("nan")), rf"{S}: holds numbers", commands=False),
    "an eight-bit number that is none": Row("fp8", number(QUERY, float("nan")), rf"{Q}: holds numbers", commands=False),
    "whole numbers for eight-bit floats": Row(
        "fp8",
        tensor(QUERY, lambda t: t.view(torch.int8)),
        rf"{Q}: stored as int8, but quantization_config .* float8_e4m3fn",
        commands=False,
    ),
    "a quantisation that is not ours": Row(
        "fp8",
        config(quantization_config={"quant_method": "gptq"}),
        r"quantization_config in config\.json cannot be read",
        commands=False,
    ),
}


@pytest.mark.parametrize(("row", "turn"), rows(TABLE))
def test_refused(row, turn, good, tmp_path):
    assert_refused(row, turn, good, tmp_path)
