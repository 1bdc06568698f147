"""Named model shapes (VAETKI report, table 1; Trillion 7B report, table 2; the published configuration files)."""

from typing import TYPE_CHECKING

from trillion_model.errors import PresetError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


def names() -> tuple[str, ...]:
    """Every preset's name."""
    return tuple(_presets())


def get(name: str) -> "PreTrainedConfig":
    """Return the Hugging Face configuration of preset ``name``.

    Raises:
        PresetError: there is no such preset; the message lists those there are.
    """
    presets = _presets()
    if name not in presets:
        raise PresetError(f"there is no preset {name!r}; choose one of {', '.join(presets)}")
    return presets[name]


def _presets() -> "dict[str, PreTrainedConfig]":
    from trillion_model.gravity import GravityMoEConfig
    from trillion_model.tri70b import TrillionConfig
    from trillion_model.trillion import Trillion7BConfig
    from trillion_model.vaetki import VaetkiConfig

    return {
        "vaetki-100b-a10b": VaetkiConfig(),
        # Hidden, q_lora_rank and feed-forward sizes of the 20B model are not published; these give its 20B and 2B.
        "vaetki-20b-a2b": VaetkiConfig(
            hidden_size=2048,
            intermediate_size=9216,
            moe_intermediate_size=1024,
            num_hidden_layers=24,
            num_attention_heads=16,
            q_lora_rank=1024,
            first_k_dense_replace=1,
            max_position_embeddings=16_384,
        ),
        "vaetki-7b-a1b": VaetkiConfig(
            hidden_size=1536,
            intermediate_size=5760,
            moe_intermediate_size=960,
            num_hidden_layers=24,
            num_attention_heads=12,
            q_lora_rank=768,
            n_routed_experts=64,
            num_experts_per_tok=5,
            first_k_dense_replace=1,
            max_position_embeddings=16_384,
        ),
        # 512 and 64 are sizes that engines' latent attention knows; everything else is as small as the demo allows.
        "vaetki-nano": VaetkiConfig(
            vocab_size=768,
            hidden_size=128,
            intermediate_size=256,
            moe_intermediate_size=64,
            num_hidden_layers=6,
            num_attention_heads=2,
            q_lora_rank=64,
            qk_nope_head_dim=16,
            v_head_dim=32,
            n_routed_experts=8,
            num_experts_per_tok=2,
            first_k_dense_replace=1,
            sliding_window=32,
            initializer_range=0.02,
            global_position_scale=1.0,
            max_position_embeddings=2048,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        # As they are trained, with the module that predicts the second next token; exports lack it.
        "trillion-7b": Trillion7BConfig(num_nextn_predict_layers=1),
        # The report gives the proxy's size only; these are the 7B model's proportions at 1.8B.
        "trillion-1.8b": Trillion7BConfig(
            hidden_size=2048,
            intermediate_size=5504,
            num_hidden_layers=24,
            num_attention_heads=16,
            num_nextn_predict_layers=1,
        ),
        # 32 is the smallest head that vLLM's CPU attention has.
        "trillion-nano": Trillion7BConfig(
            vocab_size=768,
            hidden_size=128,
            intermediate_size=352,
            num_hidden_layers=4,
            num_attention_heads=4,
            max_position_embeddings=2048,
            num_nextn_predict_layers=1,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        ),
        "tri-70b": TrillionConfig(),
        # Its class says which of these sizes are published, and what makes the others likely.
        "gravity-16b": GravityMoEConfig(),
    }
