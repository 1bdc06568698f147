"""What a model of each family must answer in SGLang: plain references in float64."""

import copy
import functools
from collections.abc import Callable

import torch

from support import tiny_tri70b, tiny_trillion, tiny_vaetki, tri70b_reference, trillion_reference, vaetki_reference
from support.sglang_parity import Reference


def vaetki(model: torch.nn.Module) -> Reference:
    """Full masks, no cache."""
    return functools.partial(vaetki_reference.reference_logits, model.config, tiny_vaetki.published_weights(model))


def trillion_7b(model: torch.nn.Module) -> Reference:
    """Takes ``without``, the name of a norm to leave out."""
    return functools.partial(trillion_reference.reference_logits, model.config, tiny_trillion.published_weights(model))


def tri70b(model: torch.nn.Module) -> Reference:
    """Takes ``window``."""
    return functools.partial(tri70b_reference.reference_logits, model.config, tiny_tri70b.published_weights(model))


def gravity(model: torch.nn.Module) -> Reference:
    """The modelling code itself, in double precision."""
    exact = copy.deepcopy(model).double()

    def logits(ids: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            return exact(ids[None]).logits[0]

    return logits


REFERENCES: dict[str, Callable[[torch.nn.Module], Reference]] = {
    "vaetki": vaetki,
    "trillion_7b": trillion_7b,
    "tri70b": tri70b,
    "gravity": gravity,
}
