"""Makes SGLang 0.5.23 serve our models; SGLang calls :func:`register` by entry point in each of its processes.

The model classes and hooks lean on interfaces that SGLang does not promise to keep, so every other version is refused.
"""

import os
from importlib import import_module

from trillion_model import FAMILIES
from trillion_serve.errors import EngineStartError

SUPPORTED_SGLANG = "0.5.23"
MODELS = f"{__name__}.models"
"""The package that SGLang finds our model classes in."""

_MODELS_VARIABLE = "SGLANG_EXTERNAL_MODEL_PACKAGE"


class SglangStartError(EngineStartError, SystemExit):
    """SGLang was started in a way that cannot serve our models.

    It is a ``SystemExit`` too, so that SGLang's own commands, which do not know our errors, end with its one line.
    """

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.code = message


def register() -> None:
    """Register configurations, models, parsers and hooks with SGLang.

    Raises:
        SystemExit: SGLang is of another version. SGLang only logs any other error of a plugin, and goes on without it.
    """
    import sglang

    try:
        check_version(sglang.__version__)
    except SglangStartError as error:
        raise SystemExit(str(error)) from error

    from sglang.srt.plugins.hook_registry import HookRegistry, HookType
    from transformers import AutoConfig

    from trillion_serve.plugins.sglang import grammar, model_config, parsers, prompt_check, start_check

    for folder, prefix in FAMILIES.items():
        config = getattr(import_module(f"trillion_model.{folder}"), f"{prefix}Config")
        AutoConfig.register(config.model_type, config, exist_ok=True)
    HookRegistry.register(model_config.HOOKED, model_config.describe, HookType.AFTER)
    HookRegistry.register(start_check.HOOKED, start_check.check, HookType.AFTER)
    HookRegistry.register(prompt_check.HOOKED, prompt_check.check, HookType.BEFORE)
    grammar.register()
    parsers.register()
    if os.environ.setdefault(_MODELS_VARIABLE, MODELS) != MODELS:
        from sglang.srt.models.registry import ModelRegistry

        ModelRegistry.register(MODELS, overwrite=True, strict=True)


def check_version(version: str) -> None:
    """Refuse any SGLang but the supported one.

    Raises:
        SglangStartError: ``version`` is another.
    """
    if version != SUPPORTED_SGLANG:
        raise SglangStartError(
            f"trillion-serve works with SGLang {SUPPORTED_SGLANG}, but SGLang {version} is installed; "
            f"install sglang=={SUPPORTED_SGLANG}"
        )
