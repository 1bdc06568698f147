"""Which tensors are quantised, how, and how ``config.json`` says so.

Kept as they are: norms, embeddings and head, the router (an error there runs another expert), and ``kv_b_proj``,
which latent attention absorbs into queries and outputs, so that engines want its plain numbers.
"""

import functools
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from trillion_convert.errors import ConvertError
from trillion_convert.tensor_files import TensorInfo
from trillion_model.errors import CheckpointError

if TYPE_CHECKING:
    from compressed_tensors.quantization import QuantizationScheme
    from transformers import PreTrainedConfig

    from trillion_model.layout import Shape

WEIGHT = ".weight"
SHAPE = "weight_shape"
"""What is stored of a whole weight rather than of its rows."""
_KEPT = re.compile(r"(.*\.)?(embed_tokens|lm_head|gate|kv_b_proj)")
_SUGGESTED_GROUPS = (128, 64, 32)
_PER_WORD = 8
"""Four-bit numbers in an int32."""


class Scheme(StrEnum):
    """How weights, and the activations that meet them, are quantised."""

    FP8_DYNAMIC = "fp8-dynamic"
    """FP8 (E4M3) weights with a scale a row, FP8 activations with a scale a token."""
    INT8_W8A8 = "int8-w8a8"
    """INT8 weights with a scale a row, INT8 activations with a scale a token."""
    INT4_W4A16 = "int4-w4a16"
    """INT4 weights with a scale for each group of a row, activations as they are."""


_PRESETS = {Scheme.FP8_DYNAMIC: "FP8_DYNAMIC", Scheme.INT8_W8A8: "W8A8", Scheme.INT4_W4A16: "W4A16"}
_FORMATS = {
    Scheme.FP8_DYNAMIC: "float-quantized",
    Scheme.INT8_W8A8: "int-quantized",
    Scheme.INT4_W4A16: "pack-quantized",
}
_DEFINING = ("num_bits", "type", "strategy", "symmetric", "group_size")
_STORED = {Scheme.FP8_DYNAMIC: "float8_e4m3fn", Scheme.INT8_W8A8: "int8"}


@dataclass(frozen=True)
class Recipe:
    """A scheme and its group size.

    Attributes:
        scheme: which.
        group_size: numbers of a row that share a scale; :attr:`Scheme.INT4_W4A16` only.
    """

    scheme: Scheme
    group_size: int = 128

    @classmethod
    def of(cls, config: "PreTrainedConfig") -> "Recipe | None":
        """The recipe that a directory's configuration states; None where it states none.

        Raises:
            CheckpointError: it is quantised in a way that is none of ours.
        """
        fields = getattr(config, "quantization_config", None)
        if fields is None:
            return None
        from compressed_tensors.quantization import QuantizationConfig, QuantizationScheme
        from pydantic import ValidationError

        try:
            stated = QuantizationConfig.model_validate(fields)
        except ValidationError as error:
            raise CheckpointError(f"quantization_config in config.json cannot be read: {error}") from error
        groups = [group for group in stated.config_groups.values() if isinstance(group, QuantizationScheme)]
        for scheme in Scheme:
            if _FORMATS[scheme] == stated.format and len(groups) == 1 and (weights := groups[0].weights):
                recipe = cls(scheme, weights.group_size or cls.group_size)
                wanted = recipe.library_scheme().weights
                if all(getattr(weights, field) == getattr(wanted, field) for field in _DEFINING):
                    return recipe
        raise CheckpointError(
            f"quantization_config in config.json is none that trillion-convert writes ({', '.join(Scheme)}); convert "
            "the checkpoint from before it was quantised"
        )

    @property
    def format(self) -> str:
        """The name of the storage format in compressed-tensors."""
        return _FORMATS[self.scheme]

    @property
    def grouped(self) -> bool:
        """Whether a row has a scale for each group."""
        return self.scheme is Scheme.INT4_W4A16

    def library_scheme(self) -> "QuantizationScheme":
        """The scheme as compressed-tensors describes it; not to be changed."""
        return _library_scheme(self)

    def stored(self, name: str, info: TensorInfo) -> dict[str, TensorInfo]:
        """What is stored in the place of the published weight ``name``."""
        rows, columns = info.shape
        infos: tuple[TensorInfo, ...]
        if self.grouped:
            infos = (
                TensorInfo((rows, columns // _PER_WORD), "int32"),
                TensorInfo((rows, columns // self.group_size), info.dtype),
                TensorInfo((2,), "int64"),
            )
        else:
            infos = (TensorInfo(info.shape, _STORED[self.scheme]), TensorInfo((rows, 1), "float32"))
        return dict(zip(self.stored_names(name), infos, strict=True))

    def stored_names(self, name: str) -> tuple[str, ...]:
        """Names of what is stored in the place of the published weight ``name``."""
        leaves = ("weight_packed", "weight_scale", SHAPE) if self.grouped else ("weight", "weight_scale")
        return tuple(f"{name.removesuffix(WEIGHT)}.{leaf}" for leaf in leaves)

    def stored_infos(self, published: Mapping[str, TensorInfo]) -> dict[str, TensorInfo]:
        """Everything that a quantised directory holds, from what the plain one does.

        Raises:
            ConvertError: as :meth:`check`.
        """
        self.check({name: info.shape for name, info in published.items()})
        infos: dict[str, TensorInfo] = {}
        for name, info in published.items():
            infos |= self.stored(name, info) if is_quantized(name, info.shape) else {name: info}
        return infos

    def stored_shapes(self, published: "Mapping[str, Shape]") -> "dict[str, Shape]":
        """The same, of shapes."""
        infos = {name: TensorInfo(tuple(shape), "float32") for name, shape in published.items()}
        return {name: info.shape for name, info in self.stored_infos(infos).items()}

    def check(self, shapes: "Mapping[str, Shape]") -> None:
        """Refuse a group size that does not divide the rows that are to be quantised.

        Raises:
            ConvertError: it does not; the message names a tensor and a size that does.
        """
        if not self.grouped:
            return
        if self.group_size < _PER_WORD or self.group_size % _PER_WORD:
            raise ConvertError(f"--group-size is {self.group_size}, but must be a multiple of {_PER_WORD}")
        columns = {name: shape[-1] for name, shape in shapes.items() if is_quantized(name, shape)}
        wrong = next((name for name, width in columns.items() if width % self.group_size), None)
        if wrong is None:
            return
        fits = [size for size in _SUGGESTED_GROUPS if not any(width % size for width in columns.values())]
        advice = f"--group-size {fits[0]} divides every row" if fits else "no group of 32 or more divides every row"
        raise ConvertError(
            f"{wrong}: {columns[wrong]} columns are no multiple of --group-size {self.group_size}; {advice}"
        )


@functools.cache
def _library_scheme(recipe: Recipe) -> "QuantizationScheme":
    from compressed_tensors.quantization import preset_name_to_scheme

    scheme = preset_name_to_scheme(_PRESETS[recipe.scheme], ["Linear"])
    if recipe.grouped:
        scheme.weights.group_size = recipe.group_size
    scheme.format = recipe.format
    return scheme


def is_quantized(name: str, shape: "Shape") -> bool:
    """Whether a published tensor is the weight of a projection that may be quantised."""
    return name.endswith(WEIGHT) and len(shape) == 2 and not _KEPT.fullmatch(name.removesuffix(WEIGHT))


def quantization_config(recipe: Recipe, kept: Iterable[str]) -> dict[str, Any]:
    """``quantization_config`` of ``config.json``.

    Args:
        recipe: what was done.
        kept: modules whose weights have two dimensions and were kept.
    """
    from compressed_tensors.quantization import QuantizationConfig, QuantizationStatus

    config = QuantizationConfig(
        config_groups={"group_0": recipe.library_scheme()},
        format=recipe.format,
        quantization_status=QuantizationStatus.COMPRESSED,
        ignore=list(kept),
    )
    return config.model_dump(mode="json", exclude_none=True)


def kept_modules(shapes: "Mapping[str, Shape]") -> list[str]:
    """Modules whose weights look like a projection's but are kept."""
    return [
        name.removesuffix(WEIGHT) for name, shape in shapes.items() if len(shape) == 2 and not is_quantized(name, shape)
    ]
