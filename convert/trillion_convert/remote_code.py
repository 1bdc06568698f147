"""Modelling files beside a checkpoint, so that Transformers loads it where trillion_model is not installed.

The modules that a model needs are copied side by side under flat names, their imports of each other made relative:
``trillion_model/layers/moe.py`` becomes ``layers_moe.py``. The table between published and stacked experts comes along,
and the modelling file hands it to Transformers' loader when it is imported.
"""

import ast
import re
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from trillion_convert.errors import ConvertError
from trillion_model.architecture import is_ours

if TYPE_CHECKING:
    from trillion_model.architecture import Architecture

_PACKAGE = "trillion_model"
_IMPORT = re.compile(rf"^(\s*)from {_PACKAGE}\.([\w.]+) import", re.MULTILINE)
_REGISTRATION = """
# Published checkpoints hold experts one by one; the loader stacks them by the table that published them.
from transformers.conversion_mapping import register_checkpoint_conversion_mapping

from .{layout} import LAYOUT

register_checkpoint_conversion_mapping({model_type!r}, LAYOUT.transformers_converters(), overwrite=True)
"""


def write_remote_code(architecture: "Architecture", folder: Path) -> dict[str, str]:
    """Write the modelling files of an architecture into a folder; returns ``auto_map`` for its ``config.json``.

    Raises:
        ConvertError: Transformers has the architecture itself.
    """
    from transformers import AutoModelForCausalLM

    check_ours(architecture)
    config_class = type(architecture.config)
    model_class = AutoModelForCausalLM._model_mapping[config_class]
    configuration, modeling = (_below(cls.__module__) for cls in (config_class, model_class))
    layout = f"{configuration.rpartition('.')[0]}.layout"
    for module in _closure([configuration, modeling, layout]):
        source = _IMPORT.sub(lambda found: f"{found[1]}from .{_flat(found[2])} import", _source(module))
        if module == modeling:
            source += _REGISTRATION.format(layout=_flat(layout), model_type=config_class.model_type)
        (folder / f"{_flat(module)}.py").write_text(source, encoding="utf-8")
    base_class = model_class.__name__.replace("ForCausalLM", "Model")
    return {
        "AutoConfig": f"{_flat(configuration)}.{config_class.__name__}",
        "AutoModel": f"{_flat(modeling)}.{base_class}",
        "AutoModelForCausalLM": f"{_flat(modeling)}.{model_class.__name__}",
    }


def check_ours(architecture: "Architecture") -> None:
    """Refuse an architecture whose modelling files are not ours to bundle.

    Raises:
        ConvertError: Transformers has the architecture itself.
    """
    if not is_ours(type(architecture.config)):
        raise ConvertError(
            f"--remote-code: Transformers has {architecture.config.model_type} itself, so it needs no modelling files; "
            "leave the option out"
        )


def _closure(modules: list[str]) -> list[str]:
    """Modules of the package, and those that they import, however far away."""
    found, waiting = [], list(modules)
    while waiting:
        module = waiting.pop()
        if module not in found:
            found.append(module)
            waiting += _imported(module)
    return sorted(found)


def _imported(module: str) -> list[str]:
    names = []
    for node in ast.walk(ast.parse(_source(module))):
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == _PACKAGE:
            names.append(_below(node.module))
        elif isinstance(node, ast.Import) and any(alias.name.split(".")[0] == _PACKAGE for alias in node.names):
            names.append("")
    if not all(names):
        raise ConvertError(
            f"{_PACKAGE}.{module} imports the package {_PACKAGE} itself, which cannot be bundled; import the module "
            "that is meant"
        )
    return names


def _source(module: str) -> str:
    spec = find_spec(f"{_PACKAGE}.{module}")
    if spec is None or spec.origin is None or spec.submodule_search_locations is not None:
        raise ConvertError(
            f"{_PACKAGE}.{module} is no module, so it cannot be bundled; import the module that is meant"
        )
    return Path(spec.origin).read_text(encoding="utf-8")


def _below(module: str) -> str:
    return module.partition(".")[2]


def _flat(module: str) -> str:
    """The file's name: a family's configuration and modelling keep theirs, which say the family already."""
    last = module.rpartition(".")[2]
    return last if last.startswith(("configuration_", "modeling_")) else module.replace(".", "_")
