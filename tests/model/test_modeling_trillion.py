"""What Trillion-7B's modelling code does beside what that of every family does: packing, and the second next token."""

import pytest
import torch
import torch.nn.functional as F
from transformers import AutoModelForCausalLM

import trillion_model
from support.random_weights import logprob_difference, random_ids
from support.tiny_trillion import published_weights, tiny_model
from support.trillion_reference import reference_logits, reference_mtp_logits
from trillion_model.trillion.modeling_trillion import mtp_loss, without_mtp

LONG = 83


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def reference(model):
    return published_weights(model)


@pytest.fixture(scope="module")
def mtp_weights(model):
    return {
        name.removeprefix("mtp."): tensor.double()
        for name, tensor in model.state_dict().items()
        if name.startswith("mtp.")
    }


@torch.no_grad()
def test_the_long_context_base_reaches_the_rotation():
    long = tiny_model(rope_theta=1_000_000.0)
    ids = random_ids(LONG)
    expected = reference_logits(long.config, published_weights(long), ids)
    assert logprob_difference(long(ids[None]).logits[0], expected) < 1e-4


@torch.no_grad()
def test_heads_may_share_keys():
    shared = tiny_model(num_attention_heads=4, num_key_value_heads=2, head_dim=32)
    ids = random_ids(LONG)
    expected = reference_logits(shared.config, published_weights(shared), ids)
    assert logprob_difference(shared(ids[None]).logits[0], expected) < 1e-4


class TestPackedDocuments:
    """The report's cross-lingual document attention, and its opposite, are a matter of positions only."""

    FIRST, SECOND = 40, 25

    @pytest.fixture
    def documents(self):
        return random_ids(1, self.FIRST, seed=3), random_ids(1, self.SECOND, seed=4)

    @pytest.fixture
    def apart(self):
        return torch.cat([torch.arange(self.FIRST), torch.arange(self.SECOND)])[None]

    @torch.no_grad()
    def test_positions_that_run_on_let_the_second_see_the_first(self, model, reference, documents):
        row = torch.cat(documents, 1)
        seeing = model(row, position_ids=torch.arange(row.shape[1])[None]).logits[0]
        assert logprob_difference(seeing, reference_logits(model.config, reference, row[0])) < 1e-4
        assert logprob_difference(seeing[self.FIRST :], model(documents[1]).logits[0].double()) > 0.01

    @torch.no_grad()
    def test_the_second_next_token_stays_within_a_document(self, model, documents, apart):
        row = torch.cat(documents, 1)
        states = model.model(row, position_ids=apart).last_hidden_state
        packed = mtp_loss(model, states, row, row, position_ids=apart)
        losses = [mtp_loss(model, model.model(ids).last_hidden_state, ids, ids) for ids in documents]
        weights = [self.FIRST - 2, self.SECOND - 2]
        expected = sum(loss * n for loss, n in zip(losses, weights, strict=True)) / sum(weights)
        torch.testing.assert_close(packed, expected)


class TestTheSecondNextToken:
    @torch.no_grad()
    def test_its_loss_agrees_with_the_reference(self, model, reference, mtp_weights):
        ids = random_ids(2, 30)
        loss = model(ids, labels=ids, output_mtp_loss=True).mtp_loss
        logits = [reference_mtp_logits(model.config, reference, mtp_weights, row)[:-1] for row in ids]
        expected = F.cross_entropy(torch.cat(logits), ids[:, 2:].flatten())
        assert abs(loss.item() - expected.item()) < 1e-5
        shifted = F.cross_entropy(torch.cat(logits), ids[:, 1:-1].flatten())
        assert abs(loss.item() - shifted.item()) > 0.01

    @torch.no_grad()
    def test_it_is_added_with_its_coefficient(self, model):
        ids = random_ids(2, 30)
        plain = model(ids, labels=ids)
        both = model(ids, labels=ids, output_mtp_loss=True)
        assert plain.mtp_loss is None
        torch.testing.assert_close(both.loss, plain.loss + 0.2 * both.mtp_loss)

    @torch.no_grad()
    def test_labels_that_are_ignored_are_not_predicted(self, model):
        ids = random_ids(1, 30)
        labels = ids.clone()
        labels[:, :20] = -100
        states = model.model(ids).last_hidden_state
        mtp = mtp_loss(model, states, ids, labels)
        several = torch.stack(
            [mtp_loss(model, states, ids, torch.where(torch.arange(30) == p, ids, -100)) for p in range(20, 30)]
        )
        torch.testing.assert_close(mtp, several.mean())
        assert mtp_loss(model, states, ids, torch.full_like(ids, -100)) == 0

    @torch.no_grad()
    @pytest.mark.parametrize("side", ["left", "right"])
    def test_padding_changes_nothing(self, model, side):
        ids, padding = random_ids(1, 30), torch.zeros(1, 6, dtype=torch.long)
        padded = torch.cat([padding, ids] if side == "left" else [ids, padding], 1)
        mask = (padded != 0).long()
        labels = padded.masked_fill(mask == 0, -100)
        loss = model(padded, labels=labels, attention_mask=mask, output_mtp_loss=True).mtp_loss
        torch.testing.assert_close(loss, model(ids, labels=ids, output_mtp_loss=True).mtp_loss)

    def test_it_trains_the_shared_embedding_and_head(self):
        trained = tiny_model().train()
        ids = random_ids(2, 30)
        states = trained.model(ids).last_hidden_state
        mtp_loss(trained, states.detach(), ids, ids).backward()
        touched = {name for name, p in trained.named_parameters() if p.grad is not None}
        assert {"model.embed_tokens.weight", "lm_head.weight"} < touched
        assert {name for name in touched if name.startswith("model.layers")} == set()
        assert {name for name, _ in trained.named_parameters() if name.startswith("mtp.")} < touched

    def test_a_model_without_the_module_says_how_to_build_one(self):
        ids = random_ids(1, 10)
        with pytest.raises(ValueError, match="num_nextn_predict_layers=1"):
            tiny_model(num_nextn_predict_layers=0)(ids, labels=ids, output_mtp_loss=True)

    @torch.no_grad()
    def test_dropping_it_shares_all_else(self, model):
        published = without_mtp(model)
        ids = random_ids(1, LONG)
        assert published.config.num_nextn_predict_layers == 0
        assert published.mtp is None
        assert torch.equal(published(ids).logits, model(ids).logits)
        assert published.lm_head.weight.data_ptr() == model.lm_head.weight.data_ptr()


def test_what_is_published_saves_and_loads_without_it(model, tmp_path):
    trillion_model.register()
    without_mtp(model).save_pretrained(tmp_path)
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert loaded.mtp is None
    assert loaded.state_dict().keys() == published_weights(model).keys()
    ids = random_ids(1, LONG)
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
