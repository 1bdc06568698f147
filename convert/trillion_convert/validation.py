"""Everything that can be checked of a checkpoint without running it, and every problem rather than the first."""

import json
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING, Any

from trillion_convert.checkpoint import Checkpoint, Form, find, listing, open_checkpoint
from trillion_convert.errors import ConvertError
from trillion_convert.manifest import check_manifest
from trillion_convert.safetensors_header import Report
from trillion_convert.tensor_files import DTYPES, INDEX, QUANTIZED_DTYPES, TensorFiles, TensorInfo, all_finite
from trillion_convert.tokenizer import check_tokenizer
from trillion_model.architecture import parse_config
from trillion_model.configuration import is_number
from trillion_model.errors import CheckpointError, ConfigError, TrillionError
from trillion_model.json_files import read_object

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

_READERS = 2
_SHOWN = 100
_MAY_STAY_FLOAT32 = re.compile(r"norm\b|\.mlp\.gate\.|\.mlp\.router\.")
"""Norms and routers, which some checkpoints keep in float32 beside half-precision weights."""
_SAMPLING = {"temperature": inf, "top_p": 1.0, "min_p": 1.0, "repetition_penalty": inf}
"""Fields of generation_config.json that must lie between 0 and this."""
_GENERATION = "generation_config.json"


@dataclass(frozen=True)
class Validation:
    """What was found.

    Attributes:
        path: the directory.
        form: how its tensors are named.
        tensors: how many were read.
        problems: a line each; none where the checkpoint is whole.
    """

    path: str
    form: Form
    tensors: int
    problems: tuple[str, ...]

    def to_json(self) -> str:
        """The same, for a program."""
        return json.dumps(asdict(self), indent=2)


def validate(path: Path, form: Form | None = None) -> Checkpoint:
    """Open a checkpoint and check everything that :func:`survey` does.

    Raises:
        CheckpointError: something does not fit; the message is the first problem, and says how many there are.
    """
    found = survey(path, form)
    if found.problems:
        first, *others = found.problems
        raise CheckpointError(f"{first} (and {len(others)} more problems)" if others else first)
    return open_checkpoint(path, form)


def survey(
    path: Path, form: Form | None = None, on_bytes: Callable[[int, int], None] = lambda done, total: None
) -> Validation:
    """Hold names, shapes, dtypes, numbers, index, configuration, tokenizer and checksums against each other.

    Args:
        path: the directory, or a training run's.
        form: what to expect; detected when None.
        on_bytes: told bytes of weights looked at so far, and in all.
    """
    problems: dict[str, None] = {}

    def report(error: TrillionError) -> None:
        problems[" ".join(str(error).split())] = None

    directory, detected = find(path)
    checkpoint, tensors = None, None
    with _reported(report):
        if _config(directory, report) is not None:
            checkpoint = open_checkpoint(directory, form, report)
            tensors = checkpoint.tensors
        else:
            tensors = TensorFiles(directory, report, dtypes=DTYPES | QUANTIZED_DTYPES)
    if checkpoint:
        _check_dtypes(checkpoint, report)
        with _reported(report):
            check_tokenizer(checkpoint, report)
        detected = checkpoint.form
        if checkpoint.form is not Form.TRAIN:
            _check_published(checkpoint, report)
    with _reported(report):
        check_manifest(directory)
    if tensors is not None:
        _check_numbers(tensors, report, on_bytes)
    return Validation(str(directory), form or detected, 0 if tensors is None else len(tensors), tuple(problems))


@contextmanager
def _reported(report: Report) -> Iterator[None]:
    """A block whose errors of ours are reported."""
    try:
        yield
    except (CheckpointError, ConfigError, ConvertError) as error:
        report(error)


def _config(directory: Path, report: Report) -> "PreTrainedConfig | None":
    """The configuration; None where it is wrong, each of its wrong fields reported."""
    path = directory / "config.json"
    with _reported(report):
        fields, wrong = read_object(path), list[str]()
        while True:
            try:
                config = parse_config(fields, str(path))
                return None if wrong else config
            except ConfigError as error:
                field = re.split(r"[.\[]", error.field)[0]
                # What is only wrong beside the default of a field that was wrong itself is no problem of its own.
                if not any(re.search(rf"\b{name}\b", error.expected) for name in wrong):
                    report(CheckpointError(f"{error}, in {path}"))
                if field not in fields:
                    return None
                wrong.append(field)
                fields = {name: value for name, value in fields.items() if name != field}
    return None


def _check_dtypes(checkpoint: Checkpoint, report: Report) -> None:
    """Tensors have the dtype that the configuration states, or one dtype where it states none."""
    config, tensors = checkpoint.architecture.config, checkpoint.tensors
    if checkpoint.form is Form.TRAIN or not config.dtype:
        stated, why = _commonest(tensors), "the other tensors are {}"
    else:
        stated, why = str(config.dtype).removeprefix("torch."), "dtype in config.json is {}"
    quantized = _quantized_dtypes(checkpoint, stated)
    others: dict[str, list[str]] = {}
    for name, info in tensors.items():
        wanted = quantized.get(name, stated)
        if info.dtype == wanted or (info.dtype == "float32" and _MAY_STAY_FLOAT32.search(name)):
            continue
        expected = why.format(stated) if wanted == stated else f"quantization_config in config.json means {wanted}"
        others.setdefault(f"stored as {info.dtype}, but {expected}", []).append(name)
    for problem, names in others.items():
        report(CheckpointError(f"{listing(names)}: {problem}"))


def _quantized_dtypes(checkpoint: Checkpoint, stated: str) -> dict[str, str]:
    """What tensors of a quantised checkpoint are stored in; nothing for any other."""
    if checkpoint.recipe is None:
        return {}
    shapes = checkpoint.architecture.published_shapes()
    plain = {name: TensorInfo(tuple(shape), stated) for name, shape in shapes.items()}
    return {name: info.dtype for name, info in checkpoint.recipe.stored_infos(plain).items()}


def _commonest(tensors: Mapping[str, TensorInfo]) -> str:
    sizes: dict[str, int] = {"float32": 0}
    for info in tensors.values():
        sizes[info.dtype] = sizes.get(info.dtype, 0) + info.nbytes
    return max(sizes, key=sizes.__getitem__)


def _check_published(checkpoint: Checkpoint, report: Report) -> None:
    """What engines read beside weights and configuration."""
    directory, architecture = checkpoint.directory, checkpoint.architecture
    if architecture.config.architectures != [architecture.class_name]:
        report(
            CheckpointError(
                f"architectures in config.json is {architecture.config.architectures}, but must be "
                f"[{architecture.class_name!r}]"
            )
        )
    used = checkpoint.tensors.files
    for file in sorted(directory.glob("*.safetensors")):
        if file.name not in used:
            report(
                CheckpointError(
                    f"{file} belongs to no {INDEX}, but engines may read every safetensors file there; remove it"
                )
            )
    with _reported(report):
        _check_generation(directory / _GENERATION, architecture.config, report)


def _check_generation(path: Path, config: "PreTrainedConfig", report: Report) -> None:
    """Token ids are the configuration's, and the rest is what Transformers takes."""
    from transformers import GenerationConfig

    if not path.exists():
        return
    fields = read_object(path)
    for name in ("bos_token_id", "eos_token_id", "pad_token_id"):
        ids, stated = _ids(fields.get(name)), _ids(getattr(config, name))
        for token_id in ids:
            if not isinstance(token_id, int) or isinstance(token_id, bool) or not 0 <= token_id < config.vocab_size:
                report(CheckpointError(f"{name} in {path} is {fields[name]!r}, but vocab_size is {config.vocab_size}"))
                break
        else:
            if ids and stated and not set(ids) & set(stated):
                report(
                    CheckpointError(f"{name} in {path} is {fields[name]}, but config.json has {getattr(config, name)}")
                )
    for name, most in _SAMPLING.items():
        value = fields.get(name)
        if value is not None and not (is_number(value) and 0 <= value <= most):
            report(CheckpointError(f"{name} in {path} is {value!r}, but must be a number from 0 to {most}"))
            fields = {key: kept for key, kept in fields.items() if key != name}
    try:
        GenerationConfig.from_dict(fields).validate(strict=True)
    except Exception as error:  # whatever a field of the wrong type leads to
        report(CheckpointError(f"{path} is refused by Transformers: {error}"))


def _ids(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [] if value is None else [value]


def _check_numbers(tensors: TensorFiles, report: Report, on_bytes: Callable[[int, int], None]) -> None:
    """No number is infinite or none at all; read in pieces, so memory stays small."""
    total, done = sum(info.nbytes for info in tensors.values()), 0

    def finite(name: str) -> bool:
        return all(map(all_finite, tensors.pieces(name)))

    with ThreadPoolExecutor(_READERS) as readers:
        for name, whole in zip(tensors, readers.map(finite, tensors), strict=True):
            if not whole:
                report(CheckpointError(f"{name}: holds numbers that are infinite or none at all"))
            done += tensors[name].nbytes
            on_bytes(done, total)


def render(found: Validation) -> None:
    """Print the problems on standard error, a line each, or that there are none."""
    if not found.problems:
        print(f"{found.path}: {found.tensors} tensors fit the configuration ({found.form} form)")
        return
    for problem in found.problems[:_SHOWN]:
        print(f"trillion-convert: {problem}", file=sys.stderr)
    hidden = len(found.problems) - _SHOWN
    more = f", {hidden} of them not shown: --json lists them all" if hidden > 0 else ""
    print(f"trillion-convert: {found.path} has {len(found.problems)} problem(s){more}", file=sys.stderr)
