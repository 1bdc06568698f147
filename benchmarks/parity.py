"""Every model in every form, against a float64 forward: what greedy decoding chooses, and how likely it says it is.

Models are tiny, of random weights, one of each family and a plain Llama (which is what Trillion-7B-preview is). A form
continues random prompts greedily through its cache; the reference then reads prompt and continuation in one pass, in
float64, from the same weights. A mismatch is a token that the reference would not have chosen in that place; a
difference is between two log-probabilities of the same token, of the prompt or of the continuation. In bfloat16 two
tokens that are near each other change places, and so do two experts: there Transformers says how much of it is the
dtype's, and engines must be nearly as close.

    python -m benchmarks.parity
    python -m benchmarks.parity --quick --json parity.json
    python -m benchmarks.parity --only vaetki --skip-missing

SGLang takes part where ``scripts/setup-sglang.sh .venv-sglang`` has made its environment.
"""

import gc
import json
import sys
import tempfile
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from enum import StrEnum
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from trillion_model.output_files import check_output, write_output

NOT_INSTALLED = "not installed"
LENGTHS = (2, 17, 33, 90, 150)
"""Tokens of the prompts: shorter than a window, around its end and several windows long."""
NEW_TOKENS = 24
SEED = 1
LIMIT = 1e-4
"""Largest difference in float32 that is rounding."""
MEAN_LIMIT = 0.05
"""Largest mean difference in bfloat16 that is rounding, of Transformers."""
NEARLY = 2.0
"""How many times Transformers' mean difference and mismatches an engine's may be in bfloat16."""
CHANCE = 0.05
"""Share of tokens that may be mismatched besides, since few are."""
KV_CACHE_BYTES = 64 * 2**20

SMALL = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_attention_heads": 2,
    "num_hidden_layers": 4,
    "max_position_embeddings": 1024,
    "initializer_range": 0.1,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LATENT = {"kv_lora_rank": 512, "qk_nope_head_dim": 16, "qk_rope_head_dim": 64, "v_head_dim": 16}
"""512 and 64 are the sizes that engines' latent attention knows."""
EXPERTS = {"moe_intermediate_size": 32, "num_experts_per_tok": 2, "first_k_dense_replace": 1}


@dataclass(frozen=True)
class Tiny:
    """A tiny model: its folder of trillion_model, None for a plain Llama, and the fields of its configuration."""

    folder: str | None
    fields: dict[str, Any]


MODELS = {
    "vaetki": Tiny(
        "vaetki",
        SMALL
        | LATENT
        | EXPERTS
        | {"num_hidden_layers": 7, "q_lora_rank": 32, "n_routed_experts": 4, "sliding_window": 16},
    ),
    "trillion_7b": Tiny("trillion", SMALL),
    "tri70b": Tiny(
        "tri70b",
        SMALL
        | {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32, "num_hidden_layers": 8}
        | {"sliding_window": 16, "attn_scale": 0.5, "floor_scale": 8.0},
    ),
    "gravity": Tiny(
        "gravity",
        SMALL
        | LATENT
        | EXPERTS
        | {"n_routed_experts": 8, "rope_parameters": {"rope_type": "default", "rope_theta": 10_000.0}},
    ),
    "llama": Tiny(None, SMALL),
}
"""The models by name; ``llama`` is what Trillion-7B-preview is published as."""


class Form(StrEnum):
    """What runs a model."""

    TRANSFORMERS = "Transformers"
    VLLM = "vLLM"
    SGLANG = "SGLang"


@dataclass(frozen=True)
class Result:
    """One cell of the matrix.

    Attributes:
        model, form, dtype: which.
        tokens: greedy tokens that were held against the reference.
        mismatches: those that the reference would not have chosen.
        max_difference, mean_difference: of log-probabilities; None where there are none.
        note: why there are none.
    """

    model: str
    form: str
    dtype: str
    tokens: int = 0
    mismatches: int = 0
    max_difference: float | None = None
    mean_difference: float | None = None
    note: str = ""


def write_model(name: str, dtype: str, directory: Path) -> None:
    """Save a tiny model of random weights, its norms moved from where they begin so that they count."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    import trillion_model

    tiny = MODELS[name]
    if tiny.folder is None:
        config, kind = LlamaConfig(**tiny.fields), LlamaForCausalLM
    else:
        prefix, folder = trillion_model.FAMILIES[tiny.folder], import_module(f"trillion_model.{tiny.folder}")
        config, kind = getattr(folder, f"{prefix}Config")(**tiny.fields), getattr(folder, f"{prefix}ForCausalLM")
    torch.manual_seed(SEED)
    model = kind(config).eval()
    with torch.no_grad():
        for parameter_name, tensor in model.state_dict().items():
            if "norm" in parameter_name or parameter_name.endswith("bias"):
                tensor.add_(torch.randn_like(tensor), alpha=0.2)
    model.to(getattr(torch, dtype)).save_pretrained(directory)


def prompts(lengths: Sequence[int]) -> list[tuple[int, ...]]:
    """Random tokens; without the vocabulary's last, which SGLang reads as its first in a prompt."""
    import torch

    generator = torch.Generator().manual_seed(SEED)
    return [tuple(torch.randint(3, SMALL["vocab_size"] - 1, (n,), generator=generator).tolist()) for n in lengths]


class Runners:
    """What makes a form of a model run; a context manager."""

    def __init__(self) -> None:
        self._vllm: Any = None
        self._sglang: Any = None

    def __enter__(self) -> "Runners":
        return self

    def __exit__(self, *exception: object) -> None:
        for process in (self._vllm, self._sglang):
            if process is not None:
                process.close()

    def start(self, form: Form, directory: Path, dtype: str, longest: int) -> Any:
        """A runner of trillion_convert.verify; None where the form is not installed."""
        if form is Form.TRANSFORMERS:
            return self._transformers(directory, dtype)
        if form is Form.VLLM:
            return self._in_vllm(directory, dtype, longest)
        return self._in_sglang(directory, dtype)

    def _transformers(self, directory: Path, dtype: str) -> Any:
        import torch
        from transformers import AutoModelForCausalLM

        from trillion_convert.verify.torch_runner import TorchModel

        return TorchModel(AutoModelForCausalLM.from_pretrained(directory, dtype=getattr(torch, dtype)), ends=[])

    def _in_vllm(self, directory: Path, dtype: str, longest: int) -> Any:
        if find_spec("vllm") is None:
            return None
        from trillion_convert.verify.vllm_runner import VllmProcess, VllmRunner

        self._vllm = self._vllm or VllmProcess()
        # It refuses a prompt that fills its context, and a score generates one token more.
        return VllmRunner(directory, [], dtype, longest + 1, self._vllm, KV_CACHE_BYTES)

    def _in_sglang(self, directory: Path, dtype: str) -> Any:
        from benchmarks.sglang_server import SglangProcess, is_installed
        from trillion_convert.verify.server_runner import SglangServer

        if not is_installed():
            return None
        if self._sglang is not None:
            self._sglang.close()
            self._sglang = None
        self._sglang = SglangProcess(directory, dtype)
        return SglangServer(self._sglang.url, [])


def hold(
    runners: Runners, name: str, form: Form, dtype: str, directory: Path, asked: Sequence[tuple[int, ...]]
) -> Result:
    """Run one form of a model, and hold it against the reference."""
    from trillion_convert.errors import RunError
    from trillion_convert.verify.runner import Request

    try:
        runner = runners.start(form, directory, dtype, max(map(len, asked)) + NEW_TOKENS)
        if runner is None:
            return Result(name, form, dtype, note=NOT_INSTALLED)
        with closing(runner):
            answers = runner.greedy([Request(prompt, NEW_TOKENS) for prompt in asked])
            scores = runner.score(asked)
    except RunError as error:
        return Result(name, form, dtype, note=f"failed: {error}")
    mismatches, differences = 0, []
    for prompt, answer, score, expected in zip(
        asked, answers, scores, reference(directory, asked, answers), strict=True
    ):
        new = len(answer.token_ids)
        ids = prompt + answer.token_ids
        best = expected[-new:].argmax(-1).tolist()
        mismatches += sum(token != other for token, other in zip(answer.token_ids, best, strict=True))
        wanted = [expected[place, token].item() for place, token in enumerate(ids[1:])]
        given = (*score, *answer.logprobs)
        differences += [abs(a - b) for a, b in zip(given, wanted, strict=True)]
    tokens = sum(len(answer.token_ids) for answer in answers)
    return Result(name, form, dtype, tokens, mismatches, max(differences), sum(differences) / len(differences))


def reference(directory: Path, asked: Sequence[tuple[int, ...]], answers: Sequence[Any]) -> list[Any]:
    """Log-probabilities in float64, (seq - 1, vocabulary) for each prompt with its continuation."""
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float64).eval()
    for module in model.modules():
        if hasattr(module, "forward_loop"):  # an expert at a time: PyTorch has no grouped product in float64
            module.forward = module.forward_loop
    with torch.inference_mode():
        return [
            model(input_ids=torch.tensor([prompt + answer.token_ids]), use_cache=False)
            .logits[0, :-1]
            .double()
            .log_softmax(-1)
            for prompt, answer in zip(asked, answers, strict=True)
        ]


def fault(result: Result, plain: Result | None) -> str:
    """What is wrong with a result, in words; empty where nothing is.

    Args:
        plain: Transformers' result in the same dtype, if it has one.
    """
    if result.max_difference is None or result.mean_difference is None:
        return result.note
    if result.dtype == "float32":
        wrong = result.mismatches > 0 or result.max_difference > LIMIT
        return f"{result.mismatches} mismatches, difference {result.max_difference:.1e}" if wrong else ""
    if result.form == Form.TRANSFORMERS or plain is None or plain.mean_difference is None:
        most, many = MEAN_LIMIT, result.tokens
    else:
        most, many = NEARLY * plain.mean_difference, int(NEARLY * plain.mismatches + CHANCE * result.tokens)
    if result.mean_difference > most:
        return f"mean difference {result.mean_difference:.1e}, where {most:.1e} is rounding"
    return f"{result.mismatches} mismatches, where {many} are rounding" if result.mismatches > many else ""


def faults(results: Sequence[Result]) -> list[str]:
    """A line for each result that has a fault; forms that are not installed are none."""
    plain = {(result.model, result.dtype): result for result in results if result.form == Form.TRANSFORMERS}
    return [
        f"{result.model}, {result.form}, {result.dtype}: {wrong}"
        for result in results
        if result.note != NOT_INSTALLED and (wrong := fault(result, plain.get((result.model, result.dtype))))
    ]


def missing_forms() -> list[Form]:
    """The forms that are not installed."""
    from benchmarks.sglang_server import is_installed

    installed = {Form.TRANSFORMERS: True, Form.VLLM: find_spec("vllm") is not None, Form.SGLANG: is_installed()}
    return [form for form, there in installed.items() if not there]


def check_models(names: list[str] | None) -> list[str] | None:
    """The models that were asked for.

    Raises:
        typer.BadParameter: one of them is none of ours.
    """
    for name in names or ():
        if name not in MODELS:
            raise typer.BadParameter(f"{name!r} is none of {', '.join(MODELS)}")
    return names


def render(results: Sequence[Result]) -> Table:
    """The matrix: a row a model and dtype, a column a form; means are in the JSON only."""
    table = Table(title="Mismatched greedy tokens, largest log-probability difference", title_justify="left")
    for heading in ("model", "dtype"):
        table.add_column(heading, overflow="fold")
    for form in Form:
        table.add_column(form, justify="right", overflow="fold")
    for model, dtype in dict.fromkeys((result.model, result.dtype) for result in results):
        row = [result for result in results if (result.model, result.dtype) == (model, dtype)]
        table.add_row(model, dtype, *map(cell, row))
    return table


def cell(result: Result) -> str:
    """A form's cell."""
    if result.max_difference is None:
        return result.note
    return f"{result.mismatches}/{result.tokens} {result.max_difference:.1e}"


def main(
    quick: Annotated[bool, typer.Option(help="Three short prompts, float32 only.")] = False,
    only: Annotated[
        list[str] | None, typer.Option(callback=check_models, help="Only this model; may be given again.")
    ] = None,
    skip_missing: Annotated[bool, typer.Option("--skip-missing", help="Leave out forms that are not here.")] = False,
    json_file: Annotated[
        Path | None, typer.Option("--json", callback=check_output, help="Write the results here.")
    ] = None,
) -> None:
    """Print the parity matrix; exit code 1 when a form is missing, fails or is off.

    Example: python -m benchmarks.parity --quick
    """
    from transformers.utils import logging

    import trillion_model

    sys.path.insert(0, str(Path(__file__).parents[1]))
    if (missing := missing_forms()) and not skip_missing:
        print(f"not installed: {', '.join(missing)}; give --skip-missing to leave it out", file=sys.stderr)
        raise typer.Exit(1)
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    trillion_model.register()
    asked = prompts(LENGTHS[:3] if quick else LENGTHS)
    chosen = [model for model in MODELS if not only or model in only]
    dtypes = ("float32",) if quick else ("float32", "bfloat16")
    cases = [(model, dtype, form) for model in chosen for dtype in dtypes for form in Form]
    results = []
    with (
        tempfile.TemporaryDirectory() as folder,
        Runners() as runners,
        Progress(console=Console(stderr=True), transient=True) as progress,
    ):
        task = progress.add_task("", total=len(cases))
        for model, dtype, form in cases:
            progress.update(task, description=f"{model}, {dtype}, {form}")
            directory = Path(folder) / f"{model}-{dtype}"
            if not directory.exists():
                write_model(model, dtype, directory)
            results.append(hold(runners, model, form, dtype, directory, asked))
            progress.advance(task)
            gc.collect()
    Console().print(render(results))
    if json_file is not None:
        write_output(json_file, json.dumps([asdict(result) for result in results], indent=2))
    if wrong := faults(results):
        print(*wrong, sep="\n")
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)
