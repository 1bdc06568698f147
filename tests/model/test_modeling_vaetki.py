"""What VAETKI's modelling code does beside what that of every family does: balance of experts, attention on GPUs."""

import pytest
import torch

from support.random_weights import logprob_difference, random_ids
from support.tiny_vaetki import WINDOW, YARN, published_weights, tiny_config, tiny_model
from support.vaetki_reference import reference_logits
from trillion_model.layers.attention import attention_implementation
from trillion_model.layers.moe import mean_load_balancing_loss


@pytest.fixture(scope="module")
def model():
    return tiny_model()


def test_the_local_balance_loss_is_added_with_its_coefficient(model):
    ids = random_ids(2, 30)
    plain = model(ids, labels=ids)
    balanced = model(ids, labels=ids, output_router_logits=True)
    assert len(balanced.router_logits) == 6
    expected = mean_load_balancing_loss(balanced.router_logits, model.config.num_experts_per_tok)
    torch.testing.assert_close(balanced.aux_loss, expected)
    torch.testing.assert_close(balanced.loss, plain.loss + model.config.router_aux_loss_coef * expected)


@torch.no_grad()
@pytest.mark.parametrize("logits_to_keep", [0, 4])
def test_the_balance_loss_counts_every_token_but_padding(model, logits_to_keep):
    ids = random_ids(1, 30)
    padded = torch.cat([torch.zeros(1, 6, dtype=torch.long), ids], 1)
    switches = {"output_router_logits": True, "logits_to_keep": logits_to_keep}
    alone = model(ids, **switches).aux_loss
    torch.testing.assert_close(model(padded, attention_mask=(padded != 0).long(), **switches).aux_loss, alone)
    assert (model(padded, **switches).aux_loss - alone).abs() > 1e-3


@torch.no_grad()
@pytest.mark.parametrize("changes", [{"mscale": 1.0}, {"mscale_all_dim": 0.0}, {"factor": 3.9}, None], ids=str)
def test_global_layers_have_yarn(changes):
    """And a reference with one thing of it wrong, or with positions interpolated, disagrees."""
    model, ids = tiny_model(rope_scaling=YARN), random_ids(1, 100)
    wrong = model.config.replace(rope_scaling=YARN | changes if changes else None)
    exact, other = (reference_logits(config, published_weights(model), ids[0]) for config in (model.config, wrong))
    assert logprob_difference(model(ids).logits[0], exact) < 1e-4
    assert logprob_difference(model(ids).logits[0], other) > 1e-3


def test_a_cpu_gets_sdpa_and_a_gpu_flex_attention():
    assert attention_implementation("cpu") == "sdpa"
    assert attention_implementation(torch.device("cuda", 0)) == "flex_attention"


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_flex_attention_agrees_with_sdpa_and_has_gradients():
    ids = random_ids(2, 4 * WINDOW).cuda()
    shape = {"qk_nope_head_dim": 64, "v_head_dim": 64}
    sdpa, flex = (tiny_model(**shape).cuda() for _ in range(2))
    flex.set_attn_implementation(attention_implementation("cuda"))
    losses = [m(ids, labels=ids).loss for m in (sdpa, flex)]
    torch.testing.assert_close(losses[1], losses[0], atol=1e-4, rtol=1e-4)
    for loss in losses:
        loss.backward()
    torch.testing.assert_close(flex.lm_head.weight.grad, sdpa.lm_head.weight.grad, atol=1e-4, rtol=1e-3)


def test_a_config_gives_the_class_and_the_parameters_that_it_says():
    built = tiny_model(num_hidden_layers=2, layer_types=["full_attention", "sliding_attention"])
    assert built.config.layer_types == ["full_attention", "sliding_attention"]
    assert [layer.self_attn.sliding_window for layer in built.model.layers] == [None, WINDOW]
    assert sum(p.numel() for p in tiny_model().parameters()) == sum(
        tensor.numel() for tensor in published_weights(tiny_model()).values()
    )
    assert tiny_config().is_moe(0) is False
