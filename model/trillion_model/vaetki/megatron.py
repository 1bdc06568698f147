"""VAETKI as Megatron-Core names it, a row a kind of tensor; here "published" are the names of ``layout.py``.

Sources: the published training code of VAETKI (its layer specification and its bridge to Hugging Face names) for module
names, and the ``sharded_state_dict`` of Megatron-Core's ``TransformerBlock``, ``MLP`` and experts for how they are
stored. Quirks:

- the Transformer Engine specification fuses a norm into the matrix behind it: the query's and the latent's norms are
  ``linear_q_up_proj.layer_norm_weight`` and ``linear_kv_up_proj.layer_norm_weight``. The input norm stays apart,
  since two matrices (``linear_q_down_proj``, ``linear_kv_down_proj``) read it;
- the norm before a dense feed-forward is ``mlp.linear_fc1.layer_norm_weight``; before experts it is
  ``pre_mlp_layernorm.weight``, since router, experts and shared expert read it;
- the norm behind attention lives in it, ``self_attention.post_attn_layernorm``, but the one behind the feed-forward
  lies beside it, ``post_mlp_layernorm``;
- norms are zero-centred on both sides (``layernorm_zero_centered_gamma``), so their numbers are the same;
- gate and up are one ``linear_fc1``, the gate's rows first, whatever tensor parallelism saved it;
- a layer's experts are one stack over experts, and ``experts`` is said twice: ``mlp.experts.experts.linear_fc1``;
- heads of ``linear_q_up_proj`` are (no position | rotary), of ``linear_kv_up_proj`` (key | value), and rotary pairs
  are neighbours, which Megatron-Core's latent attention takes apart itself: as published, so no row moves;
- leading dense layers make ``moe_layer_freq`` a list, and Megatron then numbers its layers. Where all layers are
  alike, it saves ``decoder.layers.self_attention...`` as one stack over layers instead: :data:`STACKED`;
- the vocabulary is padded already, to a multiple of 128, so ``embedding.word_embeddings`` has ``vocab_size`` rows.
"""

from typing import TYPE_CHECKING

from trillion_model.layout import Layout, PerExpert, PerLayer, Renamed, Rows, Same

if TYPE_CHECKING:
    from trillion_model.vaetki import VaetkiConfig

_LAYER = "decoder.layers.{layer}."
_PUBLISHED = "model.layers.{layer}."

_ENDS = (
    Renamed("embedding.word_embeddings.weight", "model.embed_tokens.weight"),
    Renamed("decoder.final_layernorm.weight", "model.norm.weight"),
    Renamed("output_layer.weight", "lm_head.weight"),
)

_EVERY_LAYER = tuple(
    Renamed(_LAYER + name, _PUBLISHED + published)
    for name, published in {
        "input_layernorm.weight": "input_layernorm.weight",
        "self_attention.linear_q_down_proj.weight": "self_attn.q_a_proj.weight",
        "self_attention.linear_q_up_proj.layer_norm_weight": "self_attn.q_a_layernorm.weight",
        "self_attention.linear_q_up_proj.weight": "self_attn.q_b_proj.weight",
        "self_attention.linear_kv_down_proj.weight": "self_attn.kv_a_proj_with_mqa.weight",
        "self_attention.linear_kv_up_proj.layer_norm_weight": "self_attn.kv_a_layernorm.weight",
        "self_attention.linear_kv_up_proj.weight": "self_attn.kv_b_proj.weight",
        "self_attention.linear_proj.weight": "self_attn.o_proj.weight",
        "self_attention.post_attn_layernorm.weight": "post_attention_layernorm.weight",
        "post_mlp_layernorm.weight": "post_mlp_layernorm.weight",
    }.items()
)

_DENSE = (
    Renamed(_LAYER + "mlp.linear_fc1.layer_norm_weight", _PUBLISHED + "pre_mlp_layernorm.weight"),
    Rows(
        _LAYER + "mlp.linear_fc1.weight",
        parts=(_PUBLISHED + "mlp.gate_proj.weight", _PUBLISHED + "mlp.up_proj.weight"),
    ),
    Renamed(_LAYER + "mlp.linear_fc2.weight", _PUBLISHED + "mlp.down_proj.weight"),
)

_EXPERTS = (
    Renamed(_LAYER + "pre_mlp_layernorm.weight", _PUBLISHED + "pre_mlp_layernorm.weight"),
    Renamed(_LAYER + "mlp.router.weight", _PUBLISHED + "mlp.gate.weight"),
    PerExpert(
        _LAYER + "mlp.experts.experts.linear_fc1.weight",
        parts=(
            _PUBLISHED + "mlp.experts.{expert}.gate_proj.weight",
            _PUBLISHED + "mlp.experts.{expert}.up_proj.weight",
        ),
    ),
    PerExpert(
        _LAYER + "mlp.experts.experts.linear_fc2.weight",
        parts=(_PUBLISHED + "mlp.experts.{expert}.down_proj.weight",),
    ),
    Rows(
        _LAYER + "mlp.shared_experts.linear_fc1.weight",
        parts=(_PUBLISHED + "mlp.shared_experts.gate_proj.weight", _PUBLISHED + "mlp.shared_experts.up_proj.weight"),
    ),
    Renamed(_LAYER + "mlp.shared_experts.linear_fc2.weight", _PUBLISHED + "mlp.shared_experts.down_proj.weight"),
)

_LAYER_ROWS: tuple[Same | Rows | PerExpert, ...] = (*_EVERY_LAYER, *_DENSE, *_EXPERTS)

LAYOUT = Layout([*_ENDS, *_LAYER_ROWS])
"""Layers by number: what Megatron-Core saves of a model with leading dense layers, and what we write."""

STACKED = Layout([*_ENDS, *map(PerLayer, _LAYER_ROWS)])
"""All layers in one tensor, (layers, ...): what Megatron-Core saves of a model whose layers are all alike."""


def tensor_names(config: "VaetkiConfig", *, stacked: bool = False) -> list[str]:
    """Every Megatron-Core tensor that ``config`` calls for, as :data:`LAYOUT` or :data:`STACKED` names it."""
    first, *last = (row.name for row in _ENDS)
    kinds = [config.is_moe(layer) for layer in range(config.num_hidden_layers)]
    layers = [(*_EVERY_LAYER, *(_EXPERTS if moe else _DENSE)) for moe in kinds]
    if stacked:
        return [first, *(PerLayer(row).name for row in layers[0]), *last]
    return [first, *(row.name.format(layer=i) for i, rows in enumerate(layers) for row in rows), *last]
