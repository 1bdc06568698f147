"""Which dtype every tensor of a target is stored in."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from trillion_convert.checkpoint import Checkpoint
from trillion_convert.conversion import PublishedReader

if TYPE_CHECKING:
    from trillion_convert.streaming import Output
    from trillion_model.architecture import Architecture


def published_dtypes(reader: PublishedReader, architecture: "Architecture", dtype: str | None) -> dict[str, str]:
    """For every published tensor of an architecture the dtype to store it in.

    Args:
        reader: the source.
        architecture: the target's.
        dtype: what was asked for; None keeps every tensor's own. What the modelling class must have in float32, as
            the bias of a router, stays float32 whatever is asked for.
    """
    names = architecture.published_shapes()
    if dtype is None:
        return {name: reader.tensors[reader.part(name).holder].dtype for name in names}
    strict = _strictly_float32(architecture)
    return {name: "float32" if any(part in name for part in strict) else dtype for name in names}


def stored_dtypes(checkpoint: Checkpoint, dtype: str | None) -> dict[str, str]:
    """For every tensor of a checkpoint the dtype to store it in anew; ``dtype`` as for :func:`published_dtypes`."""
    strict = _strictly_float32(checkpoint.architecture)
    kept = {name: info.dtype for name, info in checkpoint.tensors.items()}
    if dtype is None:
        return kept
    return {name: "float32" if any(part in name for part in strict) else dtype for name in kept}


def commonest(outputs: "Mapping[str, Output]") -> str:
    """The dtype that most bytes are stored in."""
    sizes: Counter[str] = Counter()
    for output in outputs.values():
        sizes[output.info.dtype] += output.info.nbytes
    return sizes.most_common(1)[0][0]


def _strictly_float32(architecture: "Architecture") -> Iterable[str]:
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING

    return MODEL_FOR_CAUSAL_LM_MAPPING[type(architecture.config)]._keep_in_fp32_modules_strict or ()
