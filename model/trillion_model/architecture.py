"""What a configuration calls for: the family's layout, and every tensor's name and shape, without any weights."""

import json
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

from trillion_model.errors import CheckpointError
from trillion_model.layout import Layout, Shape

if TYPE_CHECKING:
    from transformers import PreTrainedConfig


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
        shapes = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
        return cls(config, family(config, "layout").LAYOUT, shapes, type(model).__name__)

    def published_shapes(self) -> dict[str, Shape]:
        """Every published tensor's name and shape."""
        return self.layout.published_shapes(self.module_shapes)


def family(config: "PreTrainedConfig", module: str) -> ModuleType:
    """A module of the family's folder, which is where its configuration class lives."""
    return import_module(f"{type(config).__module__.rpartition('.')[0]}.{module}")


def read_config(directory: Path) -> "PreTrainedConfig":
    """Read ``config.json``.

    Raises:
        CheckpointError: it is missing, malformed, or of a family that trillion_model does not have.
        ConfigError: a field has a value that the architecture cannot have.
    """
    from transformers import CONFIG_MAPPING

    import trillion_model

    path = directory / "config.json"
    try:
        fields: Any = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(f"{directory} is no checkpoint: it has no config.json") from error
    except ValueError as error:
        raise CheckpointError(f"{path} is not JSON: {error}") from error
    trillion_model.register()
    model_type = fields.get("model_type") if isinstance(fields, dict) else None
    known = isinstance(model_type, str) and model_type in CONFIG_MAPPING
    if not known or not CONFIG_MAPPING[model_type].__module__.startswith("trillion_model."):
        raise CheckpointError(f"model_type in {path} is {model_type!r}, which is no family of trillion_model")
    return CONFIG_MAPPING[model_type].from_dict(fields)
