"""Tri-70B's modelling code against a plain reference: training forward, cached generation, packing."""

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache

import trillion_model
from support.tiny_tri70b import WINDOW, published_weights, tiny_model
from support.tri70b_reference import reference_greedy, reference_logits
from trillion_model.tri70b import TrillionConfig, TrillionForCausalLM

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
@pytest.mark.parametrize(
    "wrong",
    [{"window": WINDOW - 1}, {"window": WINDOW + 1}, {"attn_scale": 0.0}],
    ids=["window - 1", "window + 1", "queries not scaled"],
)
def test_a_wrong_reference_is_seen(model, reference, wrong):
    ids = random_ids(LONG)
    assert logprob_difference(model(ids[None]).logits[0], reference_logits(model.config, reference, ids, **wrong)) > 0.1


@torch.no_grad()
def test_queries_are_not_scaled_where_the_configuration_says_so(reference):
    ids = random_ids(LONG)
    untuned = tiny_model(attn_temperature_tuning=False)
    expected = reference_logits(untuned.config, reference, ids, attn_scale=0.0)
    assert logprob_difference(untuned(ids[None]).logits[0], expected) < 1e-4


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


@torch.no_grad()
def test_bfloat16_stays_near_the_reference():
    bf16 = tiny_model().to(torch.bfloat16)
    ids = random_ids(LONG)
    expected = reference_logits(bf16.config, published_weights(bf16), ids)
    difference = (bf16(ids[None]).logits[0].double().log_softmax(-1) - expected.log_softmax(-1)).abs()
    assert difference.mean() < 0.05


@torch.no_grad()
@pytest.mark.parametrize("prefill_chunk_size", [None, WINDOW - 1, WINDOW + 5])
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
    for chunk in (1, 7, WINDOW, WINDOW + 1, 3 * WINDOW):
        cache = DynamicCache(config=model.config)
        logits = torch.cat(
            [model(part, past_key_values=cache, use_cache=True).logits for part in ids.split(chunk, dim=1)], dim=1
        )
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_local_layers_cache_a_window_and_global_ones_everything(model):
    cache = model(random_ids(1, LONG), use_cache=True).past_key_values
    assert [layer.keys.shape[-2] for layer in cache.layers] == [LONG if i in (3, 7) else WINDOW - 1 for i in range(8)]
    numbers = {(layer.keys.numel() + layer.values.numel()) // layer.keys.shape[-2] for layer in cache.layers}
    assert numbers == {model.config.cached_numbers}


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
    eager = tiny_model()
    eager.set_attn_implementation("eager")
    outputs = eager(ids, output_attentions=True)
    torch.testing.assert_close(outputs.logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    assert [weights[0, 0, -1].nonzero().min().item() for weights in outputs.attentions] == [
        0 if i in (3, 7) else LONG - WINDOW for i in range(8)
    ]


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


@torch.no_grad()
def test_logits_to_keep_computes_the_last_ones_only(model):
    ids = random_ids(2, 30)
    torch.testing.assert_close(model(ids, logits_to_keep=4).logits, model(ids).logits[:, -4:])


def test_auto_classes_save_and_load_the_published_layout(model, tmp_path):
    trillion_model.register()
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert isinstance(config, TrillionConfig)
    assert (config.model_type, config.architectures) == ("trillion", ["TrillionForCausalLM"])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert isinstance(loaded, TrillionForCausalLM)
    assert loaded.state_dict().keys() == model.state_dict().keys() == published_weights(model).keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    ids = random_ids(1, LONG)
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
