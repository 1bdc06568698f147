"""VAETKI-7B-A1B at full size in vLLM on a CPU: whether it loads, in how much memory, and how fast it answers.

Weights are random and bfloat16, the configuration is the released model's. The process that runs the engine reports
the most memory that it has ever held.

    python benchmarks/full_size.py
    python benchmarks/full_size.py --layers 2 --json full_size.json
"""

import json
import multiprocessing
import os
import resource
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).parents[1]))

GIB = 2**30


@dataclass(frozen=True)
class Case:
    """What to run.

    Attributes:
        model: preset.
        layers: as many as the preset has, if None.
        prompt: tokens of the prompt.
        tokens: to generate.
        context: longest sequence.
        kv_memory: bytes of KV cache.
    """

    model: str
    layers: int | None
    prompt: int
    tokens: int
    context: int
    kv_memory: int


@dataclass(frozen=True)
class Result:
    """What happened.

    Attributes:
        parameters: of the model.
        load_seconds: until the engine was ready.
        prefill_seconds: to the first token.
        decode_seconds: from the first token to the last.
        tokens: that were generated.
        kv_tokens: that the KV cache holds.
        peak_bytes: most memory that the process held.
    """

    parameters: int
    load_seconds: float
    prefill_seconds: float
    decode_seconds: float
    tokens: int
    kv_tokens: int
    peak_bytes: int


def answer_one(case: Case) -> Result:
    """Start the engine of ``case`` in this process, and answer one prompt."""
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_LOGGING_LEVEL": "ERROR", "TQDM_DISABLE": "1"}
    from benchmarks.attention_runs import start_engine
    from trillion_model import presets
    from trillion_model.architecture import Architecture
    from trillion_model.sizes import count_parameters

    config: Any = presets.get(case.model)
    if case.layers is not None:
        config = config.replace(num_hidden_layers=case.layers)
    config.architectures = ["VaetkiForCausalLM"]
    began = time.perf_counter()
    engine = start_engine(
        config, dtype="bfloat16", max_model_len=case.context, kv_cache_memory_bytes=case.kv_memory, max_num_seqs=8
    )
    loaded = time.perf_counter() - began
    prefill, _ = _generate(engine, case.prompt, 1)
    whole, tokens = _generate(engine, case.prompt, case.tokens)
    return Result(
        parameters=sum(count_parameters(Architecture.of(config)).total.values()),
        load_seconds=loaded,
        prefill_seconds=prefill,
        decode_seconds=whole - prefill,
        tokens=tokens,
        kv_tokens=engine.llm_engine.vllm_config.cache_config.kv_cache_size_tokens,
        peak_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    )


def _generate(engine: Any, prompt: int, tokens: int) -> tuple[float, int]:
    """Seconds for an answer of ``tokens``, and how many came."""
    from vllm import SamplingParams

    params = SamplingParams(max_tokens=tokens, temperature=0, ignore_eos=True, detokenize=False)
    began = time.perf_counter()
    (output,) = engine.generate([{"prompt_token_ids": list(range(3, prompt + 3))}], params, use_tqdm=False)
    return time.perf_counter() - began, len(output.outputs[0].token_ids)


def main(
    model: Annotated[str, typer.Option(help="Preset.")] = "vaetki-7b-a1b",
    layers: Annotated[int | None, typer.Option(help="Fewer layers than it has, to try this script.", min=1)] = None,
    prompt: Annotated[int, typer.Option(help="Tokens of the prompt.", min=1)] = 512,
    tokens: Annotated[int, typer.Option(help="Tokens of the answer.", min=2)] = 32,
    context: Annotated[int, typer.Option(help="Longest sequence.")] = 16_384,
    kv_memory: Annotated[float, typer.Option(help="GiB of KV cache.")] = 1.0,
    quick: Annotated[bool, typer.Option(help="Two layers, a short prompt.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
) -> None:
    """Load the model, answer one prompt, and print what it took.

    Example: python benchmarks/full_size.py --quick
    """
    if quick:
        layers, prompt, tokens = layers or 2, 64, 8
    case = Case(model, layers, prompt, tokens, context, int(kv_memory * GIB))
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as worker:
        result = worker.submit(answer_one, case).result()
    figures = {
        "parameters": f"{result.parameters:,}",
        "weights in bfloat16, GB": f"{2 * result.parameters / 1e9:.2f}",
        "most memory held, GB": f"{result.peak_bytes / 1e9:.2f}",
        "KV cache, tokens": f"{result.kv_tokens:,}",
        "load, s": f"{result.load_seconds:.1f}",
        f"prefill of {prompt:,} tokens, tokens/s": f"{prompt / result.prefill_seconds:.1f}",
        "decode, tokens/s": f"{(result.tokens - 1) / result.decode_seconds:.2f}",
    }
    table = Table(
        title=f"{model}, {'all' if layers is None else layers} layers", title_justify="left", show_header=False
    )
    for row in figures.items():
        table.add_row(*row)
    Console().print(table)
    if json_file is not None:
        json_file.write_text(json.dumps({"case": asdict(case), "result": asdict(result)}, indent=2) + "\n")


if __name__ == "__main__":
    typer.run(main)
