"""The baseline: VAETKI for vLLM with a cache of every head's keys and values.

This is how a latent-attention model is served where an engine knows no latents: keys and values are projected up
before they are cached, values padded to the keys' size. Windows are kept. Everything but the cache is the model
that we serve, so that the two differ in nothing else.
"""

from typing import ClassVar

import torch
from vllm.config import CacheConfig
from vllm.model_executor.layers.attention import Attention
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.models.registry import ModelRegistry
from vllm.plugins import load_general_plugins
from vllm.transformers_utils.model_arch_config_convertor import MODEL_ARCH_CONFIG_CONVERTORS

from trillion_model.vaetki import VaetkiConfig
from trillion_serve.plugins.vllm.architecture import VaetkiArchitecture
from trillion_serve.plugins.vllm.vaetki import VaetkiAttention, VaetkiForCausalLM

ARCHITECTURE = "ExpandedVaetkiForCausalLM"


class ExpandedAttention(VaetkiAttention):
    """Caches keys and values of every head."""

    def make_attention(
        self,
        config: VaetkiConfig,
        scale: float,
        window: int | None,
        cache_config: CacheConfig | None,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> torch.nn.Module:
        """vLLM's ordinary attention layer."""
        return Attention(
            self.num_heads,
            config.qk_head_dim,
            scale,
            num_kv_heads=self.num_heads,
            cache_config=cache_config,
            quant_config=quant_config,
            per_layer_sliding_window=window,
            prefix=prefix,
        )

    def attend(self, q: torch.Tensor, latent: torch.Tensor, k_rope: torch.Tensor) -> torch.Tensor:
        """As the method it replaces, with keys and values expanded first."""
        nope, rope = self.sizes
        expanded = self.kv_b_proj(latent)[0].view(-1, self.num_heads, nope + self.v_head_dim)
        k_nope, v = expanded.split([nope, self.v_head_dim], dim=-1)
        k = torch.cat((k_nope, k_rope.expand(-1, self.num_heads, -1)), dim=-1)
        v = torch.nn.functional.pad(v, (0, nope + rope - self.v_head_dim))
        out = self.attn(q.flatten(1), k.flatten(1), v.flatten(1)).view(-1, self.num_heads, nope + rope)
        return out[..., : self.v_head_dim].flatten(1)


class ExpandedVaetkiForCausalLM(VaetkiForCausalLM):
    """VAETKI with an expanded cache."""

    attention_class: ClassVar[type[VaetkiAttention]] = ExpandedAttention


class ExpandedArchitecture(VaetkiArchitecture):
    """Tells vLLM that a head of the cache has the size of a key."""

    def is_deepseek_mla(self) -> bool:
        """No: the cache holds no latents."""
        return False

    def get_head_size(self) -> int:
        """Size of a key."""
        return self.hf_text_config.qk_head_dim


def register() -> None:
    """Make vLLM know the baseline in this process; the model we serve cannot be loaded beside it."""
    load_general_plugins()  # now, or our own plugin would have the last word on the architecture
    ModelRegistry.register_model(ARCHITECTURE, ExpandedVaetkiForCausalLM)
    MODEL_ARCH_CONFIG_CONVERTORS[VaetkiConfig.model_type] = ExpandedArchitecture
