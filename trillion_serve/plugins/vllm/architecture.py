"""What vLLM needs to know of the shape of families with latent attention before there is a model."""

from vllm.platforms import current_platform
from vllm.transformers_utils.model_arch_config_convertor import ModelArchConfigConvertorBase


class VaetkiArchitecture(ModelArchConfigConvertorBase):
    """VAETKI's configuration as vLLM reads one."""

    def is_deepseek_mla(self) -> bool:
        """Whether vLLM's rules for latent attention apply.

        On a CPU they turn chunked prefill and prefix caching off and raise the batch to the context's length, for
        the sake of a backend that we do not use.
        """
        return not current_platform.is_cpu()

    def get_head_size(self) -> int:
        """Numbers that a layer caches for a token."""
        return self.hf_text_config.latent_size


class GravityArchitecture(ModelArchConfigConvertorBase):
    """Gravity's configuration as vLLM reads one: DeepSeek-V3's, whose name alone vLLM goes by."""

    def is_deepseek_mla(self) -> bool:
        """Yes: Gravity has vLLM's own latent attention on every device."""
        return True
