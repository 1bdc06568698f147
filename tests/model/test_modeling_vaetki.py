"""The modelling code against a plain reference: training forward, cached generation, packing, losses."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import trillion_model
from support.tiny_vaetki import WINDOW, published_weights, tiny_config, tiny_model
from support.vaetki_reference import reference_greedy, reference_logits
from trillion_model.cache import LatentCache
from trillion_model.layers.attention import attention_implementation
from trillion_model.layers.moe import mean_load_balancing_loss
from trillion_model.vaetki import VaetkiConfig, VaetkiForCausalLM

LONG = 5 * WINDOW + 3


@pytest.fixture(scope="module")
def model():
    return tiny_model()


@pytest.fixture(scope="module")
def reference(model):
    return published_weights(model)


def random_ids(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randint(3, 320, shape, generator=torch.Generator().manual_seed(seed))


def logprob_difference(logits: torch.Tensor, expected: torch.Tensor) -> float:
    return (logits.double().log_softmax(-1) - expected.log_softmax(-1)).abs().max().item()


@torch.no_grad()
def test_training_forward_agrees_with_the_reference(model, reference):
    ids = random_ids(2, LONG)
    logits = model(ids).logits
    for row in range(2):
        assert logprob_difference(logits[row], reference_logits(model.config, reference, ids[row])) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize("off_by", [-1, 1])
def test_a_window_wrong_by_one_is_seen(model, reference, off_by):
    ids = random_ids(LONG)
    wrong = reference_logits(model.config, reference, ids, window=WINDOW + off_by)
    assert logprob_difference(model(ids[None]).logits[0], wrong) > 1e-2


@torch.no_grad()
def test_bfloat16_stays_near_the_reference(reference):
    # Routing may change under rounding, so the bound is on the mean rather than on the worst token.
    bf16 = tiny_model().to(torch.bfloat16)
    ids = random_ids(LONG)
    logits = bf16(ids[None]).logits[0]
    expected = reference_logits(bf16.config, published_weights(bf16), ids)
    assert logits.dtype == torch.float32
    difference = (logits.double().log_softmax(-1) - expected.log_softmax(-1)).abs()
    assert difference.mean() < 0.05


@torch.no_grad()
@pytest.mark.parametrize("prefill_chunk_size", [None, 1, WINDOW - 1, WINDOW, WINDOW + 5])
def test_cached_generation_agrees_with_the_reference(model, reference, prefill_chunk_size):
    prompt = random_ids(LONG)
    out = model.generate(
        prompt[None], max_new_tokens=6, do_sample=False, eos_token_id=None, prefill_chunk_size=prefill_chunk_size
    )
    assert out[0].tolist() == reference_greedy(model.config, reference, prompt, 6).tolist()


@torch.no_grad()
def test_cached_logits_equal_uncached_ones_whatever_the_chunks(model):
    ids = random_ids(1, LONG)
    expected = model(ids).logits
    for chunk in (1, 7, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW):
        cache = LatentCache(model.config)
        logits = torch.cat(
            [model(part, past_key_values=cache, use_cache=True).logits for part in ids.split(chunk, dim=1)], dim=1
        )
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_left_padding_changes_nothing(model):
    short, long = random_ids(1, 20, seed=1), random_ids(1, 50, seed=2)
    padded = torch.cat([torch.cat([torch.zeros(1, 30, dtype=torch.long), short], 1), long])
    mask = (torch.arange(50) >= torch.tensor([[30], [0]])).long()
    options = {"max_new_tokens": 5, "do_sample": False, "eos_token_id": None}
    together = model.generate(padded, attention_mask=mask, **options)
    assert together[0, 50:].tolist() == model.generate(short, **options)[0, 20:].tolist()
    assert together[1, 50:].tolist() == model.generate(long, **options)[0, 50:].tolist()


@torch.no_grad()
def test_packed_documents_do_not_see_each_other(model):
    first, second = random_ids(1, 40, seed=3), random_ids(1, 25, seed=4)
    position_ids = torch.cat([torch.arange(40), torch.arange(25)])[None]
    packed = model(torch.cat([first, second], 1), position_ids=position_ids).logits
    torch.testing.assert_close(packed[:, :40], model(first).logits, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(packed[:, 40:], model(second).logits, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_eager_and_sdpa_attention_agree(model):
    ids = random_ids(1, LONG)
    expected = model(ids).logits
    eager = tiny_model()
    eager.set_attn_implementation("eager")
    outputs = eager(ids, output_attentions=True)
    torch.testing.assert_close(outputs.logits, expected, atol=1e-4, rtol=1e-4)
    local_weights = outputs.attentions[0][0, 0]
    assert local_weights[-1].nonzero().min() == LONG - WINDOW


def test_gradient_checkpointing_gives_the_same_gradients():
    ids = random_ids(2, 40)
    gradients = []
    for checkpointing in (False, True):
        trained = tiny_model().train()
        if checkpointing:
            trained.gradient_checkpointing_enable()
        trained(ids, labels=ids, use_cache=False).loss.backward()
        gradients.append({name: p.grad for name, p in trained.named_parameters()})
    assert all(g is not None for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


def test_the_local_balance_loss_is_added_with_its_coefficient(model):
    ids = random_ids(2, 30)
    plain = model(ids, labels=ids)
    balanced = model(ids, labels=ids, output_router_logits=True)
    assert len(balanced.router_logits) == 6
    expected = mean_load_balancing_loss(balanced.router_logits, model.config.num_experts_per_tok)
    torch.testing.assert_close(balanced.aux_loss, expected)
    torch.testing.assert_close(balanced.loss, plain.loss + model.config.router_aux_loss_coef * expected)


@torch.no_grad()
def test_logits_to_keep_computes_the_last_ones_only(model):
    ids = random_ids(2, 30)
    torch.testing.assert_close(model(ids, logits_to_keep=4).logits, model(ids).logits[:, -4:])


def test_auto_classes_save_and_load_the_published_layout(model, tmp_path):
    trillion_model.register()
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, VaetkiConfig)
    assert config.architectures == ["VaetkiForCausalLM"]
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, VaetkiForCausalLM)
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    ids = random_ids(1, LONG)
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)


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
