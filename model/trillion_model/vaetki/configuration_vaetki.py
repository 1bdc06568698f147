"""The configuration of a VAETKI model: validated on entry, its architecture frozen afterwards.

Source: VAETKI report, sections 2.1 and 3.2, and the published configuration files. Quirks of those files that are
read here and nowhere else:

- the RoPE base of local layers is spelled ``rope_theta`` or ``rope_theta_local``;
- ``layer_types`` may be absent: every sixth layer is then global;
- fields that DeepSeek-style files carry but this architecture has no freedom in (``scoring_func``, ``n_group``,
  ``attention_bias`` and so on) are accepted only with the one value that VAETKI means.
"""

from typing import Any, ClassVar

from trillion_model.configuration import GLOBAL, LOCAL, FamilyConfig, is_integer, is_number, is_positive_integer
from trillion_model.errors import ConfigError

DEFAULT_LOCAL_ROPE_THETA = 10_000.0
GLOBAL_EVERY = 6
"""Five local layers to one global (VAETKI report, section 2.1)."""


class VaetkiConfig(FamilyConfig):
    """Architecture of a VAETKI model; the defaults are VAETKI-100B-A10B's.

    Architecture fields cannot be assigned after construction: use :meth:`replace`. Switches of a run
    (``use_cache``, ``output_router_logits``, ``router_aux_loss_coef``, ``dtype`` ...) stay assignable.

    Args:
        q_lora_rank, kv_lora_rank: ranks of the query's and the shared key-value's low-rank factors.
        qk_nope_head_dim, qk_rope_head_dim, v_head_dim: a head's sizes without and with RoPE, and of its value.
        n_routed_experts, n_shared_experts, num_experts_per_tok: experts of a layer, those that every token
            uses, and routed experts a token.
        first_k_dense_replace: number of leading layers with a dense feed-forward.
        sliding_window: keys that a local layer's query sees, its own included.
        layer_types: ``"sliding_attention"`` or ``"full_attention"`` a layer.
        rope_theta, rope_theta_global: RoPE base of local and global layers.
        rope_scaling: ``None``, or ``linear`` or ``yarn`` parameters for global layers.
        global_position_scale: global layers divide positions by this (position interpolation, VAETKI report,
            section 3.2). Released checkpoints mean 8; a checkpoint trained before the long-context stage needs
            1. Not used where ``rope_scaling`` is given.

    Raises:
        ConfigError: a field has a value that the architecture cannot have.
    """

    model_type = "vaetki"

    family_name: ClassVar[str] = "VAETKI"
    positive_integers: ClassVar[tuple[str, ...]] = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "moe_intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "q_lora_rank",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "n_routed_experts",
        "n_shared_experts",
        "num_experts_per_tok",
        "sliding_window",
        "max_position_embeddings",
    )
    positive_numbers: ClassVar[tuple[str, ...]] = (
        "routed_scaling_factor",
        "rms_norm_eps",
        "initializer_range",
        "rope_theta",
        "rope_theta_global",
        "global_position_scale",
    )
    booleans: ClassVar[tuple[str, ...]] = ("norm_topk_prob", "tie_word_embeddings", "output_router_logits", "use_cache")
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {
        "attention_bias": (False,),
        "attention_dropout": (0, 0.0),
        "mlp_bias": (False,),
        "moe_layer_freq": (1,),
        "n_group": (None, 1),
        "scoring_func": ("sigmoid",),
        "topk_group": (None, 1),
    }
    run_switches: ClassVar[tuple[str, ...]] = ("use_cache", "output_router_logits", "router_aux_loss_coef")

    vocab_size: int = 137_216
    hidden_size: int = 3072
    intermediate_size: int = 18_432
    moe_intermediate_size: int = 2048
    num_hidden_layers: int = 48
    num_attention_heads: int = 24
    q_lora_rank: int = 1536
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    n_routed_experts: int = 128
    n_shared_experts: int = 1
    num_experts_per_tok: int = 8
    first_k_dense_replace: int = 3
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 1.0
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.0134
    sliding_window: int = 512
    layer_types: list[str] | None = None
    rope_theta: float | None = None
    rope_theta_global: float = 1_000_000.0
    rope_interleave: bool = True
    rope_scaling: dict[str, Any] | None = None
    global_position_scale: float = 8.0
    max_position_embeddings: int = 32_768
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 137_204
    eos_token_id: int | list[int] | None = 137_205
    pad_token_id: int | None = None

    use_cache: bool = True
    output_router_logits: bool = False
    router_aux_loss_coef: float = 1e-4

    @property
    def qk_head_dim(self) -> int:
        """Size of a head's query and key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_size(self) -> int:
        """Numbers that a layer caches for a token: the latent and the shared rotary key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def cached_numbers(self) -> int:
        return self.latent_size

    @property
    def num_experts(self) -> int:
        """``n_routed_experts`` under the name that trainers look for."""
        return self.n_routed_experts

    def is_local(self, layer_idx: int) -> bool:
        assert self.layer_types is not None
        return self.layer_types[layer_idx] == LOCAL

    def is_moe(self, layer_idx: int) -> bool:
        """Whether layer ``layer_idx`` has experts rather than a dense feed-forward."""
        return layer_idx >= self.first_k_dense_replace

    def _read_spellings(self, fields: dict[str, Any]) -> None:
        local_theta = fields.pop("rope_theta_local", None)
        if self.rope_theta is None:
            self.rope_theta = DEFAULT_LOCAL_ROPE_THETA if local_theta is None else local_theta
        elif local_theta is not None and local_theta != self.rope_theta:
            raise ConfigError(
                "rope_theta_local",
                local_theta,
                f"the same as rope_theta ({self.rope_theta}), which it repeats",
            )
        heads = fields.pop("num_key_value_heads", None)
        if heads not in (None, self.num_attention_heads):
            raise ConfigError(
                "num_key_value_heads", heads, f"num_attention_heads ({self.num_attention_heads}) or absent"
            )
        if self.layer_types is None and is_positive_integer(self.num_hidden_layers):
            self.layer_types = [GLOBAL if (i + 1) % GLOBAL_EVERY == 0 else LOCAL for i in range(self.num_hidden_layers)]

    def _fields_beside(self, changes: dict[str, Any]) -> dict[str, Any]:
        fields = super()._fields_beside(changes)
        if "num_hidden_layers" in changes:
            fields.pop("layer_types")
        if "rope_theta_local" in changes:
            fields.pop("rope_theta")
        return fields

    def _check(self) -> None:
        super()._check()
        if self.rope_interleave is not True:
            raise ConfigError("rope_interleave", self.rope_interleave, "true: RoPE turns neighbouring pairs")
        if self.tie_word_embeddings:
            raise ConfigError("tie_word_embeddings", True, "false: VAETKI has a head of its own")
        if self.hidden_act != "silu":
            raise ConfigError("hidden_act", self.hidden_act, "'silu'")
        if self.qk_rope_head_dim % 2:
            raise ConfigError("qk_rope_head_dim", self.qk_rope_head_dim, "even: RoPE turns pairs")
        if self.num_experts_per_tok > self.n_routed_experts:
            raise ConfigError(
                "num_experts_per_tok",
                self.num_experts_per_tok,
                f"at most n_routed_experts ({self.n_routed_experts})",
            )
        dense = self.first_k_dense_replace
        if not is_integer(dense) or not 0 <= dense <= self.num_hidden_layers:
            raise ConfigError("first_k_dense_replace", dense, f"from 0 to num_hidden_layers ({self.num_hidden_layers})")
        coefficient = self.router_aux_loss_coef
        if not is_number(coefficient) or coefficient < 0:
            raise ConfigError("router_aux_loss_coef", coefficient, "a number of 0 or more")
        self._check_layer_types()
        self._check_rope_scaling()


ARCHITECTURE_FIELDS = VaetkiConfig.architecture_fields
"""Fields that say what the model is, in the order in which they are declared."""
