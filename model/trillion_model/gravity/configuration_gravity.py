"""The configuration of Gravity, whose published files say ``model_type: gravity_moe``.

Source: the model card of Gravity-16B-A3B-Base. It is DeepSeek-V3's configuration under another name, kept apart from
Transformers' class of that so that a wrong field is a ``ConfigError`` here as in every family. Quirks of such files
that are read here and nowhere else:

- the RoPE base is ``rope_theta`` beside ``rope_scaling``, or both are in ``rope_parameters``;
- ``n_group`` and ``topk_group`` may be null, which means one group;
- ``head_dim`` and ``qk_head_dim`` may be written out, but follow from other fields and are not read.
"""

from typing import Any, ClassVar

from trillion_model.configuration import FamilyConfig, check_scaling, is_number, is_positive_integer
from trillion_model.errors import ConfigError

DEFAULT_ROPE_THETA = 1_000_000.0
_ONLY_FORM: dict[str, Any] = {
    "attention_bias": False,
    "attention_dropout": 0.0,
    "hidden_act": "silu",
    "moe_layer_freq": 1,
    "rope_interleave": True,
    "scoring_func": "sigmoid",
    "tie_word_embeddings": False,
    "topk_method": "noaux_tc",
}
"""Fields that engines and modelling code read, with the one value that Gravity means."""


class GravityMoEConfig(FamilyConfig):
    """Architecture of a Gravity model; the defaults are Gravity-16B-A3B-Base's.

    The card gives sizes of layers, experts and the latent, and the RoPE base. It gives no ``q_lora_rank`` and no head
    sizes: the defaults (one projection for queries; 128 + 64 and 128, as DeepSeek-V3) are those that make its 16.24
    billion parameters and the published files' 32,485,051,240 bytes, of which they leave 124 a tensor for names. It
    gives no ``rms_norm_eps``, ``routed_scaling_factor``, groups or token ids either: these defaults are DeepSeek-V3's
    with one group, and do not change a size. A checkpoint's own file always wins.

    Args:
        q_lora_rank: rank of the query's low-rank factors; None for one projection.
        kv_lora_rank: rank of the shared key-value's low-rank factors.
        qk_nope_head_dim, qk_rope_head_dim, v_head_dim: a head's sizes without and with RoPE, and of its value.
        n_routed_experts, n_shared_experts, num_experts_per_tok: experts of a layer, those that every token
            uses, and routed experts a token.
        n_group, topk_group: groups of experts, and how many of them a token may use.
        first_k_dense_replace: number of leading layers with a dense feed-forward.
        rope_parameters: ``rope_theta`` and ``rope_type``, ``"default"`` or ``"yarn"`` with its parameters.

    Raises:
        ConfigError: a field has a value that the architecture cannot have.
    """

    model_type = "gravity_moe"
    attribute_map: ClassVar[dict[str, str]] = {"num_local_experts": "n_routed_experts"}

    family_name: ClassVar[str] = "Gravity"
    positive_integers: ClassVar[tuple[str, ...]] = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "moe_intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "kv_lora_rank",
        "qk_nope_head_dim",
        "qk_rope_head_dim",
        "v_head_dim",
        "n_routed_experts",
        "n_shared_experts",
        "num_experts_per_tok",
        "n_group",
        "topk_group",
        "max_position_embeddings",
    )
    positive_numbers: ClassVar[tuple[str, ...]] = ("routed_scaling_factor", "rms_norm_eps", "initializer_range")
    booleans: ClassVar[tuple[str, ...]] = ("norm_topk_prob", "output_router_logits", "use_cache")
    run_switches: ClassVar[tuple[str, ...]] = ("use_cache", "output_router_logits")

    vocab_size: int = 151_552
    hidden_size: int = 2048
    intermediate_size: int = 8192
    moe_intermediate_size: int = 1408
    num_hidden_layers: int = 28
    num_attention_heads: int = 16
    num_key_value_heads: int | None = None
    q_lora_rank: int | None = None
    kv_lora_rank: int = 512
    qk_nope_head_dim: int = 128
    qk_rope_head_dim: int = 64
    v_head_dim: int = 128
    n_routed_experts: int = 64
    n_shared_experts: int = 1
    num_experts_per_tok: int = 8
    n_group: int | None = 1
    topk_group: int | None = 1
    topk_method: str = "noaux_tc"
    scoring_func: str = "sigmoid"
    norm_topk_prob: bool = True
    routed_scaling_factor: float = 2.5
    first_k_dense_replace: int = 1
    moe_layer_freq: int = 1
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-6
    initializer_range: float = 0.02
    rope_parameters: dict[str, Any] | None = None
    rope_interleave: bool = True
    attention_bias: bool = False
    attention_dropout: float = 0.0
    max_position_embeddings: int = 32_768
    tie_word_embeddings: bool = False
    bos_token_id: int | None = None
    eos_token_id: int | list[int] | None = None
    pad_token_id: int | None = None

    use_cache: bool = True
    output_router_logits: bool = False

    @property
    def qk_head_dim(self) -> int:
        """Size of a head's query and key."""
        return self.qk_nope_head_dim + self.qk_rope_head_dim

    @property
    def head_dim(self) -> int:
        """Size of what RoPE turns, which is where Transformers' DeepSeek-V3 looks for it."""
        return self.qk_rope_head_dim

    @property
    def cached_numbers(self) -> int:
        """Numbers that a layer caches for a token: the latent and the shared rotary key."""
        return self.kv_lora_rank + self.qk_rope_head_dim

    def _read_spellings(self, fields: dict[str, Any]) -> None:
        for derived in ("head_dim", "qk_head_dim"):
            fields.pop(derived, None)
        theta, scaling = fields.pop("rope_theta", None), fields.pop("rope_scaling", None)
        parameters = scaling if self.rope_parameters is None else self.rope_parameters
        if parameters is None:
            parameters = {}
        if not isinstance(parameters, dict):
            raise ConfigError("rope_parameters", parameters, "null or an object with a rope_type")
        kind = parameters.get("rope_type", parameters.get("type", "default"))
        default_theta = DEFAULT_ROPE_THETA if theta is None else theta
        self.rope_parameters = {"rope_theta": default_theta} | parameters | {"rope_type": kind}
        self.n_group = 1 if self.n_group is None else self.n_group
        self.topk_group = 1 if self.topk_group is None else self.topk_group
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads

    def _fields_beside(self, changes: dict[str, Any]) -> dict[str, Any]:
        fields = super()._fields_beside(changes)
        if changes.keys() & {"rope_theta", "rope_scaling"}:
            fields.pop("rope_parameters")
        if "num_attention_heads" in changes:
            fields.pop("num_key_value_heads")
        return fields

    def _check(self) -> None:
        super()._check()
        for field, meant in _ONLY_FORM.items():
            if getattr(self, field) != meant:
                raise ConfigError(field, getattr(self, field), f"{meant!r}: Gravity has no other form")
        if self.q_lora_rank is not None and not is_positive_integer(self.q_lora_rank):
            raise ConfigError("q_lora_rank", self.q_lora_rank, "null or a whole number above 0")
        if self.num_key_value_heads != self.num_attention_heads:
            raise ConfigError(
                "num_key_value_heads",
                self.num_key_value_heads,
                f"num_attention_heads ({self.num_attention_heads}) or absent",
            )
        if self.qk_rope_head_dim % 2:
            raise ConfigError("qk_rope_head_dim", self.qk_rope_head_dim, "even: RoPE turns pairs")
        self._check_dense_layers()
        self._check_groups()
        self._check_rope_parameters()

    def _check_groups(self) -> None:
        assert self.n_group is not None and self.topk_group is not None
        if self.n_routed_experts % self.n_group:
            raise ConfigError("n_group", self.n_group, f"a divisor of n_routed_experts ({self.n_routed_experts})")
        if self.topk_group > self.n_group:
            raise ConfigError("topk_group", self.topk_group, f"at most n_group ({self.n_group})")
        reachable = self.n_routed_experts // self.n_group * self.topk_group
        if self.num_experts_per_tok > reachable:
            raise ConfigError(
                "num_experts_per_tok",
                self.num_experts_per_tok,
                f"at most {reachable}, the experts of topk_group groups",
            )

    def _check_rope_parameters(self) -> None:
        assert self.rope_parameters is not None
        kind, theta = self.rope_parameters["rope_type"], self.rope_parameters["rope_theta"]
        if kind not in ("default", "yarn"):
            raise ConfigError("rope_parameters.rope_type", kind, "'default' or 'yarn'")
        if not is_number(theta) or not theta > 0:
            raise ConfigError("rope_parameters.rope_theta", theta, "a number above 0")
        if kind == "yarn":
            check_scaling("rope_parameters", self.rope_parameters)
