"""The tokenizer, its template or the generation settings do not belong to the model."""

import pytest
import torch

from support.corruptions import HEAD, config, generation, gone, text, weights
from support.refused import Row, assert_refused, rows

TABLE = {
    "no tokenizer": Row("hf", gone("tokenizer.json"), r"holds no tokenizer: expected tokenizer\.json"),
    "a damaged tokenizer": Row("train", text("tokenizer/tokenizer.json", "{"), "the tokenizer in .* cannot be read"),
    "an empty tokenizer": Row("hf", text("tokenizer.json", "{}"), "the tokenizer in .* cannot be read"),
    "a tokenizer with more tokens than embeddings": Row(
        "train",
        lambda folder: (
            config(vocab_size=319)(folder),
            weights(lambda t: t.update({n: torch.zeros(319, 64) for n in ("model.embed_tokens.weight", HEAD)}))(folder),
        ),
        r"has 320 tokens, but vocab_size in config\.json is 319",
    ),
    "an end token that is not the tokenizer's": Row(
        "train", config(eos_token_id=5), r"eos_token_id is 5 in config\.json"
    ),
    "a begin token that is not the tokenizer's": Row(
        "hf", config(bos_token_id=5), r"bos_token_id is 5 in config\.json"
    ),
    "a padding token that is not the tokenizer's": Row(
        "hf", config(pad_token_id=5), r"pad_token_id is 5 in config\.json"
    ),
    "a chat template that does not parse": Row(
        "hf", text("chat_template.jinja", "{% for %}"), "chat_template in .* fails"
    ),
    "a chat template that raises": Row(
        "hf", text("chat_template.jinja", "{{ raise_exception('no') }}"), "chat_template in .* fails .*: no"
    ),
    "a generation file that is no JSON": Row(
        "hf", text("generation_config.json", "{"), r"generation_config\.json is not JSON", commands=False
    ),
    "another end of generation": Row(
        "hf", generation(eos_token_id=7), r"eos_token_id in .*generation_config\.json is 7", commands=False
    ),
    "an end of generation beyond the vocabulary": Row(
        "hf",
        generation(eos_token_id=[2, 999]),
        r"eos_token_id in .*generation_config\.json is \[2, 999\]",
        commands=False,
    ),
    "a temperature that is a text": Row(
        "hf", generation(temperature="hot"), r"temperature in .*generation_config\.json is 'hot'", commands=False
    ),
    "a negative temperature": Row("hf", generation(temperature=-1.0), r"temperature in .* is -1\.0", commands=False),
}


@pytest.mark.parametrize(("row", "turn"), rows(TABLE))
def test_refused(row, turn, good, tmp_path):
    assert_refused(row, turn, good, tmp_path)
