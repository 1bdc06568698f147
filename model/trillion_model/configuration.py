"""What the configurations of all families share: checked on entry, their architecture frozen afterwards.

A family's class declares its fields with defaults, names the kinds of them in the class attributes below, and adds
what only it can know: other spellings in :meth:`FamilyConfig._read_spellings`, relations between fields in
:meth:`FamilyConfig._check`.
"""

import math
from typing import Any, ClassVar, Self, get_origin

from transformers import PreTrainedConfig

from trillion_model.errors import ConfigError

LOCAL = "sliding_attention"
GLOBAL = "full_attention"

TOKEN_IDS = ("bos_token_id", "eos_token_id", "pad_token_id")

_SCALING_NUMBERS = ("factor", "original_max_position_embeddings", "beta_fast", "beta_slow")
_SCALING_MAGNITUDES = ("mscale", "mscale_all_dim")
_SCALING_NOT_READ = ("attention_factor", "truncate")


class FamilyConfig(PreTrainedConfig):
    """Base of a family's configuration.

    Architecture fields cannot be assigned after construction: use :meth:`replace`. Switches of a run
    (``use_cache``, token ids, ``dtype`` ...) stay assignable.

    Class attributes that a family sets:
        family_name: how messages call it.
        positive_integers, positive_numbers, booleans: fields by what they must be.
        fixed: fields that other families' files carry and this one has no freedom in, with the values that mean
            what it means; they are read and left out.
        run_switches: declared fields that do not belong to the architecture, beside the token ids.

    Raises:
        ConfigError: a field has a value that the architecture cannot have.
    """

    keys_to_ignore_at_inference: ClassVar[list[str]] = ["past_key_values"]

    family_name: ClassVar[str] = ""
    positive_integers: ClassVar[tuple[str, ...]] = ()
    positive_numbers: ClassVar[tuple[str, ...]] = ()
    booleans: ClassVar[tuple[str, ...]] = ()
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {}
    run_switches: ClassVar[tuple[str, ...]] = ("use_cache",)

    architecture_fields: ClassVar[tuple[str, ...]] = ()
    """Fields that say what the model is, in the order in which they are declared."""

    def __init_subclass__(cls, *args: Any, **kwargs: Any) -> None:
        super().__init_subclass__(*args, **kwargs)
        cls.architecture_fields = tuple(
            name
            for name, kind in cls.__annotations__.items()
            if name not in (*cls.run_switches, *TOKEN_IDS) and get_origin(kind) is not ClassVar
        )

    def __post_init__(self, **kwargs: Any) -> None:
        for field, allowed in self.fixed.items():
            value = kwargs.pop(field, allowed[0])
            if value not in allowed:
                raise ConfigError(field, value, f"{allowed[-1]!r}: {self.family_name} has no other form")
        self._read_spellings(kwargs)
        self._check()
        super().__post_init__(**kwargs)
        self._frozen = True

    def __setattr__(self, name: str, value: Any) -> None:
        # Loaders assign fields anew to normalise their spelling; what is already there may stay.
        if name in self.architecture_fields and self.__dict__.get("_frozen") and value != getattr(self, name):
            raise ConfigError(name, value, "left as it was built; make a changed copy with config.replace(...) instead")
        super().__setattr__(name, value)

    @property
    def cached_numbers(self) -> int:
        """Numbers that a layer caches for a token: a key and a value a head."""
        return 2 * self.num_key_value_heads * self.head_dim

    def is_local(self, layer_idx: int) -> bool:
        """Whether layer ``layer_idx`` attends within ``sliding_window`` only."""
        return False

    def replace(self, **changes: Any) -> Self:
        """Return a validated copy with ``changes`` made.

        Fields that were derived from a changed one are derived anew.

        Raises:
            ConfigError: a changed field is wrong.
        """
        return type(self)(**(self._fields_beside(changes) | changes))

    def published(self) -> Self:
        """A copy for the published form, which may lack what only training needs."""
        return self.replace()

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
        return super().to_diff_dict() | {name: fields[name] for name in self.architecture_fields if name in fields}

    def _read_spellings(self, fields: dict[str, Any]) -> None:
        """Take what published files spell in another way out of ``fields``, and derive what they leave out."""

    def _fields_beside(self, changes: dict[str, Any]) -> dict[str, Any]:
        """This configuration's fields, without those that follow from ``changes``."""
        return self.to_dict()

    def _check(self) -> None:
        """Check every field; a family adds what holds between them."""
        for field in self.positive_integers:
            if not is_positive_integer(getattr(self, field)):
                raise ConfigError(field, getattr(self, field), "a whole number above 0")
        for field in self.positive_numbers:
            if not is_number(getattr(self, field)) or not getattr(self, field) > 0:
                raise ConfigError(field, getattr(self, field), "a number above 0")
        for field in self.booleans:
            if not isinstance(getattr(self, field), bool):
                raise ConfigError(field, getattr(self, field), "true or false")
        self._check_token_ids()

    def _check_layer_types(self) -> None:
        """Check ``layer_types``, for families that have local and global layers."""
        types = self.layer_types
        if not isinstance(types, list | tuple) or len(types) != self.num_hidden_layers:
            raise ConfigError("layer_types", types, f"a list of num_hidden_layers ({self.num_hidden_layers}) names")
        for i, layer_type in enumerate(types):
            if layer_type not in (LOCAL, GLOBAL):
                raise ConfigError(f"layer_types[{i}]", layer_type, f"{LOCAL!r} or {GLOBAL!r}")

    def _check_gate_and_head(self) -> None:
        """SwiGLU and a head of its own are all that the modules have."""
        if self.tie_word_embeddings:
            raise ConfigError("tie_word_embeddings", True, f"false: {self.family_name} has a head of its own")
        if self.hidden_act != "silu":
            raise ConfigError("hidden_act", self.hidden_act, "'silu'")

    def _check_grouped_heads(self) -> None:
        """Check heads, for families whose query heads share keys and values, and turn all of a head by RoPE."""
        if self.num_attention_heads % self.num_key_value_heads:
            raise ConfigError(
                "num_key_value_heads",
                self.num_key_value_heads,
                f"a divisor of num_attention_heads ({self.num_attention_heads})",
            )
        if self.head_dim % 2:
            raise ConfigError("head_dim", self.head_dim, "even: RoPE turns pairs")

    def _check_dense_layers(self) -> None:
        """Check ``first_k_dense_replace``, for families whose other layers have experts."""
        dense = self.first_k_dense_replace
        if not is_integer(dense) or not 0 <= dense <= self.num_hidden_layers:
            raise ConfigError("first_k_dense_replace", dense, f"from 0 to num_hidden_layers ({self.num_hidden_layers})")

    def _check_rope_scaling(self) -> None:
        """Check ``rope_scaling``, for families that may have it: null, or linear or YaRN parameters."""
        scaling = self.rope_scaling
        if scaling is None:
            return
        if not isinstance(scaling, dict):
            raise ConfigError("rope_scaling", scaling, "null or an object with a rope_type")
        kind = scaling.get("rope_type", scaling.get("type"))
        if kind not in ("linear", "yarn"):
            raise ConfigError("rope_scaling.rope_type", kind, "'linear' or 'yarn'")
        check_scaling("rope_scaling", scaling)

    def _check_token_ids(self) -> None:
        for field in TOKEN_IDS:
            value = getattr(self, field)
            if value is None:
                continue
            ids = value if field == "eos_token_id" and isinstance(value, list) else [value]
            for token_id in ids:
                if not is_integer(token_id) or not 0 <= token_id < self.vocab_size:
                    raise ConfigError(field, value, f"null or from 0 to vocab_size - 1 ({self.vocab_size - 1})")


def check_scaling(field: str, scaling: dict[str, Any]) -> None:
    """Check the numbers of linear or YaRN parameters.

    Args:
        field: where ``scaling`` stands in the configuration.
        scaling: the parameters.

    Raises:
        ConfigError: one is wrong, or is one that engines would not follow.
    """
    if "factor" not in scaling:
        raise ConfigError(f"{field}.factor", None, "a number above 0")
    for name in _SCALING_NUMBERS:
        if name in scaling and not (is_number(scaling[name]) and scaling[name] > 0):
            raise ConfigError(f"{field}.{name}", scaling[name], "a number above 0")
    for name in _SCALING_MAGNITUDES:
        if name in scaling and not (is_number(scaling[name]) and scaling[name] >= 0):
            raise ConfigError(f"{field}.{name}", scaling[name], "a number of 0 or more")
    for name in _SCALING_NOT_READ:
        if scaling.get(name) is not None:
            raise ConfigError(f"{field}.{name}", scaling[name], "left out: it follows from the other parameters")


def is_integer(value: object) -> bool:
    """Whether ``value`` is a whole number, which true and false are not."""
    return isinstance(value, int) and not isinstance(value, bool)


def is_positive_integer(value: object) -> bool:
    """Whether ``value`` is a whole number above 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def is_number(value: Any) -> bool:
    """Whether ``value`` is a finite number, which true, false and NaN are not."""
    return isinstance(value, int | float) and not isinstance(value, bool) and abs(value) < math.inf
