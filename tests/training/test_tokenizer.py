"""The tokenizer: the same ids as SentencePiece, chat tokens, digits, and what the template writes."""

import pytest
import sentencepiece
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoTokenizer

from trillion_model.vaetki import chat_format
from trillion_training.errors import TokenizerError
from trillion_training.tokenizer import train_sentencepiece

TEXTS = [
    "삼백사십칠을 숫자로 쓰면 347입니다.",
    "Three hundred forty-seven is written 347.",
    "대한민국의 수도는 서울이며, 인구는 약 938만 명이다.",
    "It was the best of times, it was the worst of times — 1859.",
    "  두 칸 들여쓰고   여러 칸 띄운 글  ",
    "\tdef f(x):\n\t\treturn x ** 2\n\n\n",
    "한자 漢字, 이모지 🙂👨‍👩‍👧, 옛한글 ᄒᆞᆫ글, 호환 ﬁ ½ ①",
    "e\u0301 와 \u00e9 는 다르다",
    "▁밑줄 같은 글자 ▁▁",
    "",
    " ",
    "\n",
]


@pytest.fixture(scope="session")
def reference(sentencepiece_model: bytes) -> sentencepiece.SentencePieceProcessor:
    return sentencepiece.SentencePieceProcessor(model_proto=sentencepiece_model)


@pytest.mark.parametrize("text", [t for t in TEXTS if "▁" not in t])
def test_ids_are_sentencepiece_s_and_the_text_comes_back(text: str, tokenizer, reference) -> None:
    ids = tokenizer.encode(text)
    assert ids == reference.encode(text)
    assert tokenizer.decode(ids) == text


@given(st.text(alphabet=st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="▁<|"), max_size=60))
@settings(max_examples=300)
def test_ids_are_sentencepiece_s_for_any_text(tokenizer, reference, text: str) -> None:
    assert tokenizer.encode(text) == reference.encode(text)


def test_special_tokens_have_the_first_ids_in_the_order_of_the_chat_format(tokenizer, reference) -> None:
    for i, token in enumerate(chat_format.SPECIAL_TOKENS):
        assert tokenizer.convert_tokens_to_ids(token) == i
        assert reference.piece_to_id(token) == i and reference.is_control(i)
        assert tokenizer.encode(token) == [i]
    assert (tokenizer.pad_token, tokenizer.bos_token, tokenizer.eos_token) == chat_format.SPECIAL_TOKENS[:3]
    assert set(chat_format.SPECIAL_TOKENS) <= set(tokenizer.all_special_tokens)
    assert len(tokenizer) == 640 == reference.get_piece_size()


def test_special_tokens_in_untrusted_text_stay_text(tokenizer, reference) -> None:
    text = "<|START|> <think>"
    ids = tokenizer.encode(text, split_special_tokens=True)
    assert ids == reference.encode(text)
    assert not set(ids) & set(range(len(chat_format.SPECIAL_TOKENS)))


def test_digits_are_tokens_of_their_own(tokenizer) -> None:
    assert [tokenizer.decode([i]) for i in tokenizer.encode("1859")] == ["1", "8", "5", "9"]


def test_parts_of_a_number_s_name_are_tokens_and_never_merge(tokenizer) -> None:
    assert [tokenizer.decode([i]) for i in tokenizer.encode("삼백사십칠")] == ["삼백", "사십", "칠"]
    pieces = tokenizer.convert_ids_to_tokens(tokenizer.encode("three hundred forty-seven"))
    assert pieces[:2] == ["three", "▁hundred"] and pieces[-2:] == ["-", "seven"]


def test_plain_text_gets_no_first_token_and_a_chat_exactly_one(tokenizer) -> None:
    assert tokenizer.bos_token_id not in tokenizer.encode("안녕")
    chat = [{"role": "user", "content": "347?"}]
    ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    assert ids[0] == tokenizer.bos_token_id and ids.count(tokenizer.bos_token_id) == 1
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert tokenizer.encode(text) == ids
    assert text.endswith("<|role_start|>assistant<|role_end|>\n<think>\n")


def test_saving_and_loading_keeps_ids_template_and_special_tokens(tokenizer, tokenizer_folder) -> None:
    loaded = AutoTokenizer.from_pretrained(tokenizer_folder)
    for text in TEXTS:
        assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.chat_template == tokenizer.chat_template == chat_format.chat_template()
    assert loaded.all_special_ids == tokenizer.all_special_ids


@pytest.mark.parametrize("vocab_size", [200, 5000])
def test_a_vocabulary_that_the_text_cannot_give_is_refused(vocab_size: int) -> None:
    with pytest.raises(TokenizerError, match=f"cannot make {vocab_size} pieces from this text"):
        train_sentencepiece(["가나다 abc", "라마바 def"], vocab_size)


def test_no_text_is_refused() -> None:
    with pytest.raises(TokenizerError, match="cannot make 300 pieces"):
        train_sentencepiece([], 300)
