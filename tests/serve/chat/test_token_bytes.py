"""The bytes of single tokens, joined, spell the text that they came from."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from trillion_serve.chat.token_bytes import token_bytes
from trillion_serve.chat.tokenizer import ChatTokenizer

TEXTS = st.text(alphabet="가녕뷁각́ a.<|🙂é\u0100�", max_size=20)


@pytest.mark.parametrize("name", ["tokenizer", "byte_level_tokenizer", "text_tags_tokenizer"])
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=TEXTS)
def test_the_bytes_of_tokens_spell_the_text(request: pytest.FixtureRequest, name: str, text: str) -> None:
    tokenizer: ChatTokenizer = request.getfixturevalue(name)
    spelt = b"".join(token_bytes(tokenizer, token) for token in tokenizer.encode(text))
    assert spelt.decode() == text


@pytest.mark.parametrize("name", ["tokenizer", "byte_level_tokenizer"])
def test_a_part_of_a_character_has_its_own_bytes(request: pytest.FixtureRequest, name: str) -> None:
    tokenizer: ChatTokenizer = request.getfixturevalue(name)
    parts = [token_bytes(tokenizer, token) for token in tokenizer.encode("뷁")]
    assert parts == [b"\xeb", b"\xb7", b"\x81"]
    assert [tokenizer.token_text(token) for token in tokenizer.encode("뷁")] == ["\ufffd"] * 3


def test_tokens_of_a_decoder_that_strips_have_their_spaces(doubling_tokenizer: ChatTokenizer) -> None:
    ids = doubling_tokenizer.encode("the fox 녕")
    assert b"".join(token_bytes(doubling_tokenizer, token) for token in ids) == " the fox 녕".encode()


def test_control_tokens_are_their_names(tokenizer: ChatTokenizer, byte_level_tokenizer: ChatTokenizer) -> None:
    for each in (tokenizer, byte_level_tokenizer):
        assert token_bytes(each, each.end_ids[0]) == b"<|END|>"
