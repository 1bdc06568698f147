"""A cache for ``generate`` that holds latents only, and no more of them than a layer can see."""

import torch
from transformers import DynamicCache, PreTrainedConfig
from transformers.cache_utils import CacheLayerMixin, DynamicSlidingWindowLayer


class LatentWindowLayer(DynamicSlidingWindowLayer):
    """A local layer's cache: the last ``sliding_window - 1`` tokens."""

    keys: torch.Tensor
    values: torch.Tensor

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *args: object, **kwargs: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        latents, rotary_keys = super().update(key_states, value_states, *args, **kwargs)
        if self.keys.shape[-2] < latents.shape[-2]:
            # The parent keeps views, which would hold on to a whole prompt's storage.
            self.keys, self.values = self.keys.clone(), self.values.clone()
        return latents, rotary_keys


class LatentCache(DynamicCache):
    """Normalised latents in the place of keys and rotated shared keys in the place of values.

    A layer stores (batch, 1, tokens, kv_lora_rank) and (batch, 1, tokens, qk_rope_head_dim): all tokens on global
    layers, at most ``sliding_window - 1`` on local ones (VAETKI report, section 2.1).

    Args:
        config: a configuration with ``layer_types`` and ``sliding_window``.
    """

    def __init__(self, config: PreTrainedConfig) -> None:
        super().__init__(config=config)
        window = config.sliding_window
        self.layers: list[CacheLayerMixin] = [
            LatentWindowLayer(window) if layer.is_sliding else layer for layer in self.layers
        ]

    @property
    def nbytes(self) -> int:
        """Bytes that the cached latents take."""
        tensors = (t for layer in self.layers if layer.is_initialized for t in (layer.keys, layer.values))
        return sum(t.untyped_storage().nbytes() for t in tensors)
