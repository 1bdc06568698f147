"""Gravity's published checkpoint, a row a kind of tensor.

Quirks: experts are published one by one and stacked in the modules, gate rows before up rows, which is also what
Transformers does for DeepSeek-V3; ``e_score_correction_bias`` is float32 whatever the checkpoint's dtype. A query has
low-rank factors (``q_a_proj`` ...) or one projection (``q_proj``), by ``q_lora_rank``.
"""

from trillion_model.layout import Layout, PerExpert, Same

_LAYER = "model.layers.{layer}."

LAYOUT = Layout(
    [
        Same("model.embed_tokens.weight"),
        Same(_LAYER + "input_layernorm.weight"),
        Same(_LAYER + "self_attn.q_proj.weight"),
        Same(_LAYER + "self_attn.q_a_proj.weight"),
        Same(_LAYER + "self_attn.q_a_layernorm.weight"),
        Same(_LAYER + "self_attn.q_b_proj.weight"),
        Same(_LAYER + "self_attn.kv_a_proj_with_mqa.weight"),
        Same(_LAYER + "self_attn.kv_a_layernorm.weight"),
        Same(_LAYER + "self_attn.kv_b_proj.weight"),
        Same(_LAYER + "self_attn.o_proj.weight"),
        Same(_LAYER + "post_attention_layernorm.weight"),
        Same(_LAYER + "mlp.gate_proj.weight"),
        Same(_LAYER + "mlp.up_proj.weight"),
        Same(_LAYER + "mlp.down_proj.weight"),
        Same(_LAYER + "mlp.gate.weight"),
        Same(_LAYER + "mlp.gate.e_score_correction_bias"),
        PerExpert(
            _LAYER + "mlp.experts.gate_up_proj",
            parts=(
                _LAYER + "mlp.experts.{expert}.gate_proj.weight",
                _LAYER + "mlp.experts.{expert}.up_proj.weight",
            ),
        ),
        PerExpert(_LAYER + "mlp.experts.down_proj", parts=(_LAYER + "mlp.experts.{expert}.down_proj.weight",)),
        Same(_LAYER + "mlp.shared_experts.gate_proj.weight"),
        Same(_LAYER + "mlp.shared_experts.up_proj.weight"),
        Same(_LAYER + "mlp.shared_experts.down_proj.weight"),
        Same("model.norm.weight"),
        Same("lm_head.weight"),
    ]
)
