"""Lets torchvision be imported beside a CPU build of torch, in each Python process that has this folder in its path.

Torchvision's published builds link against CUDA, so their operators do not load. Importing it asks for the schemas of
two of them, which nothing here calls; they are declared just before the first import.
"""

import importlib.abc
import sys


class _Declares(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            for operator in ("nms", "qnms"):
                torch.library.define(
                    f"torchvision::{operator}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
                )
        return None


sys.meta_path.insert(0, _Declares())
