"""What MODEL means on a command line: a directory, a preset name or a hub id."""

import re
from pathlib import Path

from trillion_serve.errors import ModelNotFoundError
from trillion_serve.home import home

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")


def resolve(model: str, *, dummy_weights: bool = False) -> str:
    """What an engine can load: a directory with a ``config.json``, or a hub id.

    A preset has a configuration and no weights, so that it resolves only with ``dummy_weights``, to a
    directory of its configuration under ``home()``.

    Raises:
        ModelNotFoundError: nothing can be loaded under this name.
    """
    path = Path(model).expanduser()
    if path.is_dir():
        if not (path / "config.json").is_file():
            raise ModelNotFoundError(
                f"{model} is a directory without config.json; name a Hugging Face model directory, such as "
                "`trillion-convert export` writes"
            )
        return str(path)
    if _HUB_ID.fullmatch(model) and not model.startswith("."):
        return model
    from trillion_model import presets

    if model not in presets.names():
        raise ModelNotFoundError(
            f"there is no model {model!r}: it is no directory, no hub id (owner/name) and no preset "
            f"({', '.join(presets.names())})"
        )
    if not dummy_weights:
        raise ModelNotFoundError(
            f"{model} is a preset, which has no weights; name a directory or a hub id, or try its shape with "
            "--load-format dummy --tokenizer DIRECTORY"
        )
    directory = home() / "presets" / model
    presets.get(model).save_pretrained(directory)
    return str(directory)


def display_name(model: str) -> str:
    """What clients call a model unless told otherwise: a directory's name, or the hub id or preset itself."""
    path = Path(model).expanduser()
    return path.resolve().name if path.is_dir() else model
