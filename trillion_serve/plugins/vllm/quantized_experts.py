"""Quantised experts on a CPU, where vLLM 0.32 has no kernel for them: they are dequantised as they load.

Its CPU kernels for INT8 and INT4 experts need AMX and do not know sigmoid routing; FP8 experts with a scale a row have
none. Dequantised, the experts take as much memory as unquantised ones and give what their numbers stand for; their
activations stay as they are. Every other layer, and every GPU, uses vLLM's own kernels.
"""

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
from torch import nn
from vllm.logger import init_logger
from vllm.model_executor.layers.fused_moe import FusedMoEConfig, RoutedExperts, UnquantizedFusedMoEMethod
from vllm.model_executor.layers.quantization import QuantizationConfig
from vllm.model_executor.layers.quantization.base_config import QuantizeMethodBase
from vllm.model_executor.layers.quantization.compressed_tensors.compressed_tensors import CompressedTensorsConfig
from vllm.model_executor.utils import set_weight_attrs
from vllm.platforms import current_platform

from trillion_serve.errors import EngineStartError

logger = init_logger(f"vllm.{__name__}")

_FORMATS = ("float-quantized", "int-quantized", "pack-quantized")
_PER_WORD = 32
"""Bits of an int32, which packed numbers share."""


def experts_config(quant_config: QuantizationConfig | None) -> QuantizationConfig | None:
    """What experts, or a model with experts, are to be given in the place of vLLM's ``quant_config``."""
    if current_platform.is_cpu() and isinstance(quant_config, CompressedTensorsConfig):
        return _DequantizingConfig(quant_config)
    return quant_config


class _DequantizingConfig(CompressedTensorsConfig):
    """compressed-tensors, but for experts.

    Args:
        original: the model's configuration.
    """

    def __init__(self, original: CompressedTensorsConfig) -> None:
        self.__dict__.update(vars(original))

    def get_quant_method(self, layer: nn.Module, prefix: str) -> QuantizeMethodBase | None:
        if not isinstance(layer, RoutedExperts):
            return super().get_quant_method(layer, prefix)
        self._add_fused_moe_to_target_scheme_map()
        scheme = self.get_scheme_dict(layer, f"{prefix}.0.{layer.ckpt_gate_proj_name}")
        if scheme is None:
            return None
        if scheme["format"] not in _FORMATS:
            raise EngineStartError(
                f"{prefix}: vLLM cannot run experts stored as {scheme['format']} on a CPU; quantise them as one of "
                f"{', '.join(_FORMATS)}"
            )
        return DequantizedExperts(layer.moe_config, scheme["weights"], scheme["format"])


class DequantizedExperts(UnquantizedFusedMoEMethod):
    """Experts that are stored quantised and run unquantised.

    Args:
        moe: vLLM's description of the layer.
        weights: how they are quantised.
        storage: their format in compressed-tensors.
    """

    def __init__(self, moe: FusedMoEConfig, weights: QuantizationArgs, storage: str) -> None:
        super().__init__(moe)
        self.scheme = QuantizationScheme(targets=["Linear"], weights=weights)
        self.compressor = BaseCompressor.get_value_from_registry(storage)
        self.packed = storage == "pack-quantized"
        logger.warning_once("vLLM has no CPU kernel for these quantised experts: they are dequantised as they load.")

    def create_weights(
        self,
        layer: RoutedExperts,
        num_experts: int,
        hidden_size: int,
        intermediate_size_per_partition: int,
        params_dtype: torch.dtype,
        **extra_weight_attrs: object,
    ) -> None:
        self.dtype = params_dtype
        self.shapes = {
            "w13": (num_experts, 2 * intermediate_size_per_partition, hidden_size),
            "w2": (num_experts, hidden_size, intermediate_size_per_partition),
        }
        for stack, shape in self.shapes.items():
            stored = self._stored(layer.layer_name, shape)
            self.leaves = tuple(stored)
            for leaf, parameter in stored.items():
                layer.register_parameter(f"{stack}_{leaf}", parameter)
                set_weight_attrs(parameter, extra_weight_attrs | {"quant_method": str(self._weights.strategy)})

    def process_weights_after_loading(self, layer: RoutedExperts) -> None:
        for stack, shape in self.shapes.items():
            whole = torch.empty(shape, dtype=self.dtype)
            for expert, plain in enumerate(whole):
                parts = {leaf: getattr(layer, f"{stack}_{leaf}").data[expert] for leaf in self.leaves}
                if self.packed:
                    parts["weight_shape"] = torch.tensor(plain.shape)  # of the whole stack's rows, not of a part's
                plain.copy_(self.compressor.decompress(parts, self.scheme)["weight"])
            for leaf in self.leaves:
                delattr(layer, f"{stack}_{leaf}")
            layer.register_parameter(f"{stack}_weight", nn.Parameter(whole, requires_grad=False))
        super().process_weights_after_loading(layer)

    @property
    def _weights(self) -> QuantizationArgs:
        assert self.scheme.weights is not None
        return self.scheme.weights

    def _stored(self, name: str, shape: tuple[int, int, int]) -> dict[str, nn.Parameter]:
        """Empty parameters for a stack of ``shape``: (experts, rows, columns)."""
        experts, rows, columns = shape
        group = self._weights.group_size or columns
        if columns % group:
            raise EngineStartError(
                f"{name}: {columns} columns on this rank are no multiple of the quantisation group of {group}; use a "
                "smaller tensor-parallel size, or quantise with a smaller --group-size"
            )
        scale = torch.empty(experts, rows, columns // group)
        if self.packed:
            tensors = {
                "weight_packed": torch.empty(
                    experts, rows, columns * self._weights.num_bits // _PER_WORD, dtype=torch.int32
                ),
                "weight_scale": scale,
                "weight_shape": torch.empty(experts, 2, dtype=torch.int64),
            }
        else:
            weight = torch.empty(shape, dtype=self._weights.pytorch_dtype())
            tensors = {"weight": weight, "weight_scale": scale}
        return {leaf: nn.Parameter(tensor, requires_grad=False) for leaf, tensor in tensors.items()}
