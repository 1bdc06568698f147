"""What is learned of a chat, and what the loss of a step is."""

import json
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from support.tiny_vaetki import tiny_model
from trillion_training.config import Losses
from trillion_training.data.encode import encode_chats, encode_text
from trillion_training.data.packing import IGNORED, Document, collate
from trillion_training.errors import DataError
from trillion_training.losses import backward

THINKING = {
    "id": "a",
    "messages": [
        {"role": "user", "content": "347 한글로 어떻게 읽나요?"},
        {"role": "assistant", "reasoning": "300=삼백\n40=사십\n7=칠", "content": "삼백사십칠"},
    ],
}
DIRECT = {
    "id": "b",
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "What is 1 + 2?"},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "And 2 + 2?"},
        {"role": "assistant", "content": "4"},
    ],
}


def write(path: Path, *records: object) -> Path:
    path.write_text("".join(json.dumps(r, ensure_ascii=False) + "\n" for r in records), encoding="utf-8")
    return path


def learned_text(document: Document, tokenizer) -> str:
    return tokenizer.decode([i for i, learned in zip(document.ids, document.learned, strict=True) if learned])


def test_only_what_the_assistant_says_is_learned(tmp_path: Path, tokenizer) -> None:
    thinking, direct = encode_chats(write(tmp_path / "chats.jsonl", THINKING, DIRECT), tokenizer, 200)
    assert learned_text(thinking, tokenizer) == "300=삼백\n40=사십\n7=칠\n</think>\n\n삼백사십칠<|END|>"
    assert tokenizer.decode(thinking.ids).endswith(
        "<|role_start|>assistant<|role_end|>\n<think>\n300=삼백\n40=사십\n7=칠\n</think>\n\n삼백사십칠<|END|>\n"
    )
    assert learned_text(direct, tokenizer) == "3<|END|>4<|END|>"
    assert "<think>\n\n</think>\n\n4<|END|>" in tokenizer.decode(direct.ids)


def test_the_learned_tokens_become_the_targets_of_the_tokens_before_them(tmp_path: Path, tokenizer) -> None:
    (document,) = encode_chats(write(tmp_path / "chats.jsonl", THINKING), tokenizer, 200)
    batch = collate([[document, document]], pad_id=tokenizer.pad_token_id)
    predicted = batch.targets[batch.targets != IGNORED].tolist()
    once = [i for i, learned in zip(document.ids, document.learned, strict=True) if learned]
    assert predicted == once + once
    first = document.learned.index(True)
    assert batch.targets[0, first - 1] == document.ids[first]
    assert batch.targets[0, first - 2] == IGNORED


def test_all_of_a_text_is_learned_and_long_ones_are_cut(tmp_path: Path, tokenizer) -> None:
    file = write(tmp_path / "texts.jsonl", {"text": "347=삼백사십칠"}, {"text": "1, 2, 3, 4, 5 <think>"})
    short, *rest = encode_text(file, tokenizer, 10)
    assert tokenizer.decode(short.ids) == "<|START|>347=삼백사십칠<|END|>"
    assert all(all(d.learned) and len(d.ids) <= 10 for d in [short, *rest])
    joined = [i for d in rest for i in d.ids]
    assert tokenizer.decode(joined) == "<|START|>1, 2, 3, 4, 5 <think><|END|>"
    assert tokenizer.convert_tokens_to_ids("<think>") not in joined


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        ("{", r"not a Chat: Invalid JSON"),
        ('{"id": "x"}', "not a Chat: messages: Field required"),
        ('{"id": "x", "messages": []}', "not a Chat: messages: List should have at least 1 item"),
        ('{"id": "x", "messages": [{"role": "robot", "content": ""}]}', r"messages\.0\.role: Input should be"),
        ('{"id": "x", "messages": [{"role": "user", "content": "?"}]}', "chat 'x' must end with an assistant message"),
    ],
)
def test_a_wrong_line_is_named(line: str, problem: str, tmp_path: Path, tokenizer) -> None:
    file = tmp_path / "chats.jsonl"
    file.write_text(json.dumps(THINKING) + "\n\n" + line + "\n")
    with pytest.raises(DataError, match=rf"chats\.jsonl:\d: .*{problem}") as caught:
        encode_chats(file, tokenizer, 200)
    assert caught.value.path == file
    assert caught.value.line == 3


def test_a_chat_longer_than_a_row_is_named(tmp_path: Path, tokenizer) -> None:
    with pytest.raises(DataError, match=r"chat 'a' has \d+ tokens, but batching\.length is 20"):
        encode_chats(write(tmp_path / "chats.jsonl", THINKING), tokenizer, 20)


def test_text_that_is_not_utf8_is_refused(tmp_path: Path, tokenizer) -> None:
    (tmp_path / "texts.jsonl").write_bytes("한글".encode("cp949"))
    with pytest.raises(DataError, match=r"texts\.jsonl: is not UTF-8 text"):
        encode_text(tmp_path / "texts.jsonl", tokenizer, 20)


def chats(seed: int) -> list[list[Document]]:
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for lengths in ((9, 5), (11,), (4, 6)):
        ids = [torch.randint(20, 300, (n,), generator=generator).tolist() for n in lengths]
        rows.append([Document(i, [k > 1 for k in range(len(i))]) for i in ids])
    return rows


def test_a_step_s_loss_is_the_mean_over_learned_tokens_each_document_alone() -> None:
    model, rows = tiny_model(), chats(0)
    expected = []
    for document in (d for row in rows for d in row):
        logits = model(torch.tensor([document.ids])).logits[0]
        expected.extend(
            F.cross_entropy(logits[i - 1], torch.tensor(document.ids[i])) for i in range(2, len(document.ids))
        )
    losses = backward(model, [collate(rows, pad_id=0)], Losses(local_balance=0, global_balance=0))
    assert losses.next_token == pytest.approx(float(torch.stack(expected).mean()), rel=1e-5)


def test_micro_batches_add_up_to_the_whole_batch() -> None:
    rows, none = chats(1), Losses(local_balance=0, global_balance=0)
    whole, parts = tiny_model(), tiny_model()
    a = backward(whole, [collate(rows, pad_id=0)], none)
    b = backward(parts, [collate(rows[:1], pad_id=0), collate(rows[1:], pad_id=0)], none)
    assert a.next_token == pytest.approx(b.next_token, rel=1e-6)
    for p, q in zip(whole.parameters(), parts.parameters(), strict=True):
        if p.grad is not None:
            torch.testing.assert_close(p.grad, q.grad, atol=1e-6, rtol=1e-3)


def test_balance_losses_move_the_router_and_weigh_what_the_recipe_says() -> None:
    def router_gradient(config: Losses) -> torch.Tensor:
        model = tiny_model()
        backward(model, [collate(chats(2), pad_id=0)], config)
        return model.model.layers[1].mlp.gate.weight.grad

    none = router_gradient(Losses(local_balance=0, global_balance=0))
    local = router_gradient(Losses(local_balance=1, global_balance=0)) - none
    wide = router_gradient(Losses(local_balance=0, global_balance=1)) - none
    both = router_gradient(Losses(local_balance=1, global_balance=2)) - none
    assert local.abs().max() > 1e-4
    # With one micro-batch the step is the micro-batch, and the two losses are the same.
    torch.testing.assert_close(local, wide, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(both, 3 * local, atol=1e-5, rtol=1e-3)
