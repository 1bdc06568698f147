"""vLLM's own grouping of layers, count of a request's blocks and reading of a command, for tests of what we say."""

from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Case:
    """Layers of two kinds, and the requests that they are asked for."""

    local_layers: int
    global_layers: int
    window: int
    context: int
    tokens_in_flight: int
    block_size: int


def blocks_per_request(cases: list[Case]) -> list[tuple[int, int]]:
    """Layers of a group, and the blocks that a request reserves in all groups, of each case."""
    return [_blocks_per_request(case) for case in cases]


def _blocks_per_request(case: Case) -> tuple[int, int]:
    import torch
    from vllm.v1.core.kv_cache_utils import _get_kv_cache_groups_uniform_page_size
    from vllm.v1.kv_cache_interface import MLAAttentionSpec, SlidingWindowMLASpec, SlidingWindowSpec

    shape = {"block_size": case.block_size, "num_kv_heads": 1, "head_size": 576, "dtype": torch.bfloat16}
    local = SlidingWindowMLASpec(**shape, sliding_window=case.window)
    specs = {f"global.{i}": MLAAttentionSpec(**shape) for i in range(case.global_layers)}
    specs |= {f"local.{i}": local for i in range(case.local_layers)}
    groups = _get_kv_cache_groups_uniform_page_size(specs)
    blocks = sum(
        spec.max_admission_blocks_per_request(case.tokens_in_flight, case.context)
        if isinstance(spec := group.kv_cache_spec, SlidingWindowSpec)
        else -(-case.context // spec.block_size)
        for group in groups
    )
    return max(len(group.layer_names) for group in groups), blocks


def read_command(arguments: list[str]) -> dict[str, object]:
    """What vLLM's own parser reads of the arguments of ``vllm serve``; it raises ``SystemExit`` at one it refuses."""
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.cli_args import make_arg_parser
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    read = make_arg_parser(FlexibleArgumentParser()).parse_args(arguments)
    read.model = read.model_tag  # as ``vllm serve`` does
    engine = AsyncEngineArgs.from_cli_args(read)
    return vars(read) | {"structured_outputs": asdict(engine.structured_outputs_config)}
