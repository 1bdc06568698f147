"""Tri-70B's published checkpoint, a row a kind of tensor.

It is in Llama's layout: every tensor has the same name and shape in the modules.
"""

from trillion_model.layout import Layout, Same

_LAYER = "model.layers.{layer}."

LAYOUT = Layout(
    [
        Same("model.embed_tokens.weight"),
        Same(_LAYER + "input_layernorm.weight"),
        Same(_LAYER + "self_attn.q_proj.weight"),
        Same(_LAYER + "self_attn.k_proj.weight"),
        Same(_LAYER + "self_attn.v_proj.weight"),
        Same(_LAYER + "self_attn.o_proj.weight"),
        Same(_LAYER + "post_attention_layernorm.weight"),
        Same(_LAYER + "mlp.gate_proj.weight"),
        Same(_LAYER + "mlp.up_proj.weight"),
        Same(_LAYER + "mlp.down_proj.weight"),
        Same("model.norm.weight"),
        Same("lm_head.weight"),
    ]
)
