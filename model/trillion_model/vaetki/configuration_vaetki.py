"""The configuration of a VAETKI model: validated on entry, its architecture frozen afterwards.

Source: VAETKI report, sections 2.1 and 3.2, and the published configuration files. Quirks of those files that are
read here and nowhere else:

- the RoPE base of local layers is spelled ``rope_theta`` or ``rope_theta_local``;
- ``layer_types`` may be absent: every sixth layer is then global;
- fields that DeepSeek-style files carry but this architecture has no freedom in (``scoring_func``, ``n_group``,
  ``attention_bias`` and so on) are accepted only with the one value that VAETKI means.
"""

from typing import Any, ClassVar, get_origin

from transformers import PreTrainedConfig

from trillion_model.errors import ConfigError

LOCAL = "sliding_attention"
GLOBAL = "full_attention"

DEFAULT_LOCAL_ROPE_THETA = 10_000.0
GLOBAL_EVERY = 6
"""Five local layers to one global (VAETKI report, section 2.1)."""

_FIXED: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "attention_dropout": (0, 0.0),
    "mlp_bias": (False,),
    "moe_layer_freq": (1,),
    "n_group": (None, 1),
    "scoring_func": ("sigmoid",),
    "topk_group": (None, 1),
}

_POSITIVE_INTEGERS = (
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
_POSITIVE_NUMBERS = (
    "routed_scaling_factor",
    "rms_norm_eps",
    "initializer_range",
    "rope_theta",
    "rope_theta_global",
    "global_position_scale",
)
_TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")
_SCALING_NUMBERS = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
_SCALING_MAGNITUDES = ("mscale", "mscale_all_dim")


class VaetkiConfig(PreTrainedConfig):
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
    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

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

    def __post_init__(self, **kwargs: Any) -> None:
        local_theta = kwargs.pop("rope_theta_local", None)
        if self.rope_theta is None:
            self.rope_theta = DEFAULT_LOCAL_ROPE_THETA if local_theta is None else local_theta
        elif local_theta is not None and local_theta != self.rope_theta:
            raise ConfigError(
                "rope_theta_local",
                local_theta,
                f"the same as rope_theta ({self.rope_theta}), which it repeats",
            )
        for field, allowed in _FIXED.items():
            value = kwargs.pop(field, allowed[0])
            if value not in allowed:
                raise ConfigError(field, value, f"{allowed[-1]!r}: VAETKI has no other form")
        heads = kwargs.pop("num_key_value_heads", None)
        if heads not in (None, self.num_attention_heads):
            raise ConfigError(
                "num_key_value_heads", heads, f"num_attention_heads ({self.num_attention_heads}) or absent"
            )
        if self.layer_types is None and _is_positive_integer(self.num_hidden_layers):
            self.layer_types = [GLOBAL if (i + 1) % GLOBAL_EVERY == 0 else LOCAL for i in range(self.num_hidden_layers)]
        self._check()
        super().__post_init__(**kwargs)
        self._frozen = True

    def __setattr__(self, name: str, value: Any) -> None:
        # Loaders assign fields anew to normalise their spelling; what is already there may stay.
        if name in ARCHITECTURE_FIELDS and self.__dict__.get("_frozen") and value != getattr(self, name):
            raise ConfigError(name, value, "left as it was built; make a changed copy with config.replace(...) instead")
        super().__setattr__(name, value)

    @property
    def qk_head_dim(self) -> int:
        """Size of a head's query and key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def latent_size(self) -> int:
        """Numbers that a layer caches for a token: the latent and the shared rotary key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    @property
    def num_experts(self) -> int:
        """``n_routed_experts`` under the name that trainers look for."""
        return self.n_routed_experts

    def is_local(self, layer_idx: int) -> bool:
        """Whether layer ``layer_idx`` attends within ``sliding_window`` only."""
        assert self.layer_types is not None
        return self.layer_types[layer_idx] == LOCAL

    def is_moe(self, layer_idx: int) -> bool:
        """Whether layer ``layer_idx`` has experts rather than a dense feed-forward."""
        return layer_idx >= self.first_k_dense_replace

    def replace(self, **changes: Any) -> "VaetkiConfig":
        """Return a validated copy with ``changes`` made.

        ``layer_types`` is derived anew when only ``num_hidden_layers`` changes.

        Raises:
            ConfigError: a changed field is wrong.
        """
        fields = self.to_dict()
        if "num_hidden_layers" in changes:
            fields.pop("layer_types")
        if "rope_theta_local" in changes:
            fields.pop("rope_theta")
        return VaetkiConfig(**(fields | changes))

    def update(self, config_dict: dict[str, Any]) -> None:
        """Apply a loader's overrides, all or none, validated like a new configuration."""
        self.__dict__.update(self.replace(**config_dict).__dict__)

    def to_dict(self) -> dict[str, Any]:
        fields = super().to_dict()
        fields.pop("_frozen", None)
        return fields

    def to_diff_dict(self) -> dict[str, Any]:
        # A published file states its whole architecture, so that no later default can change its meaning.
        fields = self.to_dict()
        return super().to_diff_dict() | {name: fields[name] for name in ARCHITECTURE_FIELDS if name in fields}

    def _check(self) -> None:
        for field in _POSITIVE_INTEGERS:
            if not _is_positive_integer(getattr(self, field)):
                raise ConfigError(field, getattr(self, field), "a whole number above 0")
        for field in _POSITIVE_NUMBERS:
            if not _is_number(getattr(self, field)) or not getattr(self, field) > 0:
                raise ConfigError(field, getattr(self, field), "a number above 0")
        for field in ("norm_topk_prob", "tie_word_embeddings", "output_router_logits", "use_cache"):
            if not isinstance(getattr(self, field), bool):
                raise ConfigError(field, getattr(self, field), "true or false")
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
        if not _is_integer(dense) or not 0 <= dense <= self.num_hidden_layers:
            raise ConfigError("first_k_dense_replace", dense, f"from 0 to num_hidden_layers ({self.num_hidden_layers})")
        coefficient = self.router_aux_loss_coef
        if not _is_number(coefficient) or coefficient < 0:
            raise ConfigError("router_aux_loss_coef", coefficient, "a number of 0 or more")
        self._check_layer_types()
        self._check_rope_scaling()
        self._check_token_ids()

    def _check_layer_types(self) -> None:
        types = self.layer_types
        if not isinstance(types, list | tuple) or len(types) != self.num_hidden_layers:
            raise ConfigError("layer_types", types, f"a list of num_hidden_layers ({self.num_hidden_layers}) names")
        for i, layer_type in enumerate(types):
            if layer_type not in (LOCAL, GLOBAL):
                raise ConfigError(f"layer_types[{i}]", layer_type, f"{LOCAL!r} or {GLOBAL!r}")

    def _check_rope_scaling(self) -> None:
        scaling = self.rope_scaling
        if scaling is None:
            return
        if not isinstance(scaling, dict):
            raise ConfigError("rope_scaling", scaling, "null or an object with a rope_type")
        kind = scaling.get("rope_type", scaling.get("type"))
        if kind not in ("linear", "yarn"):
            raise ConfigError("rope_scaling.rope_type", kind, "'linear' or 'yarn'")
        if "factor" not in scaling:
            raise ConfigError("rope_scaling.factor", None, "a number above 0")
        for field in _SCALING_NUMBERS:
            if field in scaling and not (_is_number(scaling[field]) and scaling[field] > 0):
                raise ConfigError(f"rope_scaling.{field}", scaling[field], "a number above 0")
        for field in _SCALING_MAGNITUDES:
            if field in scaling and not (_is_number(scaling[field]) and scaling[field] >= 0):
                raise ConfigError(f"rope_scaling.{field}", scaling[field], "a number of 0 or more")

    def _check_token_ids(self) -> None:
        for field in _TOKEN_IDS:
            value = getattr(self, field)
            if value is None:
                continue
            ids = value if field == "eos_token_id" and isinstance(value, list) else [value]
            for token_id in ids:
                if not _is_integer(token_id) or not 0 <= token_id < self.vocab_size:
                    raise ConfigError(field, value, f"null or from 0 to vocab_size - 1 ({self.vocab_size - 1})")


_RUN_SWITCHES = ("use_cache", "output_router_logits", "router_aux_loss_coef", *_TOKEN_IDS)
ARCHITECTURE_FIELDS = tuple(
    name
    for name, kind in VaetkiConfig.__annotations__.items()
    if name not in _RUN_SWITCHES and get_origin(kind) is not ClassVar
)
"""Fields that say what the model is, in the order in which they are declared."""


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value
