"""Trillion-7B's published checkpoint, a row a kind of tensor.

Published names are Llama's, but for the norms, of which a layer has four: they are spelt as VAETKI spells them. Quirks:
``post_attention_layernorm`` follows attention before the sum, where Llama's layout has under that name the norm that
precedes the feed-forward; and the module that predicts the second next token (``mtp``) is trained and not published.
"""

from trillion_model.layout import Dropped, Layout, Same

_LAYER = "model.layers.{layer}."
_BLOCK = (
    "input_layernorm.weight",
    "self_attn.q_proj.weight",
    "self_attn.k_proj.weight",
    "self_attn.v_proj.weight",
    "self_attn.o_proj.weight",
    "post_attention_layernorm.weight",
    "pre_mlp_layernorm.weight",
    "mlp.gate_proj.weight",
    "mlp.up_proj.weight",
    "mlp.down_proj.weight",
    "post_mlp_layernorm.weight",
)

LAYOUT = Layout(
    [
        Same("model.embed_tokens.weight"),
        *(Same(_LAYER + name) for name in _BLOCK),
        Same("model.norm.weight"),
        Same("lm_head.weight"),
        Dropped("mtp.hidden_layernorm.weight"),
        Dropped("mtp.embedding_layernorm.weight"),
        Dropped("mtp.projection.weight"),
        *(Dropped("mtp.layer." + name) for name in _BLOCK),
        Dropped("mtp.norm.weight"),
    ]
)
