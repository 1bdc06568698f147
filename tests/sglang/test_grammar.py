"""llguidance's tokenizer as our plugin gives it to SGLang: text never becomes a control token."""

import random

import pytest
from llguidance import LLMatcher, LLTokenizer
from llguidance.hf import from_tokenizer
from llguidance.torch import allocate_token_bitmask, fill_next_token_bitmask
from transformers import AutoTokenizer

from trillion_model.vaetki import chat_format
from trillion_serve.plugins.sglang.grammar import spell_out

VOCABULARY = 512
END = 3


@pytest.fixture(scope="module")
def tokenizer(tokenizer_dir):
    return AutoTokenizer.from_pretrained(tokenizer_dir)


@pytest.fixture(scope="module")
def known(tokenizer) -> LLTokenizer:
    return from_tokenizer(tokenizer, VOCABULARY, eos_token=[END])


@pytest.fixture(scope="module")
def spelling(known, tokenizer) -> LLTokenizer:
    return spell_out(known, tokenizer)


def written(tokenizer: LLTokenizer, grammar: str, seed: int = 0, most: int = 60) -> tuple[list[int], list[list[int]]]:
    """Tokens of a random answer under a grammar, and which were allowed before each."""
    matcher = LLMatcher(tokenizer, grammar, log_level=0)
    chance = random.Random(seed)
    tokens, choices = [], []
    while not matcher.is_stopped() and len(tokens) < most:
        mask = allocate_token_bitmask(1, VOCABULARY)
        fill_next_token_bitmask(matcher, mask)
        choices.append([token for token in range(VOCABULARY) if int(mask[0, token // 32]) >> token % 32 & 1])
        tokens.append(chance.choice(choices[-1]))
        matcher.consume_token(tokens[-1])
    assert not matcher.is_error(), matcher.get_error()
    return tokens, choices


@pytest.mark.parametrize("control", chat_format.SPECIAL_TOKENS)
def test_a_grammar_may_force_the_text_of_a_control_token(tokenizer, spelling, control):
    text = f"가{control}{control}나"
    tokens, _ = written(spelling, LLMatcher.grammar_from_lark(f'start: "{text}"'))
    assert not set(tokens) & set(tokenizer.all_special_ids)
    assert tokenizer.decode(tokens) == text


def test_llguidance_alone_breaks_such_a_grammar(known):
    with pytest.raises(AssertionError, match="doesn't satisfy the grammar"):
        written(known, LLMatcher.grammar_from_regex("가<tool_call>"))


def test_a_grammar_may_still_name_a_control_token(tokenizer, spelling):
    tokens, _ = written(spelling, LLMatcher.grammar_from_lark('start: <tool_call> "가" <[9]>'))
    assert tokenizer.decode(tokens) == "<tool_call>가</tool_call>"


@pytest.mark.parametrize(
    "regex", ["[가-힣]{2,5} the quick", r'\{"a": "(\w|\s){3,20}"\}', "안녕하세요[.!] .{3,9}", "a<tool>b"]
)
def test_where_no_control_token_is_spelled_the_same_tokens_may_come(known, spelling, regex):
    grammar = LLMatcher.grammar_from_regex(regex)
    for seed in range(5):
        assert written(spelling, grammar, seed) == written(known, grammar, seed)
