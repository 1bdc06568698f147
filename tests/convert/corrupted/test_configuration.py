"""The configuration is none, contradicts itself, or is of another model than the weights."""

from pathlib import Path

import pytest

from support.corruptions import config, content, gone, json_file, replaced, text
from support.refused import Row, assert_refused, rows

TABLE = {
    "no configuration": Row("train", gone("config.json"), r"has no config\.json"),
    "a configuration that is no JSON": Row("train", text("config.json", "{"), r"config\.json is not JSON"),
    "a configuration that is a list": Row("hf", text("config.json", "[]"), r"config\.json is not JSON of an object"),
    "a configuration nested too deeply": Row(
        "hf", text("config.json", '{"a":' * 90_000), r"config\.json .* nested too deeply"
    ),
    "a configuration with a field twice": Row(
        "hf",
        content(lambda old: old.replace(b"{", b'{"hidden_size": 65,', 1), "config.json"),
        r"hidden_size: listed twice in .*config\.json",
    ),
    "a configuration that is a directory": Row(
        "hf", replaced("config.json", Path.mkdir), r"config\.json cannot be read"
    ),
    "a family that there is not": Row("hf", config(model_type="vaetkii"), r"model_type in .* is 'vaetkii'"),
    "no family": Row("train", config(model_type=None), r"model_type in .* is None"),
    "a negative rank": Row("train", config(q_lora_rank=-1), "q_lora_rank is -1"),
    "a text for a number": Row("hf", config(hidden_size="64"), "hidden_size is '64'"),
    "a fraction of a size": Row("hf", config(moe_intermediate_size=32.5), r"moe_intermediate_size is 32\.5"),
    "null for a window": Row("hf", config(sliding_window=None), "sliding_window is None"),
    "layer types of fewer layers": Row("hf", config(layer_types=["full_attention"]), "layer_types is"),
    "a layer type that there is not": Row(
        "hf", config(layer_types=["full_attention"] * 6 + ["half"]), r"layer_types\[6\] is 'half'"
    ),
    "a RoPE scaling without a type": Row("hf", config(rope_scaling={"factor": 2}), r"rope_scaling\.rope_type is None"),
    "a RoPE scaling by zero": Row(
        "hf", config(rope_scaling={"rope_type": "linear", "factor": 0}), r"rope_scaling\.factor is 0"
    ),
    "more experts a token than there are": Row("hf", config(num_experts_per_tok=5), "num_experts_per_tok is 5"),
    "more dense layers than there are": Row("hf", config(first_k_dense_replace=8), "first_k_dense_replace is 8"),
    "another activation": Row("hf", config(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "another router": Row("hf", config(scoring_func="softmax"), "scoring_func is 'softmax'"),
    "a tied head": Row("hf", config(tie_word_embeddings=True), "tie_word_embeddings is True"),
    "a dtype of weights that there is not": Row("hf", config(dtype="int3"), "dtype is 'int3'"),
    "a field that Transformers cannot read": Row(
        "hf", config(id2label=3), r"config\.json is no configuration of vaetki"
    ),
    "a layer more than there is": Row(
        "hf",
        json_file("config.json", lambda c: c.update(num_hidden_layers=8, layer_types=["full_attention"] * 8)),
        r"lacks model\.layers\.7\..* more",
    ),
    "another hidden size": Row(
        "hf", config(hidden_size=96), r"model\.embed_tokens\.weight: shape is \(320, 64\).*\(320, 96\)"
    ),
    "a dense layer more than there is": Row(
        "hf", config(first_k_dense_replace=2), r"lacks model\.layers\.1\.mlp\.gate_proj\.weight"
    ),
    "another vocabulary": Row(
        "hf", config(vocab_size=321), r"model\.embed_tokens\.weight: shape is \(320, 64\).*\(321, 64\)"
    ),
    "an end token beyond the vocabulary": Row("hf", config(eos_token_id=320), "eos_token_id is 320"),
    "a negative begin token": Row("hf", config(bos_token_id=-1), "bos_token_id is -1"),
    "a dtype that is not the tensors'": Row(
        "hf", config(dtype="bfloat16"), r"stored as float32, but dtype in config\.json is bfloat16", commands=False
    ),
    "another class": Row(
        "hf", config(architectures=["LlamaForCausalLM"]), r"architectures in config\.json", commands=False
    ),
}


@pytest.mark.parametrize(("row", "turn"), rows(TABLE))
def test_refused(row, turn, good, tmp_path):
    assert_refused(row, turn, good, tmp_path)
