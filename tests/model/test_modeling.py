"""What the modelling code of every family does that is written here, against a plain reference of each.

A family's own file beside this one has what only that family does.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

import trillion_model
from support import tiny_tri70b, tiny_trillion, tiny_vaetki, tri70b_reference, trillion_reference, vaetki_reference
from support.random_weights import logprob_difference, published_weights, random_ids
from trillion_model import FAMILIES

WINDOW = 16
LONG = 5 * WINDOW + 3


@dataclass(frozen=True)
class Family:
    """A family as tests read it.

    Attributes:
        tiny: makes small models of it.
        reference: the same written out plainly.
        wrong: what the reference can be told to do wrongly, and the difference at least that it makes.
        logits: what dtype a bfloat16 model's logits have.
        losses: switches of its forward for losses of its own, so that every parameter has a gradient.
    """

    tiny: ModuleType
    reference: ModuleType
    wrong: dict[str, tuple[dict[str, Any], float]]
    logits: torch.dtype = torch.float32
    losses: dict[str, bool] = field(default_factory=dict)


WINDOWS = {f"window of {window}": {"window": window} for window in (WINDOW - 1, WINDOW + 1)}
TESTED = {
    "vaetki": Family(
        tiny_vaetki,
        vaetki_reference,
        wrong={name: (window, 0.01) for name, window in WINDOWS.items()},
    ),
    "trillion": Family(
        tiny_trillion,
        trillion_reference,
        wrong={
            "another RoPE base": ({"theta": 1_000_000.0}, 0.01),
            "no norm after attention": ({"without": "post_attention_layernorm"}, 0.01),
            "no norm after feed-forward": ({"without": "post_mlp_layernorm"}, 0.01),
        },
        losses={"output_mtp_loss": True},
    ),
    "tri70b": Family(
        tiny_tri70b,
        tri70b_reference,
        wrong={name: (window, 0.1) for name, window in WINDOWS.items()}
        | {"queries not scaled": ({"attn_scale": 0.0}, 0.1)},
        logits=torch.bfloat16,
    ),
}


CONTROLS = [
    pytest.param(name, wrong, least, id=f"{name}-{what}")
    for name, family in TESTED.items()
    for what, (wrong, least) in family.wrong.items()
]


@pytest.fixture(scope="module", params=TESTED)
def family(request) -> Family:
    return TESTED[request.param]


@pytest.fixture(scope="module")
def model(family):
    return family.tiny.tiny_model()


@pytest.fixture(scope="module")
def reference(family, model) -> Callable[..., torch.Tensor]:
    """Logits (seq, vocab) of a sequence, by the same weights written out plainly."""
    weights = published_weights(model)
    return lambda ids, **wrong: family.reference.reference_logits(model.config, weights, ids, **wrong)


def test_every_family_is_here_but_for_the_one_whose_classes_are_transformers_own():
    assert TESTED.keys() == FAMILIES.keys() - {"gravity"}


@torch.no_grad()
def test_training_forward_agrees_with_the_reference(model, reference):
    ids = random_ids(2, LONG)
    logits = model(ids).logits
    for row in range(2):
        assert logprob_difference(logits[row], reference(ids[row])) < 1e-4


@torch.no_grad()
@pytest.mark.parametrize(("family", "wrong", "least"), CONTROLS, indirect=["family"])
def test_a_reference_with_one_thing_wrong_disagrees(model, reference, wrong, least):
    ids = random_ids(LONG)
    assert logprob_difference(model(ids[None]).logits[0], reference(ids, **wrong)) > least


@torch.no_grad()
def test_bfloat16_stays_near_the_reference(family):
    # Rounding may route a token to other experts, so the bound is on the mean rather than on the worst token.
    bf16 = family.tiny.tiny_model().to(torch.bfloat16)
    ids = random_ids(LONG)
    logits = bf16(ids[None]).logits[0]
    expected = family.reference.reference_logits(bf16.config, published_weights(bf16), ids)
    assert logits.dtype == family.logits
    assert (logits.double().log_softmax(-1) - expected.log_softmax(-1)).abs().mean() < 0.05


@torch.no_grad()
@pytest.mark.parametrize("prefill_chunk_size", [None, 1, WINDOW - 1, WINDOW, WINDOW + 5])
def test_cached_generation_agrees_with_the_reference(family, model, prefill_chunk_size):
    prompt = random_ids(LONG)
    out = model.generate(
        prompt[None], max_new_tokens=6, do_sample=False, eos_token_id=None, prefill_chunk_size=prefill_chunk_size
    )
    expected = family.reference.reference_greedy(model.config, published_weights(model), prompt, 6)
    assert out[0].tolist() == expected.tolist()


@torch.no_grad()
def test_cached_logits_equal_uncached_ones_whatever_the_chunks(model):
    ids = random_ids(1, LONG)
    expected = model(ids).logits
    for chunk in (1, 7, WINDOW - 1, WINDOW, WINDOW + 1, 3 * WINDOW):
        cache = model.model.cache_class(config=model.config)
        logits = torch.cat(
            [model(part, past_key_values=cache, use_cache=True).logits for part in ids.split(chunk, dim=1)], dim=1
        )
        torch.testing.assert_close(logits, expected, atol=1e-4, rtol=1e-4)


@torch.no_grad()
def test_local_layers_cache_a_window_and_global_ones_everything(model):
    cache = model(random_ids(1, LONG), use_cache=True).past_key_values
    local = [model.config.is_local(layer) for layer in range(model.config.num_hidden_layers)]
    assert [layer.keys.shape[-2] for layer in cache.layers] == [WINDOW - 1 if yes else LONG for yes in local]
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
def test_eager_and_sdpa_attention_agree_and_see_what_a_layer_may_see(family, model):
    ids = random_ids(1, LONG)
    eager = family.tiny.tiny_model()
    eager.set_attn_implementation("eager")
    outputs = eager(ids, output_attentions=True)
    torch.testing.assert_close(outputs.logits, model(ids).logits, atol=1e-4, rtol=1e-4)
    first_seen = [weights[0, 0, -1].nonzero().min().item() for weights in outputs.attentions]
    local = [model.config.is_local(layer) for layer in range(model.config.num_hidden_layers)]
    assert first_seen == [LONG - WINDOW if yes else 0 for yes in local]
    assert {tuple(weights.shape) for weights in outputs.attentions} == {
        (1, model.config.num_attention_heads, LONG, LONG)
    }


def test_gradient_checkpointing_gives_the_same_gradients(family):
    ids = random_ids(2, 40)
    gradients = []
    for checkpointing in (False, True):
        trained = family.tiny.tiny_model().train()
        if checkpointing:
            trained.gradient_checkpointing_enable()
        trained(ids, labels=ids, use_cache=False, **family.losses).loss.backward()
        gradients.append({name: p.grad for name, p in trained.named_parameters()})
    assert all(g is not None for g in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient)


@torch.no_grad()
def test_logits_to_keep_computes_the_last_ones_only(model):
    ids = random_ids(2, 30)
    torch.testing.assert_close(model(ids, logits_to_keep=4).logits, model(ids).logits[:, -4:])


@pytest.mark.parametrize("inputs", [{}, {"input_ids": random_ids(1, 4), "inputs_embeds": torch.zeros(1, 4, 64)}])
def test_tokens_or_their_embeddings_are_given_and_not_both(model, inputs):
    with pytest.raises(ValueError, match="exactly one of input_ids and inputs_embeds"):
        model.model(**inputs)


def test_auto_classes_save_and_load_exactly(model, tmp_path):
    trillion_model.register()
    model.save_pretrained(tmp_path)
    config = AutoConfig.from_pretrained(tmp_path)
    assert type(config) is type(model.config)
    assert (config.model_type, config.architectures) == (model.config.model_type, [type(model).__name__])
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert type(loaded) is type(model)
    assert loaded.state_dict().keys() == model.state_dict().keys()
    for name, tensor in model.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], tensor), name
    ids = random_ids(1, LONG)
    assert torch.equal(loaded.eval()(ids).logits, model(ids).logits)
