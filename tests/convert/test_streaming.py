"""The engine under every conversion: memory that does not grow with the checkpoint, checks, manifest, budget."""

import json
import os
import shutil
import subprocess
import sys
import threading
from math import prod
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trillion_convert.errors import TargetError
from trillion_convert.manifest import MANIFEST, check_manifest, digest_file
from trillion_convert.streaming import BUDGET, PIECE, Budget, Conversion, Output, computed, stream
from trillion_convert.tensor_files import TensorFiles, TensorInfo
from trillion_model.architecture import Architecture, read_config
from trillion_model.errors import CheckpointError

MEMORY = """
import os, resource, sys
from pathlib import Path
import torch
from trillion_convert.streaming import Conversion, Output, stream
from trillion_convert.conversion import Range, read_ranges
from trillion_convert.tensor_files import TensorFiles, TensorInfo

source, target, dtype = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
tensors = TensorFiles(source)

def convert(names, target):
    outputs = {
        name: Output(TensorInfo(tensors[name].shape, dtype),
                     lambda name=name: read_ranges(tensors, [Range(name, 0, tensors[name].shape[0])], dtype))
        for name in names
    }
    stream(Conversion("test", outputs, {}, [source]), target, finish=lambda folder: None, max_shard_size="100MB")

convert(["small"], target.with_name("first"))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
convert(list(tensors), target)
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


def nothing(folder: Path) -> None:
    pass


def output(tensor: torch.Tensor) -> Output:
    info = TensorInfo(tuple(tensor.shape), str(tensor.dtype).removeprefix("torch."))
    return Output(info, lambda: [tensor])


def write(target: Path, outputs: dict[str, Output], **options) -> dict[str, torch.Tensor]:
    stream(Conversion("test", outputs, {}, []), target, finish=nothing, **options)
    return {name: t for file in sorted(target.glob("*.safetensors")) for name, t in load_file(file).items()}


def write_zeros(path: Path, tensors: dict[str, tuple[str, int, tuple[int, ...]]]) -> int:
    """Write tensors of zeros, given by dtype, bytes of a number and shape, into a sparse file; returns their bytes."""
    fields, end = {}, 0
    for name, (dtype, size, shape) in tensors.items():
        begin, end = end, end + size * prod(shape)
        fields[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    encoded = json.dumps(fields).encode()
    with path.open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)
    return end


def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    """300 MB of zeros, which take no room in a sparse file, pass through a process that may keep a tenth of them."""
    shapes = {"small": (1,), "large": (25_000_000,), **{f"t{i}": (10_000_000,) for i in range(5)}}
    (tmp_path / "in").mkdir()
    end = write_zeros(
        tmp_path / "in" / "model.safetensors", {name: ("F32", 4, shape) for name, shape in shapes.items()}
    )
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "in"), str(tmp_path / "out"), "float16"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(result.stdout) * 1024 < end // 8
    assert sum(info.nbytes for info in TensorFiles(tmp_path / "out").values()) == end // 2


QUANTISED = """
import resource, sys
from pathlib import Path
from trillion_convert.quantize.directory import quantize
from trillion_convert.quantize.recipe import Recipe, Scheme

source, target = Path(sys.argv[1]), Path(sys.argv[2])
quantize(Path(sys.argv[3]), target.with_name("first"), Recipe(Scheme.INT8_W8A8))
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
quantize(source, target, Recipe(Scheme.INT8_W8A8))
print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)
"""


WIDE = {
    "vocab_size": 4096,
    "hidden_size": 2048,
    "intermediate_size": 16_384,
    "num_hidden_layers": 1,
    "layer_types": None,
    "kv_lora_rank": 32,
    "q_lora_rank": 32,
    "dtype": "bfloat16",
}


def test_memory_does_not_grow_with_a_checkpoint_that_is_quantised(exported, tmp_path):
    """250 MB of zeros, a third of which are embeddings, that are kept."""
    source = shutil.copytree(exported, tmp_path / "in")
    (source / MANIFEST).unlink()
    (source / "config.json").write_text(json.dumps(json.loads((source / "config.json").read_text()) | WIDE))
    shapes = Architecture.of(read_config(source)).published_shapes()
    nbytes = write_zeros(source / "model.safetensors", {name: ("BF16", 2, shape) for name, shape in shapes.items()})
    result = subprocess.run(
        [sys.executable, "-c", QUANTISED, str(source), str(tmp_path / "out"), str(exported)],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(result.stdout) * 1024 < nbytes // 2


def test_pieces_of_any_size_are_one_tensor(tmp_path):
    tensor = torch.arange(3 * PIECE // 4 + 5, dtype=torch.float32)
    made = Output(TensorInfo(tuple(tensor.shape), "float32"), lambda: tensor.split([1, 7, len(tensor) - 8]))
    assert torch.equal(write(tmp_path / "out", {"t": made})["t"], tensor)


def test_tensors_that_are_made_together_are_made_once_a_file(tmp_path):
    calls = []

    def produce() -> dict[str, torch.Tensor]:
        calls.append(threading.get_ident())
        return {"q": torch.ones(4096, dtype=torch.int8), "scale": torch.full((2,), 0.5)}

    infos = {"q": TensorInfo((4096,), "int8"), "scale": TensorInfo((2,), "float32")}
    written = write(tmp_path / "one", computed(infos, produce, held=1000))
    assert (written["q"].sum(), written["scale"].tolist(), len(calls)) == (4096, [0.5, 0.5], 1)
    calls.clear()
    written = write(tmp_path / "two", computed(infos, produce, held=1000), max_shard_size="4KB")
    assert (written["q"].sum(), written["scale"].tolist(), len(calls)) == (4096, [0.5, 0.5], 2)


def test_a_budget_is_never_exceeded_but_by_one_alone():
    budget, together, most = Budget(100), 0, 0
    lock = threading.Lock()

    def work(nbytes: int) -> None:
        nonlocal together, most
        for _ in range(50):
            with budget.take(nbytes):
                with lock:
                    together += nbytes
                    most = max(most, together)
                    assert together <= 100 or together == nbytes
                with lock:
                    together -= nbytes

    threads = [threading.Thread(target=work, args=(nbytes,)) for nbytes in (30, 40, 60, 250)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert budget.taken == together == 0
    assert budget.peak == most == 250
    assert BUDGET <= 2**30


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("number", [float("nan"), float("inf"), float("-inf")])
def test_one_number_among_many_is_found_by_tensor(tmp_path, dtype, number):
    tensor = torch.zeros(PIECE, dtype=dtype)
    tensor[-1] = number
    with pytest.raises(CheckpointError, match=r"^b: holds numbers that are infinite or none at all"):
        write(tmp_path / "out", {"a": output(torch.ones(3)), "b": output(tensor)})
    assert list(tmp_path.iterdir()) == []


def test_an_error_in_one_file_ends_the_others(tmp_path):
    def fail():
        raise RuntimeError("the disk of the source is gone")

    outputs = {f"t{i}": output(torch.zeros(1000)) for i in range(20)}
    outputs["t10"] = Output(TensorInfo((1000,), "float32"), fail)
    with pytest.raises(RuntimeError, match="the disk of the source is gone"):
        write(tmp_path / "out", outputs, max_shard_size="4KB")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="needs two processors")
def test_files_are_written_side_by_side(tmp_path):
    """Each of two files waits, half written, until the other is so far."""
    meeting = threading.Barrier(2, timeout=10)

    def pieces():
        yield torch.zeros(500)
        meeting.wait()
        yield torch.ones(500)

    outputs = {name: Output(TensorInfo((1000,), "float32"), pieces) for name in "ab"}
    written = write(tmp_path / "out", outputs, max_shard_size="4KB")
    assert [tensor.sum() for tensor in written.values()] == [500, 500]


def test_a_source_that_changes_while_it_is_read_is_refused(tmp_path):
    (tmp_path / "in").mkdir()
    conversion = Conversion("test", {"t": output(torch.ones(3))}, {}, [tmp_path / "in"])
    with pytest.raises(CheckpointError, match="was changed while it was read"):
        stream(conversion, tmp_path / "out", finish=lambda folder: (tmp_path / "in" / "late").touch())
    assert not (tmp_path / "out").exists()


def test_a_disk_that_fills_up_keeps_what_is_finished(tmp_path):
    def finish(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    conversion = Conversion("test", {"t": output(torch.ones(3))}, {}, [])
    with pytest.raises(TargetError, match=r"No space left on device; .*\.out\.partial holds what is finished"):
        stream(conversion, tmp_path / "out", finish=finish)
    assert (tmp_path / ".out.partial" / "files" / "model.safetensors").is_file()


@pytest.fixture
def written(tmp_path):
    def finish(folder: Path) -> None:
        (folder / "config.json").write_text("{}")

    outputs = {f"t{i}": output(torch.full((1000,), float(i))) for i in range(3)}
    stream(Conversion("test", outputs, {}, []), tmp_path / "out", finish=finish, max_shard_size="4KB")
    return tmp_path / "out"


def test_a_manifest_lists_every_file_with_its_digest(written):
    from blake3 import blake3

    manifest = json.loads((written / MANIFEST).read_text())
    files = {path.name for path in written.iterdir()} - {MANIFEST}
    assert manifest["files"].keys() == files and len(files) == 5
    for name, entry in manifest["files"].items():
        data = (written / name).read_bytes()
        assert entry == {"size": len(data), "digest": blake3(data).hexdigest()}
    assert (manifest["command"], manifest["digest"], manifest["sources"]) == ("test", "blake3", [])
    assert manifest["tool"].startswith("trillion-convert ")
    assert check_manifest(written) == 5


SHARD = "model-00002-of-00003.safetensors"


@pytest.mark.parametrize(
    ("damage", "match"),
    [
        (lambda folder: (folder / SHARD).unlink(), rf"{SHARD} is missing, but manifest\.json lists it"),
        (lambda folder: (folder / SHARD).write_bytes(b""), rf"{SHARD} has 0 bytes, but manifest\.json says"),
        (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json has the digest .* it was changed"),
        (lambda folder: (folder / "x.safetensors").write_bytes(b""), r"x\.safetensors is not in manifest\.json"),
        (lambda folder: (folder / MANIFEST).write_text("{}"), r"is no manifest of ours"),
    ],
)
def test_whatever_does_not_agree_with_the_manifest_is_named(written, damage, match):
    damage(written)
    with pytest.raises(CheckpointError, match=match):
        check_manifest(written)


def test_a_manifest_cannot_point_outside(written):
    manifest = json.loads((written / MANIFEST).read_text())
    manifest["files"]["../secret"] = digest_file(written / "config.json").model_dump()
    (written / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(CheckpointError, match=r"lists '\.\./secret', which is outside the directory"):
        check_manifest(written)


def test_a_directory_without_a_manifest_is_not_checked(tmp_path):
    assert check_manifest(tmp_path) is None
