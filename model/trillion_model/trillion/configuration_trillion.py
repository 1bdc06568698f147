"""The configuration of a Trillion-7B model: validated on entry, its architecture frozen afterwards.

Source: Trillion 7B report, sections 3.4 (table 2) and 3.7. The report leaves open, and this configuration settles: the
epsilon of the norms (1e-5), the spread of initial weights (0.02) and the ids of the special tokens.

Quirks of files that are read here and nowhere else:

- ``head_dim`` and ``num_key_value_heads`` may be absent: heads then share the hidden size, and none share keys;
- the RoPE base may lie in ``rope_parameters``, where Transformers 5 writes it;
- fields that Llama-like files carry but this architecture has no freedom in (``attention_bias``, ``rope_scaling``
  and so on) are accepted only with the one value that Trillion-7B means.
"""

from typing import Any, ClassVar, Self

from trillion_model.configuration import FamilyConfig, is_number, is_positive_integer
from trillion_model.errors import ConfigError

DEFAULT_ROPE_THETA = 100_000.0
LONG_CONTEXT = 32_768
LONG_CONTEXT_ROPE_THETA = 1_000_000.0
"""What the context extension trains with (Trillion 7B report, section 3.7)."""


class Trillion7BConfig(FamilyConfig):
    """Architecture of a Trillion-7B model; the defaults are the report's, without the part that is only trained.

    Architecture fields cannot be assigned after construction: use :meth:`replace`. Switches of a run (``use_cache``,
    ``output_mtp_loss``, ``mtp_loss_coef``, ``dtype`` ...) stay assignable.

    Args:
        num_key_value_heads: heads of keys and values; as many as query heads where left out.
        head_dim: size of a head; ``hidden_size / num_attention_heads`` where left out.
        rope_theta: RoPE base. Pre-training means 100,000, the context extension 1,000,000.
        num_nextn_predict_layers: 1 with the module that predicts the second next token, which pre-training adds and
            a published checkpoint lacks; 0 without.
        output_mtp_loss: whether a forward with labels adds that module's loss.
        mtp_loss_coef: its weight; the report has 0.2, and 0.1 when annealing.

    Raises:
        ConfigError: a field has a value that the architecture cannot have.
    """

    model_type = "trillion_7b"

    family_name: ClassVar[str] = "Trillion-7B"
    positive_integers: ClassVar[tuple[str, ...]] = (
        "vocab_size",
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "head_dim",
        "max_position_embeddings",
    )
    positive_numbers: ClassVar[tuple[str, ...]] = ("rms_norm_eps", "initializer_range", "rope_theta")
    booleans: ClassVar[tuple[str, ...]] = ("tie_word_embeddings", "output_mtp_loss", "use_cache")
    fixed: ClassVar[dict[str, tuple[Any, ...]]] = {
        "attention_bias": (False,),
        "attention_dropout": (0, 0.0),
        "mlp_bias": (False,),
        "rope_scaling": (None,),
        "sliding_window": (None,),
    }
    run_switches: ClassVar[tuple[str, ...]] = ("use_cache", "output_mtp_loss", "mtp_loss_coef")

    vocab_size: int = 128_256
    hidden_size: int = 4096
    intermediate_size: int = 11_008
    num_hidden_layers: int = 32
    num_attention_heads: int = 32
    num_key_value_heads: int | None = None
    head_dim: int | None = None
    hidden_act: str = "silu"
    rms_norm_eps: float = 1e-5
    initializer_range: float = 0.02
    rope_theta: float | None = None
    max_position_embeddings: int = 4096
    num_nextn_predict_layers: int = 0
    tie_word_embeddings: bool = False
    bos_token_id: int | None = 128_000
    eos_token_id: int | list[int] | None = 128_001
    pad_token_id: int | None = None

    use_cache: bool = True
    output_mtp_loss: bool = False
    mtp_loss_coef: float = 0.2

    def long_context(self) -> Self:
        """The same model as the context extension trains it: 32,768 tokens and a larger RoPE base."""
        return self.replace(max_position_embeddings=LONG_CONTEXT, rope_theta=LONG_CONTEXT_ROPE_THETA)

    def published(self) -> Self:
        return self.replace(num_nextn_predict_layers=0, output_mtp_loss=False)

    def _read_spellings(self, fields: dict[str, Any]) -> None:
        self._read_rope_parameters(fields.pop("rope_parameters", None))
        if self.num_key_value_heads is None:
            self.num_key_value_heads = self.num_attention_heads
        if self.head_dim is None and is_positive_integer(self.num_attention_heads):
            self.head_dim = self._shared_head_dim()

    def _read_rope_parameters(self, parameters: dict[str, Any] | None) -> None:
        theta = None
        if parameters is not None:
            if not isinstance(parameters, dict) or parameters.get("rope_type", "default") != "default":
                raise ConfigError("rope_parameters", parameters, "null or an object with the rope_type 'default'")
            theta = parameters.get("rope_theta")
        if self.rope_theta is None:
            self.rope_theta = DEFAULT_ROPE_THETA if theta is None else theta
        elif theta not in (None, self.rope_theta):
            raise ConfigError("rope_parameters.rope_theta", theta, f"the same as rope_theta ({self.rope_theta})")

    def _shared_head_dim(self) -> int:
        if is_positive_integer(self.hidden_size) and self.hidden_size % self.num_attention_heads:
            raise ConfigError(
                "hidden_size",
                self.hidden_size,
                f"a multiple of num_attention_heads ({self.num_attention_heads}) where head_dim is left out",
            )
        return self.hidden_size // self.num_attention_heads

    def _fields_beside(self, changes: dict[str, Any]) -> dict[str, Any]:
        fields = super()._fields_beside(changes)
        if changes.keys() & {"hidden_size", "num_attention_heads"}:
            fields.pop("head_dim")
        if "num_attention_heads" in changes:
            fields.pop("num_key_value_heads")
        if "rope_parameters" in changes:
            fields.pop("rope_theta")
        return fields

    def _check(self) -> None:
        super()._check()
        self._check_gate_and_head()
        self._check_grouped_heads()
        if isinstance(self.num_nextn_predict_layers, bool) or self.num_nextn_predict_layers not in (0, 1):
            raise ConfigError("num_nextn_predict_layers", self.num_nextn_predict_layers, "0 or 1")
        if not is_number(self.mtp_loss_coef) or self.mtp_loss_coef < 0:
            raise ConfigError("mtp_loss_coef", self.mtp_loss_coef, "a number of 0 or more")
