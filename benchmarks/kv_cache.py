"""How many tokens fit in equal KV memory: latents with windows, latents without, expanded keys and values.

Each figure is what a real vLLM engine reports when it has laid out its cache. Layers, heads, head sizes, latents and
windows are the model's own; hidden size, vocabulary, feed-forward and experts, which the cache does not depend on,
are shrunk so that the engine fits anywhere, and weights are random.

    python benchmarks/kv_cache.py
    python benchmarks/kv_cache.py --quick --json kv_cache.json
"""

import json
import multiprocessing
import os
import sys
import tempfile
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

GIB = 2**30
MEMORY_GIB = {"vaetki-7b-a1b": 2.0, "vaetki-100b-a10b": 7.0}
"""Models, and KV memory that holds a sequence of 32k in every form; vLLM really takes it."""

OURS, NO_WINDOW, EXPANDED = "latents, windows", "latents, no windows", "expanded, windows"
CACHES = (OURS, NO_WINDOW, EXPANDED)
SHRUNK = {
    "vocab_size": 512,
    "hidden_size": 64,
    "intermediate_size": 64,
    "moe_intermediate_size": 32,
    "q_lora_rank": 32,
    "n_routed_experts": 2,
    "num_experts_per_tok": 1,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


@dataclass(frozen=True)
class Case:
    """One engine to start.

    Attributes:
        model: preset whose attention it has, of MEMORY_GIB.
        cache: one of CACHES.
        context: longest sequence, in tokens.
        memory_gib: KV memory.
        batched_tokens: tokens of a step.
    """

    model: str
    cache: str
    context: int
    memory_gib: float
    batched_tokens: int


def tokens_that_fit(case: Case) -> int:
    """Start the engine of ``case`` in this process and return the capacity that it reports, in tokens."""
    os.environ |= {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
        "VLLM_LOGGING_LEVEL": "ERROR",
        "TQDM_DISABLE": "1",
        "TOKENIZERS_PARALLELISM": "false",
    }
    sys.path.insert(0, str(Path(__file__).parents[1]))
    from vllm import LLM

    from benchmarks import expanded_vaetki
    from trillion_model import presets
    from trillion_model.vaetki import VaetkiConfig

    shape = presets.get(case.model)
    assert isinstance(shape, VaetkiConfig)
    changes: dict[str, object] = SHRUNK | {"max_position_embeddings": case.context}
    if case.cache == NO_WINDOW:
        changes["layer_types"] = ["full_attention"] * shape.num_hidden_layers
    config = shape.replace(**changes)
    config.architectures = ["VaetkiForCausalLM"]
    if case.cache == EXPANDED:
        expanded_vaetki.register()
        config.architectures = [expanded_vaetki.ARCHITECTURE]
    with tempfile.TemporaryDirectory() as directory:
        config.save_pretrained(directory)
        engine = LLM(
            directory,
            load_format="dummy",
            dtype="bfloat16",
            skip_tokenizer_init=True,
            enforce_eager=True,
            max_model_len=case.context,
            max_num_batched_tokens=case.batched_tokens,
            kv_cache_memory_bytes=int(case.memory_gib * GIB),
            disable_log_stats=True,
        ).llm_engine
    tokens = engine.vllm_config.cache_config.kv_cache_size_tokens
    assert tokens is not None
    return tokens


def main(
    quick: Annotated[bool, typer.Option(help="The 7B shape only.")] = False,
    context: Annotated[int, typer.Option(help="Longest sequence, in tokens.")] = 32_768,
    memory: Annotated[float | None, typer.Option(help="KV memory in GiB, instead of what fits one sequence.")] = None,
    batched_tokens: Annotated[int, typer.Option(help="Tokens of a step (max_num_batched_tokens).")] = 2048,
    json_file: Annotated[Path | None, typer.Option("--json", help="Write the results here.")] = None,
) -> None:
    """Print the tokens that fit in equal KV memory, and the ratios.

    Example: python benchmarks/kv_cache.py --quick
    """
    cases = [
        Case(model, cache, context, memory or MEMORY_GIB[model], batched_tokens)
        for model in list(MEMORY_GIB)[: 1 if quick else None]
        for cache in CACHES
    ]
    console = Console()
    tokens: dict[tuple[str, str], int] = {}
    # An engine cannot be taken down for another within a process.
    workers = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), max_tasks_per_child=1)
    with workers, Progress(console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task("starting engines", total=len(cases))
        for case in cases:
            progress.update(task, description=f"{case.model}, {case.cache}")
            tokens[case.model, case.cache] = workers.submit(tokens_that_fit, case).result()
            progress.advance(task)

    table = Table(title=f"Tokens that fit in equal KV memory at a context of {context:,}, as vLLM reports them")
    table.add_column("model", no_wrap=True)
    for column in ("GiB", *CACHES, "over no windows", "over expanded"):
        table.add_column(column, justify="right")
    results = []
    for case in cases:
        held, ours = tokens[case.model, case.cache], tokens[case.model, OURS]
        results.append(asdict(case) | {"tokens": held, "ours_over_this": round(ours / held, 3)})
        if case.cache == OURS:
            row = [tokens[case.model, cache] for cache in CACHES]
            ratios = [f"{ours / tokens[case.model, cache]:.2f} x" for cache in (NO_WINDOW, EXPANDED)]
            table.add_row(case.model, f"{case.memory_gib:g}", *(f"{held:,}" for held in row), *ratios)
    console.print(table)
    if json_file is not None:
        json_file.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    typer.run(main)
