"""What Tri-70B does beside what the modelling code of every family does: scaled queries, layers without positions."""

import torch

from support.random_weights import logprob_difference, random_ids
from support.tiny_tri70b import WINDOW, published_weights, tiny_model
from support.tri70b_reference import reference_logits


@torch.no_grad()
def test_queries_are_not_scaled_where_the_configuration_says_so():
    ids = random_ids(5 * WINDOW)
    untuned = tiny_model(attn_temperature_tuning=False)
    weights = published_weights(untuned)
    logits = untuned(ids[None]).logits[0]
    assert logprob_difference(logits, reference_logits(untuned.config, weights, ids, attn_scale=0.0)) < 1e-4
    assert logprob_difference(logits, reference_logits(untuned.config, weights, ids)) > 0.1


@torch.no_grad()
def test_global_layers_know_nothing_of_positions_and_local_ones_do():
    # Without tuned queries a global layer's last query sees a set of keys, whatever their order.
    ids = random_ids(1, 12)
    shuffled = torch.cat([ids[:, :-1].flip(1), ids[:, -1:]], 1)
    one_layer = {"num_hidden_layers": 1, "attn_temperature_tuning": False}
    for frequency, same in ((1, True), (2, False)):
        built = tiny_model(**one_layer, global_attention_freq=frequency)
        last, last_of_shuffled = built(ids).logits[:, -1], built(shuffled).logits[:, -1]
        assert torch.allclose(last, last_of_shuffled, atol=1e-5) is same


def test_its_files_hold_its_modules_tensors_as_they_stand():
    model = tiny_model()
    assert published_weights(model).keys() == model.state_dict().keys()
