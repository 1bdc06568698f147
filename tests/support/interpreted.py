"""Triton's kernels without a GPU: run by its interpreter, or compiled for a device that is not there.

The interpreter is chosen when Triton is imported, by TRITON_INTERPRET=1: :func:`decode` belongs into :func:`pool`,
:func:`compiled` into a process without that variable.
"""

import functools
import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch


def pool() -> ProcessPoolExecutor:
    """A process that interprets kernels."""
    return ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=_choose_interpreter)


def _choose_interpreter() -> None:
    os.environ["TRITON_INTERPRET"] = "1"


def decode(paged: Any, **arguments: Any) -> torch.Tensor:
    """:func:`latent_decode.decode` of a :class:`paged_latents.Paged`, interpreted."""
    from trillion_serve.plugins.vllm import latent_decode

    _multiply_bfloat16()
    return latent_decode.decode(paged.q, paged.cache, paged.block_table, paged.seq_lens, **arguments)


@functools.cache
def _multiply_bfloat16() -> None:
    """The interpreter multiplies bfloat16 as the integers that it stores them in; let it multiply their values."""
    import numpy as np
    import triton.language as tl
    from triton.runtime.interpreter import InterpreterBuilder, TensorHandle, _convert_float

    multiply = InterpreterBuilder.create_dot

    def widened(handle: TensorHandle) -> TensorHandle:
        if handle.dtype.scalar != tl.bfloat16:
            return handle
        return TensorHandle(_convert_float(handle.data, tl.bfloat16, tl.float32, None).view(np.float32), tl.float32)

    def create_dot(self: InterpreterBuilder, a: TensorHandle, b: TensorHandle, *rest: Any) -> TensorHandle:
        return multiply(self, widened(a), widened(b), *rest)

    InterpreterBuilder.create_dot = create_dot


@dataclass(frozen=True)
class Compiled:
    """What the compiler made of a kernel: machine code, and the shared memory that a program takes, in bytes."""

    machine_code: int
    shared_memory: int


def compiled(capability: int, heads: int, cache_type: str, parts: int) -> list[Compiled]:
    """Both kernels at VAETKI's size, queries in bfloat16, for a device of ``capability`` (80, 90, ...)."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from trillion_serve.plugins.vllm import latent_decode

    tiling = latent_decode.DEFAULT_TILING
    bounds = {"TOKENS": tiling.tokens, "PARTS": parts, "WINDOW": 512, "QUERIES": 1, "RANK": 512}
    more = {"ROPE": 64, "HEADS": heads, "SCALED": cache_type != "bf16"}
    pointers = {
        "q": "*bf16",
        "cache": f"*{cache_type}",
        "block_table": "*i32",
        "seq_lens": "*i32",
        "cache_scale": "*fp32",
        "scratch": "*fp32",
        "out": "*bf16",
    }
    kernels = []
    for kernel, constants, warps in (
        (latent_decode._attend, bounds | more, heads // 4),
        (latent_decode._add_up, bounds, 4),
    ):
        names = kernel.arg_names
        types = {name: pointers.get(name, "fp32" if name == "scale" else "i32") for name in names}
        source = ASTSource(
            fn=kernel,
            signature={name: "constexpr" if name in constants else types[name] for name in names},
            constexprs={(names.index(name),): value for name, value in constants.items()},
            attrs={
                (i,): [["tt.divisibility", 16]]
                for i, name in enumerate(names)
                if name in pointers or name in ("q_row", "q_head", "cache_block", "cache_token", "out_row", "out_head")
            },
        )
        made = triton.compile(
            source,
            target=GPUTarget("cuda", capability, 32),
            options={"num_warps": warps, "num_stages": tiling.stages},
        )
        kernels.append(Compiled(len(made.asm["cubin"]), made.metadata.shared))
    return kernels
