"""VAETKI on vLLM's layers: tensor, pipeline and expert parallel, quantisation passed through.

Source: VAETKI report, section 2.1; ``trillion_model.vaetki.modeling_vaetki`` is the plain form of the same model.
Every layer caches latents only, and local layers ask vLLM for a cache of their window.
"""

import functools
from collections.abc import Iterable
from typing import Any, ClassVar

import torch
from torch import nn
from transformers import PreTrainedConfig
from vllm.compilation.decorators import support_torch_compile
from vllm.config import CacheConfig, VllmConfig, get_current_vllm_config
from vllm.distributed import get_pp_group, get_tensor_model_parallel_world_size
from vllm.logger import init_logger
from vllm.model_executor.layers.activation import SiluAndMul
from vllm.model_executor.layers.fused_moe import FusedMoEFactory
from vllm.model_executor.layers.layernorm import GemmaRMSNorm
from vllm.model_executor.layers.linear import (
    ColumnParallelLinear,
    MergedColumnParallelLinear,
    ReplicatedLinear,
    RowParallelLinear,
)
from vllm.model_executor.layers.logits_processor import LogitsProcessor
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.layers.vocab_parallel_embedding import (
    ParallelLMHead,
    UnquantizedEmbeddingMethod,
    VocabParallelEmbedding,
)
from vllm.model_executor.models.interfaces import SupportsLoRA, SupportsPP
from vllm.model_executor.models.utils import (
    PPMissingLayer,
    extract_layer_index,
    make_empty_intermediate_tensors_factory,
    make_layers,
    maybe_prefix,
)
from vllm.platforms import current_platform
from vllm.sequence import IntermediateTensors

from trillion_model.layers.rope import RotaryEmbedding, rotate_interleaved
from trillion_model.vaetki import modeling_vaetki
from trillion_model.vaetki.configuration_vaetki import VaetkiConfig
from trillion_model.vaetki.layout import LAYOUT
from trillion_serve.plugins.vllm import adapters, cpu_seeds, expert_parallel
from trillion_serve.plugins.vllm.backend import LatentBackend
from trillion_serve.plugins.vllm.latent_layer import LatentLayer
from trillion_serve.plugins.vllm.quantized_experts import experts_config
from trillion_serve.plugins.vllm.weights import load_strictly

logger = init_logger(f"vllm.{__name__}")

_ADAPTABLE = ("q_a_proj", "q_b_proj", "kv_a_proj_with_mqa", "o_proj", "gate_up_proj", "down_proj")

Rotation = tuple[torch.Tensor, torch.Tensor]
"""Cosines and sines of the step's positions, each (tokens, rope_dim / 2)."""


class VaetkiMLP(nn.Module):
    """SwiGLU feed-forward: a dense layer's, or the shared expert's."""

    def __init__(
        self,
        hidden_size: int,
        intermediate_size: int,
        quant_config: QuantizationConfig | None,
        prefix: str,
        reduce_results: bool = True,
    ) -> None:
        super().__init__()
        self.gate_up_proj = MergedColumnParallelLinear(
            hidden_size,
            [intermediate_size] * 2,
            bias=False,
            quant_config=quant_config,
            prefix=f"{prefix}.gate_up_proj",
        )
        self.down_proj = RowParallelLinear(
            intermediate_size,
            hidden_size,
            bias=False,
            quant_config=quant_config,
            reduce_results=reduce_results,
            prefix=f"{prefix}.down_proj",
        )
        self.act_fn = SiluAndMul()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (tokens, hidden) to the same."""
        return self.down_proj(self.act_fn(self.gate_up_proj(x)[0]))[0]


class VaetkiMoE(nn.Module):
    """Routed experts plus the shared expert; the router is float32 and never quantised."""

    def __init__(self, config: VaetkiConfig, quant_config: QuantizationConfig | None, prefix: str) -> None:
        super().__init__()
        self.gate = ReplicatedLinear(
            config.hidden_size,
            config.n_routed_experts,
            bias=False,
            params_dtype=torch.float32,
            quant_config=None,
            prefix=f"{prefix}.gate",
        )
        self.shared_experts = VaetkiMLP(
            config.hidden_size,
            config.moe_intermediate_size * config.n_shared_experts,
            quant_config,
            f"{prefix}.shared_experts",
            reduce_results=False,
        )
        # One group of experts: "grouped" top-k is then plain top-k, of sigmoid scores.
        with adapters.left_out():
            self.experts = FusedMoEFactory(
                shared_experts=self.shared_experts,
                num_experts=config.n_routed_experts,
                top_k=config.num_experts_per_tok,
                hidden_size=config.hidden_size,
                intermediate_size=config.moe_intermediate_size,
                renormalize=config.norm_topk_prob,
                quant_config=experts_config(quant_config),
                use_grouped_topk=True,
                num_expert_group=1,
                topk_group=1,
                scoring_func="sigmoid",
                routed_scaling_factor=config.routed_scaling_factor,
                router_logits_dtype=torch.float32,
                prefix=f"{prefix}.experts",
            )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Map (tokens, hidden) to the same."""
        router_logits, _ = self.gate(x.float())
        return self.experts(hidden_states=x, router_logits=router_logits)


class VaetkiAttention(nn.Module):
    """Multi-head latent attention, over a window on local layers."""

    def __init__(
        self,
        config: VaetkiConfig,
        layer_idx: int,
        cache_config: CacheConfig | None,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> None:
        super().__init__()
        assert config.layer_types is not None
        self.sizes = [config.qk_nope_head_dim, config.qk_rope_head_dim]
        self.latent_sizes = [config.kv_lora_rank, config.qk_rope_head_dim]
        self.num_heads = config.num_attention_heads // get_tensor_model_parallel_world_size()
        self.v_head_dim = config.v_head_dim
        heads, hidden, rank = config.num_attention_heads, config.hidden_size, config.kv_lora_rank

        def linear(kind: type[Any], inputs: int, outputs: int, name: str) -> Any:
            return kind(inputs, outputs, bias=False, quant_config=quant_config, prefix=f"{prefix}.{name}")

        self.q_a_proj = linear(ReplicatedLinear, hidden, config.q_lora_rank, "q_a_proj")
        self.q_a_layernorm = GemmaRMSNorm(config.q_lora_rank, config.rms_norm_eps)
        self.q_b_proj = linear(ColumnParallelLinear, config.q_lora_rank, heads * config.qk_head_dim, "q_b_proj")
        self.kv_a_proj_with_mqa = linear(ReplicatedLinear, hidden, config.latent_size, "kv_a_proj_with_mqa")
        self.kv_a_layernorm = GemmaRMSNorm(rank, config.rms_norm_eps)
        expanded = heads * (config.qk_nope_head_dim + config.v_head_dim)
        self.kv_b_proj = linear(ColumnParallelLinear, rank, expanded, "kv_b_proj")
        self.o_proj = linear(RowParallelLinear, heads * config.v_head_dim, hidden, "o_proj")
        window = config.sliding_window if config.is_local(layer_idx) else None
        scale = modeling_vaetki.softmax_scale(config, config.layer_types[layer_idx])
        self.attn = self.make_attention(config, scale, window, cache_config, quant_config, f"{prefix}.attn")

    def make_attention(
        self,
        config: VaetkiConfig,
        scale: float,
        window: int | None,
        cache_config: CacheConfig | None,
        quant_config: QuantizationConfig | None,
        prefix: str,
    ) -> nn.Module:
        """The layer that owns a cache: vLLM asks it what to allocate."""
        return LatentLayer(
            num_heads=self.num_heads,
            scale=scale,
            qk_nope_head_dim=config.qk_nope_head_dim,
            qk_rope_head_dim=config.qk_rope_head_dim,
            v_head_dim=config.v_head_dim,
            q_lora_rank=config.q_lora_rank,
            kv_lora_rank=config.kv_lora_rank,
            kv_b_proj=self.kv_b_proj,
            cache_config=cache_config,
            quant_config=quant_config,
            prefix=prefix,
            sliding_window=window,
            **self.backends(config, window),
        )

    def backends(self, config: VaetkiConfig, window: int | None) -> dict[str, Any]:
        """Which attention MLAAttention is to use: ours where vLLM has none; nothing lets vLLM select."""
        if current_platform.is_cpu():
            return {"attn_backend": LatentBackend}
        return {} if window is None else fused_backends(config)

    def attend(self, q: torch.Tensor, latent: torch.Tensor, k_rope: torch.Tensor) -> torch.Tensor:
        """Cache the step's latents and attend.

        Args:
            q: (tokens, heads, qk_head_dim).
            latent: (tokens, kv_lora_rank), normalised.
            k_rope: (tokens, 1, rope_dim), rotated.

        Returns:
            (tokens, heads x v_head_dim).
        """
        return self.attn(q, latent, k_rope, output_shape=torch.Size((len(q), self.num_heads * self.v_head_dim)))

    def forward(self, hidden_states: torch.Tensor, rotation: Rotation) -> torch.Tensor:
        """Map (tokens, hidden) to the same; the cache is vLLM's to find."""
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(hidden_states)[0]))[0]
        q_nope, q_rope = q.view(-1, self.num_heads, sum(self.sizes)).split(self.sizes, dim=-1)
        q = torch.cat((q_nope, rotate_interleaved(q_rope, *rotation)), dim=-1)  # (tokens, heads, head_dim)
        latent, k_rope = self.kv_a_proj_with_mqa(hidden_states)[0].split(self.latent_sizes, dim=-1)
        latent = self.kv_a_layernorm(latent.contiguous())
        k_rope = rotate_interleaved(k_rope.unsqueeze(1), *rotation)  # (tokens, 1, rope_dim)
        return self.o_proj(self.attend(q, latent, k_rope))[0]


def fused_backends(config: VaetkiConfig) -> dict[str, Any]:
    """A local layer's attention on a GPU; it needs Triton, which is why a CPU never comes here."""
    from trillion_serve.plugins.vllm.fused_backend import FusedBackend
    from trillion_serve.plugins.vllm.windowed_flash import WindowedFlashAttention

    sizes = config.qk_nope_head_dim, config.qk_rope_head_dim, config.v_head_dim
    if WindowedFlashAttention.runs(get_current_vllm_config(), *sizes):
        return {"attn_backend": FusedBackend, "prefill_backend_cls": WindowedFlashAttention}
    logger.warning_once("Layers with a window prefill in plain PyTorch: FlashAttention does not run on this device.")
    return {"attn_backend": FusedBackend}


class VaetkiDecoderLayer(nn.Module):
    """One Peri-LN layer: a norm before and after each sublayer."""

    def __init__(self, vllm_config: VllmConfig, prefix: str, attention: type[VaetkiAttention]) -> None:
        super().__init__()
        config, quant_config = _config(vllm_config), vllm_config.quant_config
        layer_idx = extract_layer_index(prefix)
        assert config.layer_types is not None
        self.layer_type = config.layer_types[layer_idx]
        self.self_attn = attention(config, layer_idx, vllm_config.cache_config, quant_config, f"{prefix}.self_attn")
        self.mlp: nn.Module = (
            VaetkiMoE(config, quant_config, f"{prefix}.mlp")
            if config.is_moe(layer_idx)
            else VaetkiMLP(config.hidden_size, config.intermediate_size, quant_config, f"{prefix}.mlp")
        )
        norm = functools.partial(GemmaRMSNorm, config.hidden_size, config.rms_norm_eps)
        self.input_layernorm = norm()
        self.post_attention_layernorm = norm()
        self.pre_mlp_layernorm = norm()
        self.post_mlp_layernorm = norm()

    def forward(self, hidden_states: torch.Tensor, rotations: dict[str, Rotation]) -> torch.Tensor:
        """Map (tokens, hidden) to the same."""
        attended = self.self_attn(self.input_layernorm(hidden_states), rotations[self.layer_type])
        hidden_states = hidden_states + self.post_attention_layernorm(attended)
        return hidden_states + self.post_mlp_layernorm(self.mlp(self.pre_mlp_layernorm(hidden_states)))


@support_torch_compile
class VaetkiModel(nn.Module):
    """Token ids to final hidden states; a pipeline stage has some of the layers."""

    def __init__(
        self, *, vllm_config: VllmConfig, prefix: str = "", attention: type[VaetkiAttention] = VaetkiAttention
    ) -> None:
        super().__init__()
        config = _config(vllm_config)
        first, last = get_pp_group().is_first_rank, get_pp_group().is_last_rank
        self.embed_tokens = (
            VocabParallelEmbedding(
                config.vocab_size,
                config.hidden_size,
                quant_config=vllm_config.quant_config,
                prefix=f"{prefix}.embed_tokens",
            )
            if first
            else PPMissingLayer()
        )
        self.start_layer, self.end_layer, self.layers = make_layers(
            config.num_hidden_layers,
            lambda prefix: VaetkiDecoderLayer(vllm_config, prefix, attention),
            prefix=f"{prefix}.layers",
        )
        self.norm = GemmaRMSNorm(config.hidden_size, config.rms_norm_eps) if last else PPMissingLayer()
        self.rotary_emb = nn.ModuleDict(
            {
                kind: RotaryEmbedding(modeling_vaetki.layer_rope_parameters(config, kind))
                for kind in sorted(set(config.layer_types or ()))
            }
        )
        self.make_empty_intermediate_tensors = make_empty_intermediate_tensors_factory(
            ["hidden_states"], config.hidden_size
        )

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings (tokens, hidden)."""
        return self.embed_tokens(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        """Run this stage's layers over (tokens,) ids at (tokens,) positions."""
        if not get_pp_group().is_first_rank:
            assert intermediate_tensors is not None
            hidden_states = intermediate_tensors["hidden_states"]
        elif inputs_embeds is not None:
            hidden_states = inputs_embeds
        else:
            assert input_ids is not None
            hidden_states = self.embed_input_ids(input_ids)
        rotations = {kind: rotary(positions) for kind, rotary in self.rotary_emb.items()}
        for layer in self.layers[self.start_layer : self.end_layer]:
            hidden_states = layer(hidden_states, rotations)
        if not get_pp_group().is_last_rank:
            return IntermediateTensors({"hidden_states": hidden_states})
        return self.norm(hidden_states)


class VaetkiForCausalLM(nn.Module, SupportsLoRA, SupportsPP):
    """VAETKI for vLLM. Logits are float32, whatever the model's dtype."""

    packed_modules_mapping: ClassVar[dict[str, list[str]]] = {"gate_up_proj": ["gate_proj", "up_proj"]}
    attention_class: ClassVar[type[VaetkiAttention]] = VaetkiAttention

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        self.config = _config(vllm_config)
        expert_parallel.check(vllm_config)
        cpu_seeds.install()
        adapters.install(self, vllm_config, _ADAPTABLE)
        self.model = VaetkiModel(
            vllm_config=vllm_config, prefix=maybe_prefix(prefix, "model"), attention=self.attention_class
        )
        self.lm_head = PPMissingLayer()
        self.logits_processor = LogitsProcessor(self.config.vocab_size)
        if get_pp_group().is_last_rank:
            self.lm_head = ParallelLMHead(
                self.config.vocab_size,
                self.config.hidden_size,
                # A GPU multiplies bfloat16 into float32; a CPU would convert the whole head at every step.
                params_dtype=torch.float32 if current_platform.is_cpu() else None,
                quant_config=vllm_config.quant_config,
                prefix=maybe_prefix(prefix, "lm_head"),
            )
            if isinstance(self.lm_head.quant_method, UnquantizedEmbeddingMethod):
                self.logits_processor.head_dtype = torch.float32
        self.make_empty_intermediate_tensors = self.model.make_empty_intermediate_tensors

    def embed_input_ids(self, input_ids: torch.Tensor) -> torch.Tensor:
        """Embeddings (tokens, hidden)."""
        return self.model.embed_input_ids(input_ids)

    def forward(
        self,
        input_ids: torch.Tensor | None,
        positions: torch.Tensor,
        intermediate_tensors: IntermediateTensors | None = None,
        inputs_embeds: torch.Tensor | None = None,
    ) -> torch.Tensor | IntermediateTensors:
        """As :meth:`VaetkiModel.forward`."""
        return self.model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def compute_logits(self, hidden_states: torch.Tensor) -> torch.Tensor | None:
        """Logits (tokens, vocab) in float32; None on ranks that have none."""
        return self.logits_processor(self.lm_head, hidden_states)

    def load_weights(self, weights: Iterable[tuple[str, torch.Tensor]]) -> set[str]:
        """Load a published checkpoint, see :func:`load_strictly`.

        Raises:
            CheckpointError: a tensor is unknown, missing, there twice or of the wrong shape.
        """
        with torch.device("meta"):
            plain = modeling_vaetki.VaetkiForCausalLM(self.config)
        shapes = {name: tuple(tensor.shape) for name, tensor in plain.state_dict().items()}
        return load_strictly(self, weights, LAYOUT.published_shapes(shapes))


def _config(vllm_config: VllmConfig) -> VaetkiConfig:
    config: PreTrainedConfig = vllm_config.model_config.hf_config
    assert isinstance(config, VaetkiConfig)
    return config
