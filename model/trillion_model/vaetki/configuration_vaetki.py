"""The configuration of a VAETKI model: validated on entry, its architecture frozen afterwards.

Source: VAETKI report, sections 2.1 and 3.2, and the published configuration files. Quirks of those files that are
read here and nowhere else:

- the RoPE base of local layers is spelled ``rope_theta`` or ``rope_theta_local``;
- RoPE may lie in ``rope_parameters``, where Transformers 5 writes it: an object for all layers, of which local ones
  have the base alone, or an object for each kind of layer;
- ``layer_types`` may be absent: every sixth layer is then global;
- fields that DeepSeek-style files carry but this architecture has no freedom in (``scoring_func``, ``n_group``,
  ``attention_bias`` and so on) are accepted only with the one value that VAETKI means.
"""

from typing import Any, ClassVar

from trillion_model.configuration import GLOBAL, LOCAL, FamilyConfig, is_number, is_positive_integer
from trillion_model.errors import ConfigError

DEFAULT_LOCAL_ROPE_THETA = 10_000.0
DEFAULT_GLOBAL_ROPE_THETA = 1_000_000.0
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
    rope_theta_global: float | None = None
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
        self._read_repeated("rope_theta", "rope_theta_local", fields.pop("rope_theta_local", None))
        self._read_rope_parameters(fields.pop("rope_parameters", None))
        if self.rope_theta is None:
            self.rope_theta = DEFAULT_LOCAL_ROPE_THETA
        if self.rope_theta_global is None:
            self.rope_theta_global = DEFAULT_GLOBAL_ROPE_THETA
        heads = fields.pop("num_key_value_heads", None)
        if heads not in (None, self.num_attention_heads):
            raise ConfigError(
                "num_key_value_heads", heads, f"num_attention_heads ({self.num_attention_heads}) or absent"
            )
        if self.layer_types is None and is_positive_integer(self.num_hidden_layers):
            self.layer_types = [GLOBAL if (i + 1) % GLOBAL_EVERY == 0 else LOCAL for i in range(self.num_hidden_layers)]

    def _read_rope_parameters(self, parameters: Any) -> None:
        for_type = _by_layer_type(parameters)
        if _scaling(for_type[LOCAL]) is not None:
            raise ConfigError(
                "rope_parameters", parameters, "of rope_type 'default' for local layers: their positions are not scaled"
            )
        for field, kind in (("rope_theta", LOCAL), ("rope_theta_global", GLOBAL)):
            self._read_repeated(field, "rope_parameters.rope_theta", for_type[kind].get("rope_theta"))
        self._read_repeated("rope_scaling", "rope_parameters", _scaling(for_type[GLOBAL]))

    def _read_repeated(self, field: str, spelling: str, value: Any) -> None:
        """Read ``value``, which the file has under ``spelling``, as ``field``.

        Raises:
            ConfigError: ``field`` is there too and says something else.
        """
        stated = getattr(self, field)
        if stated is None:
            setattr(self, field, value)
        elif value is not None and value != (_scaling(stated) if isinstance(stated, dict) else stated):
            raise ConfigError(spelling, value, f"the same as {field} ({stated}), which it repeats")

    def _fields_beside(self, changes: dict[str, Any]) -> dict[str, Any]:
        fields = super()._fields_beside(changes)
        fields.pop("rope_parameters", None)  # engines add it, and it says nothing that other fields do not
        if "num_hidden_layers" in changes:
            fields.pop("layer_types")
        if changes.keys() & {"rope_theta_local", "rope_parameters"}:
            fields.pop("rope_theta")
        if "rope_parameters" in changes:
            fields.pop("rope_scaling")
            if "rope_theta" in _by_layer_type(changes["rope_parameters"])[GLOBAL]:
                fields.pop("rope_theta_global")
        return fields

    def _check(self) -> None:
        super()._check()
        if self.rope_interleave is not True:
            raise ConfigError("rope_interleave", self.rope_interleave, "true: RoPE turns neighbouring pairs")
        self._check_gate_and_head()
        if self.qk_rope_head_dim % 2:
            raise ConfigError("qk_rope_head_dim", self.qk_rope_head_dim, "even: RoPE turns pairs")
        if self.num_experts_per_tok > self.n_routed_experts:
            raise ConfigError(
                "num_experts_per_tok",
                self.num_experts_per_tok,
                f"at most n_routed_experts ({self.n_routed_experts})",
            )
        self._check_dense_layers()
        coefficient = self.router_aux_loss_coef
        if not is_number(coefficient) or coefficient < 0:
            raise ConfigError("router_aux_loss_coef", coefficient, "a number of 0 or more")
        self._check_layer_types()
        self._check_rope_scaling()


def _by_layer_type(parameters: Any) -> dict[str, dict[str, Any]]:
    """``rope_parameters`` of local and of global layers: as they stand, or one object for all taken apart.

    Raises:
        ConfigError: they are neither.
    """
    given = {} if parameters is None else parameters
    if isinstance(given, dict) and not given.keys() & {LOCAL, GLOBAL}:
        local = {name: given[name] for name in ("rope_theta",) if name in given}
        return {LOCAL: local, GLOBAL: {name: value for name, value in given.items() if name not in local}}
    for_type = {LOCAL: {}, GLOBAL: {}, **given} if isinstance(given, dict) else {}
    if len(for_type) != 2 or not all(isinstance(each, dict) for each in for_type.values()):
        raise ConfigError("rope_parameters", parameters, f"null, an object, or an object for {LOCAL} and {GLOBAL} each")
    return for_type


def _scaling(parameters: dict[str, Any]) -> dict[str, Any] | None:
    """The scaling among RoPE parameters, in the spelling of ``rope_scaling``."""
    kind = parameters.get("rope_type", parameters.get("type", "default"))
    if kind == "default":
        return None
    rest = {name: value for name, value in parameters.items() if name not in ("rope_theta", "type")}
    return rest | {"rope_type": kind}


ARCHITECTURE_FIELDS = VaetkiConfig.architecture_fields
"""Fields that say what the model is, in the order in which they are declared."""
