"""The engine under every conversion: memory that does not grow with the checkpoint, checks, manifest, budget."""

import json
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from trillion_convert.errors import TargetError
from trillion_convert.manifest import MANIFEST, check_manifest, digest_file
from trillion_convert.streaming import BUDGET, PIECE, Budget, Conversion, Output, computed, stream
from trillion_convert.tensor_files import TensorFiles, TensorInfo
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


def test_memory_does_not_grow_with_the_checkpoint(tmp_path):
    """300 MB of zeros, which take no room in a sparse file, pass through a process that may keep a tenth of them."""
    header = {"small": (1, 0), "large": (25_000_000, 4), **{f"t{i}": (10_000_000, 4) for i in range(5)}}
    fields, end = {}, 0
    for name, (numbers, _) in header.items():
        fields[name] = {"dtype": "F32", "shape": [numbers], "data_offsets": [end, end + 4 * numbers]}
        end += 4 * numbers
    encoded = json.dumps(fields).encode()
    (tmp_path / "in").mkdir()
    with (tmp_path / "in" / "model.safetensors").open("wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + end)
    result = subprocess.run(
        [sys.executable, "-c", MEMORY, str(tmp_path / "in"), str(tmp_path / "out"), "float16"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(result.stdout) * 1024 < end // 8
    assert sum(info.nbytes for info in TensorFiles(tmp_path / "out").values()) == end // 2


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
