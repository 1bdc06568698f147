"""Tensors are missing, unknown, of another shape or dtype, or hold no numbers."""

import re

import pytest
import torch

from support.corruptions import EXPERT, HEAD, QUERY, STACK, number, tensor, weights
from support.refused import E, H, Q, Row, assert_refused, rows

TABLE = {
    "a missing tensor": Row("train", weights(lambda t: t.pop(STACK)), rf"lacks {re.escape(STACK)}"),
    "a missing expert": Row("hf", weights(lambda t: t.pop(EXPERT)), rf"lacks {E}"),
    "a missing layer": Row(
        "hf", weights(lambda t: [t.pop(n) for n in list(t) if ".layers.6." in n]), r"lacks model\.layers\.6\..* more"
    ),
    "a layer too many": Row(
        "hf",
        weights(
            lambda t: t.update({n.replace("rs.6", "rs.7"): x.clone() for n, x in list(t.items()) if ".layers.6." in n})
        ),
        r"has model\.layers\.7\.",
    ),
    "a head that was left out as if tied": Row("hf", weights(lambda t: t.pop(HEAD)), rf"lacks {H}"),
    "a tensor that no part reads": Row(
        "hf", weights(lambda t: t.update({"model.x": torch.zeros(1)})), r"has model\.x, which no part"
    ),
    "a bias": Row("train", weights(lambda t: t.update({"lm_head.bias": torch.zeros(320)})), r"has lm_head\.bias"),
    "training names in a published directory": Row(
        "hf",
        weights(
            lambda t: t.update(
                {STACK: torch.stack([t.pop(STACK.replace("down", f"{e}.down") + ".weight") for e in range(4)])}
            )
        ),
        r"lacks model\.layers\.3\.mlp\.experts\.0\.down_proj\.weight",
    ),
    "a wrong shape": Row(
        "train", tensor(QUERY, lambda t: torch.zeros(32, 65)), rf"{Q}: shape is \(32, 65\).*\(32, 64\)"
    ),
    "a transposed matrix": Row("hf", tensor(QUERY, lambda t: t.T), rf"{Q}: shape is \(64, 32\).*\(32, 64\)"),
    "a flattened matrix": Row("hf", tensor(QUERY, lambda t: t.flatten()), rf"{Q}: shape is \(2048,\)"),
    "a tensor without numbers": Row("hf", tensor(QUERY, lambda t: t[:0]), rf"{Q}: shape is \(0, 64\)"),
    "a single number": Row("hf", tensor(HEAD, lambda t: t.sum()), rf"{H}: shape is \(\)"),
    "whole numbers": Row("hf", tensor(QUERY, lambda t: t.long()), rf"{Q}: stored as I64, but weights are one of F32"),
    "truth values": Row("train", tensor(QUERY, lambda t: t.bool()), rf"{Q}: stored as BOOL"),
    "numbers of eight bytes": Row("hf", tensor(QUERY, lambda t: t.double()), rf"{Q}: stored as F64"),
    "eight-bit numbers in a plain checkpoint": Row(
        "hf", tensor(QUERY, lambda t: t.to(torch.float8_e4m3fn)), rf"{Q}: stored as F8_E4M3"
    ),
    "a number that is none": Row(
        "hf", number(EXPERT, float("nan")), rf"({E}|layers\.4\.mlp\.experts\.gate_up_proj): holds"
    ),
    "an infinite number": Row("train", number(QUERY, float("inf")), rf"{Q}: holds numbers"),
    "a number that is minus infinity": Row("hf", number(HEAD, -float("inf")), rf"{H}: holds numbers"),
    "one tensor in another dtype": Row(
        "hf",
        tensor(QUERY, lambda t: t.half()),
        rf"{Q}: stored as float16, but dtype in config\.json is",
        commands=False,
    ),
}


@pytest.mark.parametrize(("row", "turn"), rows(TABLE))
def test_refused(row, turn, good, tmp_path):
    assert_refused(row, turn, good, tmp_path)
