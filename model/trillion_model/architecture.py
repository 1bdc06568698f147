"""What a configuration calls for: the family's layout, and every tensor's name and shape, without any weights.

A model type of Transformers' own has no folder here. Where its modules are published as they stand, as Llama's are (and
Trillion-7B-preview is one), its layout is the list of its tensors.
"""

from dataclasses import dataclass
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trillion_model.errors import CheckpointError, ConfigError
from trillion_model.json_files import read_object
from trillion_model.layout import Layout, Same, Shape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class Architecture:
    """A model without its weights.

    Attributes:
        config: the Hugging Face configuration.
        layout: the table between module names and published names.
        module_shapes: every tensor of the modules.
        class_name: the modelling class, as ``architectures`` names it.
    """

    config: "PreTrainedConfig"
    layout: Layout
    module_shapes: dict[str, Shape]
    class_name: str

    @classmethod
    def of(cls, config: "PreTrainedConfig") -> "Architecture":
        """Build the modelling code of ``config`` on the meta device and read its tensors off it."""
        import torch
        from transformers import AutoModelForCausalLM

        import trillion_model

        trillion_model.register()
        with torch.device("meta"):
            model = AutoModelForCausalLM.from_config(config)
        tied = model.all_tied_weights_keys  # no checkpoint holds them
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items() if name not in tied}
        layout = family(config, "layout").LAYOUT if is_ours(type(config)) else Layout(map(Same, shapes))
        return cls(config, layout, shapes, type(model).__name__)

    def published_form(self) -> "Architecture":
        """The architecture that a published checkpoint has: it may lack what only training needs."""
        return Architecture.of(self.config.published()) if is_ours(type(self.config)) else self

    def published_shapes(self) -> dict[str, Shape]:
        """Every published tensor's name and shape."""
        return self.layout.published_shapes(self.module_shapes)


def family(config: "PreTrainedConfig", module: str) -> ModuleType:
    """A module of the family's folder, which is where its configuration class lives."""
    return import_module(_member(config, module))


def chat_format(config: "PreTrainedConfig") -> ModuleType | None:
    """The family's chat format; None where it has none, as one whose tokenizer we do not train."""
    if not is_ours(type(config)) or find_spec(_member(config, "chat_format")) is None:
        return None
    return family(config, "chat_format")


def _member(config: "PreTrainedConfig", module: str) -> str:
    return f"{type(config).__module__.rpartition('.')[0]}.{module}"


def is_ours(config_class: type) -> bool:
    """Whether a configuration class is of a family in trillion_model, rather than Transformers' own."""
    return config_class.__module__.startswith("trillion_model.")


def read_config(directory: Path) -> "PreTrainedConfig":
    """Read ``config.json``.

    Raises:
        CheckpointError: it is missing, malformed, or of a family that neither trillion_model has nor Transformers,
            which must publish its modules as they stand.
        ConfigError: a field has a value that the architecture cannot have.
    """
    path = directory / "config.json"
    return parse_config(read_object(path), str(path))


def parse_config(fields: dict[str, Any], what: str) -> "PreTrainedConfig":
    """The configuration that ``fields`` of a ``config.json`` state; messages call the file ``what``.

    Raises:
        CheckpointError, ConfigError: as for :func:`read_config`.
    """
    from transformers import CONFIG_MAPPING, MODEL_FOR_CAUSAL_LM_MAPPING
    from transformers.conversion_mapping import get_checkpoint_conversion_mapping

    import trillion_model

    trillion_model.register()
    model_type = fields.get("model_type")
    config_class = CONFIG_MAPPING[model_type] if isinstance(model_type, str) and model_type in CONFIG_MAPPING else None
    if config_class is None or config_class not in MODEL_FOR_CAUSAL_LM_MAPPING:
        raise CheckpointError(f"model_type in {what} is {model_type!r}, which is no family of trillion_model")
    if not is_ours(config_class) and get_checkpoint_conversion_mapping(model_type) is not None:
        raise CheckpointError(
            f"model_type in {what} is {model_type!r}, which is no family of trillion_model, and Transformers publishes "
            "its tensors in another form than its modules have"
        )
    for field in ("dtype", "torch_dtype"):
        if fields.get(field) not in (None, *_DTYPES):
            raise ConfigError(field, fields[field], f"null or one of {', '.join(_DTYPES)}")
    try:
        return config_class.from_dict(fields)
    except ConfigError:
        raise
    except Exception as error:  # a field that Transformers reads itself, such as id2label
        raise CheckpointError(f"{what} is no configuration of {model_type}: {error}") from error
