"""Zero-centred RMS normalisation (VAETKI report, section 2.1)."""

import torch
import torch.nn.functional as F
from torch import nn
from transformers import initialization as init

from trillion_model.layers.initial import OwnInitial


class ZeroCentredRMSNorm(OwnInitial):
    """``(1 + weight) * x / rms(x)``, the weight starting at 0, the statistics in float32.

    Args:
        size: length of the last dimension, which is normalised.
        eps: added to the mean square.
    """

    def __init__(self, size: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(size))
        self.eps = eps

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Normalise ``x``, of shape (..., size), keeping its dtype."""
        return F.rms_norm(x.float(), self.weight.shape, 1.0 + self.weight.float(), self.eps).to(x.dtype)

    def initialise(self, std: float) -> None:
        init.zeros_(self.weight)
