"""Layers that say themselves what they start as."""

from torch import nn


class OwnInitial(nn.Module):
    """A layer that Transformers cannot initialise: a parameter that it does not know, or a buffer that files lack."""

    def initialise(self, std: float) -> None:
        """Fill parameters and buffers with what they start as.

        Only ``transformers.initialization`` may write them: it leaves what a checkpoint has filled already.

        Args:
            std: deviation of random weights, the configuration's ``initializer_range``.
        """
        raise NotImplementedError
