"""Trillion-7B on vLLM's Llama: tensor and pipeline parallel, LoRA, quantisation passed through, stock cache.

Source: Trillion 7B report, section 3.4; ``trillion_model.trillion.modeling_trillion`` is the plain form of the same
model. What is ours is where a layer normalises. The module that predicts the second next token belongs to training and
is not served.
"""

from collections.abc import Iterable

import torch
from vllm.config import VllmConfig
from vllm.distributed import get_pp_group
from vllm.model_executor.layers.layernorm import RMSNorm
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.layers.rotary_embedding import get_rope
from vllm.model_executor.layers.vocab_parallel_embedding import UnquantizedEmbeddingMethod
from vllm.model_executor.models.llama import LlamaAttention, LlamaDecoderLayer, LlamaForCausalLM
from vllm.platforms import current_platform

from trillion_model.architecture import Architecture
from trillion_model.trillion.configuration_trillion import Trillion7BConfig
from trillion_serve.plugins.vllm import adapters, cpu_seeds
from trillion_serve.plugins.vllm.weights import load_strictly


class Trillion7BAttention(LlamaAttention):
    """Multi-head attention with RoPE of the configuration's base."""

    def _init_rotary_emb(self, config: Trillion7BConfig, quant_config: QuantizationConfig | None) -> None:
        self.rotary_emb = get_rope(
            self.head_dim,
            max_position=self.max_position_embeddings,
            rope_parameters={"rope_type": "default", "rope_theta": config.rope_theta},
        )


class Trillion7BDecoderLayer(LlamaDecoderLayer):
    """One layer: a norm before and after each sublayer."""

    def __init__(self, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config, prefix, attn_layer_type=Trillion7BAttention)
        config = vllm_config.model_config.hf_config
        self.pre_mlp_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_mlp_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self, positions: torch.Tensor, hidden_states: torch.Tensor, residual: torch.Tensor | None
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Map (tokens, hidden) and the sum before it to the same; the layer's output is the sum of the two."""
        if residual is None:
            normed, residual = self.input_layernorm(hidden_states), hidden_states
        else:
            normed, residual = self.input_layernorm(hidden_states, residual)
        attended = self.post_attention_layernorm(self.self_attn(positions=positions, hidden_states=normed))
        normed, residual = self.pre_mlp_layernorm(attended, residual)
        return self.post_mlp_layernorm(self.mlp(normed)), residual


class Trillion7BForCausalLM(LlamaForCausalLM):
    """Trillion-7B for vLLM. Logits are float32, whatever the model's dtype."""

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__(vllm_config=vllm_config, prefix=prefix, layer_type=Trillion7BDecoderLayer)
        cpu_seeds.install()
        adapters.install(self, vllm_config, adapters.LLAMA)
        if get_pp_group().is_last_rank and isinstance(self.lm_head.quant_method, UnquantizedEmbeddingMethod):
            self.logits_processor.head_dtype = torch.float32
            if current_platform.is_cpu():
                # A GPU multiplies bfloat16 into float32; a CPU would convert the whole head at every step.
                self.lm_head.to(torch.float32)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a published checkpoint, see :func:`load_strictly`.

        Raises:
            CheckpointError: a tensor is unknown, missing, there twice or of the wrong shape.
        """
        return load_strictly(self, weights, Architecture.of(self.config).published_shapes())
