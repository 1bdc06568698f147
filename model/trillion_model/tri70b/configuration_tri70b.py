"""The configuration of Tri-70B, whose published files say ``model_type: trillion``.

Source: the model card of Tri-70B-preview-SFT and the configuration class published with it. Quirks of those files
that are read here and nowhere else:

- which layers see everything is published as ``global_attention_freq`` only; ``layer_types``, which caches and engines
  ask for, follows from it, and a file that lists it must say the same;
- the RoPE base is ``rope_theta``, or ``rope_parameters`` in files that a later Transformers has written;
- that class gives ``attn_scale`` and ``floor_scale`` the default 1.0 while its documentation says 0.1. The defaults
  here are the class's, and a checkpoint's own file, which states both, always wins. That file was not at hand.
"""

from typing import Any, ClassVar

from trillion_model.configuration import GLOBAL, LOCAL, FamilyConfig, is_number, is_positive_integer
from trillion_model.errors import ConfigError

DEFAULT_ROPE_THETA = 10_000.0
_UNSCALED = "null or of rope_type 'default': Tri-70B's positions are not scaled"


class TrillionConfig(FamilyConfig):
    """Architecture of a Tri-70B model; the defaults are Tri-70B-preview-SFT's.

    Args:
        head_dim: size of a head's query, key and value.
        sliding_window: keys that a local layer's query sees, its own included.
        global_attention_freq: layer i is global when ``(i + 1) % global_attention_freq == 0``.
        layer_types: ``"sliding_attention"`` or ``"full_attention"`` a layer, as ``global_attention_freq`` gives it.
        rope_theta: RoPE base of local layers; global layers have no positions.
        attn_temperature_tuning: whether global layers scale their queries by
            ``1 + attn_scale * ln(1 + floor((position + 1) / floor_scale))``.

    Raises:
        ConfigError: a field has a value that the architecture cannot have.
    """

    model_type = "trillion"

    family_name: ClassVar[str] = "Tri-70B"
    positive_integers: ClassVar[tuple[str, ...]] = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "sliding_window",
        "global_attention_freq",
        "max_position_embeddings",
    )
    positive_numbers: ClassVar[tuple[str, ...]] = ("rms_norm_eps", "initializer_range", "rope_theta", "floor_scale")
    booleans: ClassVar[tuple[str, ...]] = ("attn_temperature_tuning", "tie_word_embeddings", "use_cache")
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {
        "attention_bias": (False,),
        "attention_dropout": (0, 0.0),
        "mlp_bias": (False,),
        "pretraining_tp": (1,),
    }

    vocab_size: int = 124_416
    hidden_size: int = 8192
    intermediate_size: int = 28_672
    num_hidden_layers: int = 80
    num_attention_heads: int = 64
    num_key_value_heads: int = 8
    head_dim: int = 128
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    sliding_window: int = 4096
    global_attention_freq: int = 4
    layer_types: list[str] | None = None
    rope_theta: float | None = None
    attn_temperature_tuning: bool = True
    attn_scale: float = 1.0
    floor_scale: float = 1.0
    max_position_embeddings: int = 32_768
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 123_964
    eos_token_id: int | list[int] | None = 123_972
    pad_token_id: int | None = 124_415

    use_cache: bool = True

    def is_local(self, layer_idx: int) -> bool:
        """Whether layer ``layer_idx`` has RoPE and attends within ``sliding_window`` only."""
        return (layer_idx + 1) % self.global_attention_freq != 0

    def _read_spellings(self, fields: dict[str, Any]) -> None:
        parameters = fields.pop("rope_parameters", None)
        for field, scaling in (("rope_scaling", fields.pop("rope_scaling", None)), ("rope_parameters", parameters)):
            if scaling is not None and (
                not isinstance(scaling, dict) or scaling.get("rope_type", scaling.get("type", "default")) != "default"
            ):
                raise ConfigError(field, scaling, _UNSCALED)
        theta = (parameters or {}).get("rope_theta")
        if self.rope_theta is None:
            self.rope_theta = DEFAULT_ROPE_THETA if theta is None else theta
        elif theta not in (None, self.rope_theta):
            raise ConfigError(
                "rope_parameters.rope_theta", theta, f"the same as rope_theta ({self.rope_theta}), which it repeats"
            )
        derivable = is_positive_integer(self.num_hidden_layers) and is_positive_integer(self.global_attention_freq)
        if self.layer_types is None and derivable:
            self.layer_types = self._derived_layer_types()

    def _derived_layer_types(self) -> list[str]:
        return [LOCAL if self.is_local(i) else GLOBAL for i in range(self.num_hidden_layers)]

    def _fields_beside(self, changes: dict[str, Any]) -> dict[str, Any]:
        fields = super()._fields_beside(changes)
        if changes.keys() & {"num_hidden_layers", "global_attention_freq"}:
            fields.pop("layer_types")
        if "rope_parameters" in changes:
            fields.pop("rope_theta")
        return fields

    def _check(self) -> None:
        super()._check()
        self._check_layer_types()
        if list(self.layer_types or ()) != self._derived_layer_types():
            raise ConfigError(
                "layer_types",
                self.layer_types,
                f"left out, or full_attention in every layer that global_attention_freq ({self.global_attention_freq}) "
                "divides and sliding_attention elsewhere",
            )
        self._check_grouped_heads()
        self._check_gate_and_head()
        if not is_number(self.attn_scale) or self.attn_scale < 0:
            raise ConfigError("attn_scale", self.attn_scale, "a number of 0 or more")
