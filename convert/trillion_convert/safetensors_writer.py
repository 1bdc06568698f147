"""Writing safetensors a tensor at a time, so that a file may be larger than memory.

The format: eight bytes of header length, a JSON header of names, dtypes, shapes and offsets, then the tensors.
"""

import json
import os
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from trillion_convert.tensor_files import DTYPES, TensorInfo

if TYPE_CHECKING:
    import torch

_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_ALIGNMENT = 8


def write_safetensors(path: Path, infos: Mapping[str, TensorInfo], read: "Callable[[str], torch.Tensor]") -> None:
    """Write a file and wait until it is on disk.

    Args:
        path: the file.
        infos: what to write, in order.
        read: gives the tensor of a name, in the shape and dtype of its info.
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, info in infos.items():
        begin, end = end, end + info.nbytes
        header[name] = {"dtype": _NAMES[info.dtype], "shape": info.shape, "data_offsets": [begin, end]}
    encoded = json.dumps(header, separators=(",", ":")).encode()
    encoded += b" " * (-len(encoded) % _ALIGNMENT)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name in infos:
            file.write(_bytes(read(name)))
        file.flush()
        os.fsync(file.fileno())


def _bytes(tensor: "torch.Tensor") -> memoryview:
    import torch

    return tensor.contiguous().flatten().view(torch.uint8).numpy().data
