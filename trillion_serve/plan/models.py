"""The model that a plan is for: a preset, a directory or a hub id; its configuration, and what its files hold."""

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING

from trillion_serve.errors import ModelNotFoundError, PlanError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

PLAIN_LLAMA = "llama"
"""The one architecture that engines know themselves and that we plan for: Trillion-7B-preview is published in it."""

_BITS = {"F64": 64, "F32": 32, "BF16": 16, "F16": 16, "I64": 64, "I32": 32, "I16": 16, "I8": 8, "U8": 8}
_BITS |= {"BOOL": 8, "F8_E4M3": 8, "F8_E5M2": 8, "F8_E8M0": 8, "F4": 4}


@dataclass(frozen=True)
class Model:
    """What a plan needs to know of a model.

    Attributes:
        name: as it was asked for.
        config: its configuration.
        tensors: numbers in each published tensor.
        preset: whether it is one, which has no files.
        stored: bytes of each tensor in the files of a quantised checkpoint; None for any other.
        quantization: the method that the configuration names; None if it is not quantised.
    """

    name: str
    config: "PreTrainedConfig"
    tensors: dict[str, int]
    preset: bool = False
    stored: dict[str, int] | None = None
    quantization: str | None = None

    @property
    def dtype(self) -> str:
        """The dtype that the configuration names, or bfloat16."""
        return str(self.config.dtype or "bfloat16").removeprefix("torch.")


def load_model(name: str) -> Model:
    """Read what can be known of a model without its weights.

    Raises:
        ModelNotFoundError: there is no such directory, preset or hub id within reach.
        CheckpointError: its ``config.json`` is malformed, or of a family that nobody here knows.
        ConfigError: a field of it is wrong.
        PlanError: what its cache holds is not known; or it is quantised, and the files that would say how large it
            is are not there.
    """
    from trillion_model import presets
    from trillion_serve.cli.models import resolve

    if name in presets.names() and not Path(name).is_dir():
        return _describe(name, presets.get(name), None)
    found = resolve(name)
    directory = Path(found) if Path(found).is_dir() else _from_hub(found)
    return _describe(name, _read_config(directory), directory)


def _describe(name: str, config: "PreTrainedConfig", directory: Path | None) -> Model:
    from trillion_model.architecture import Architecture

    shapes = Architecture.of(config).published_form().published_shapes()
    tensors = {tensor: prod(shape) for tensor, shape in shapes.items()}
    quantization = getattr(config, "quantization_config", None)
    if not quantization:
        return Model(name, config, tensors, preset=directory is None)
    assert directory is not None
    method = quantization.get("quant_method") if isinstance(quantization, dict) else quantization.quant_method
    return Model(name, config, tensors, stored=_stored_bytes(directory), quantization=str(method))


def _from_hub(hub_id: str) -> Path:
    """The directory that holds what Transformers has, or fetches, of ``hub_id``."""
    from transformers.utils import cached_file

    try:
        found = cached_file(hub_id, "config.json")
    except OSError as error:
        raise ModelNotFoundError(
            f"the configuration of {hub_id} is neither in the local cache nor can it be fetched "
            f"({str(error).splitlines()[0]}); name a directory or a preset instead"
        ) from error
    assert found is not None
    return Path(found).parent


def _read_config(directory: Path) -> "PreTrainedConfig":
    from trillion_model.architecture import is_ours, read_config

    config = read_config(directory)
    if not is_ours(type(config)) and config.model_type != PLAIN_LLAMA:
        raise PlanError(
            f"model_type in {directory / 'config.json'} is {config.model_type!r}; what its cache holds is known of the "
            f"families of trillion_model and of {PLAIN_LLAMA!r} only"
        )
    return config


def _stored_bytes(directory: Path) -> dict[str, int]:
    """Bytes of every tensor, from the headers of the files."""
    from safetensors import safe_open

    stored: dict[str, int] = {}
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118
                part = file.get_slice(name)
                if part.get_dtype() not in _BITS:
                    raise PlanError(f"{name} in {path} is of dtype {part.get_dtype()}, which has no known size")
                stored[name] = prod(part.get_shape()) * _BITS[part.get_dtype()] // 8
    if not stored:
        raise PlanError(
            f"the checkpoint in {directory} is quantised, but has no safetensors files to say how large it is; put "
            "them there, or plan for the checkpoint that it was made of"
        )
    return stored
