"""Checkpoints that torch.distributed.checkpoint saved, a file a rank, by two real processes."""

import shutil
import socket

import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
import torch.multiprocessing as mp
from safetensors.torch import load_file, save_file
from torch.distributed.checkpoint import HuggingFaceStorageWriter
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from trillion_convert.checkpoint import Form, open_checkpoint
from trillion_convert.export import export
from trillion_convert.rank_files import RankFiles, open_tensors
from trillion_convert.tensor_files import TensorFiles
from trillion_model.errors import CheckpointError

COLUMNS = "model.layers.2.self_attn.q_b_proj.weight"
"""Sharded by columns, where everything else is by rows."""
STACK = "model.layers.2.mlp.experts.gate_up_proj"


def save(rank: int, port: int, source: str, folders: dict[str, bool]) -> None:
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    weights = load_file(source)
    state = {name: distribute_tensor(t, mesh, [Shard(int(name == COLUMNS))]) for name, t in weights.items()}
    for folder, consolidated in folders.items():
        writer = HuggingFaceStorageWriter(folder, save_distributed=True, enable_consolidation=consolidated)
        dcp.save(state, storage_writer=writer)
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def saved(trained, tmp_path_factory):
    """The training checkpoint, its weights saved by two ranks: apart, and put together."""
    root = tmp_path_factory.mktemp("saved")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folders = {str(root / "apart"): False, str(root / "together"): True}
    mp.spawn(save, (port, str(trained / "model.safetensors"), folders), nprocs=2)
    for folder in folders:
        shutil.copytree(trained, folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("*.safetensors"))
    return root


@pytest.mark.parametrize(("name", "kind"), [("apart", RankFiles), ("together", TensorFiles)])
def test_an_export_is_the_same_as_from_one_file(saved, exported, tmp_path, name, kind):
    assert type(open_checkpoint(saved / name, Form.TRAIN).tensors) is kind
    export(saved / name, tmp_path / "out")
    one, other = (load_file(folder / "model.safetensors") for folder in (exported, tmp_path / "out"))
    assert one.keys() == other.keys()
    assert all(torch.equal(one[name], tensor) for name, tensor in other.items())


@pytest.mark.parametrize("name", [COLUMNS, STACK, "model.norm.weight"])
def test_any_range_is_read_from_whatever_ranks_have_it(saved, trained, name):
    tensors, whole = open_tensors(saved / "apart"), load_file(trained / "model.safetensors")[name]
    assert torch.equal(tensors.read(name), whole)
    for start in range(0, whole.numel(), max(1, whole.numel() // 7)):
        for stop in {start + 1, min(start + 1000, whole.numel()), whole.numel()}:
            assert torch.equal(tensors.read_range(name, start, stop), whole.flatten()[start:stop])


@pytest.fixture
def apart(saved, tmp_path):
    return shutil.copytree(saved / "apart", tmp_path / "apart")


def test_a_missing_rank_is_seen(apart):
    (apart / "shard-00001-model-00001-of-00001.safetensors").unlink()
    with pytest.raises(CheckpointError, match=r"its parts leave a gap; the file of a rank is missing"):
        open_checkpoint(apart, Form.TRAIN)


def test_parts_that_overlap_are_seen(apart):
    first = apart / "shard-00001-model-00001-of-00001.safetensors"
    shutil.copy(first, apart / "shard-00003-model-00001-of-00001.safetensors")
    with pytest.raises(CheckpointError, match=r"its parts in shard-00001-.* and shard-00003-.* overlap"):
        open_checkpoint(apart, Form.TRAIN)


def test_a_file_that_does_not_say_where_its_parts_begin(apart):
    first = apart / "shard-00001-model-00001-of-00001.safetensors"
    save_file(load_file(first), first)
    with pytest.raises(CheckpointError, match="has no DCP_SHARDING_INFO in its metadata"):
        open_checkpoint(apart, Form.TRAIN)


def test_a_pickled_distributed_checkpoint_is_refused_by_name(trained, tmp_path):
    folder = shutil.copytree(trained, tmp_path / "in")
    (folder / "model.safetensors").unlink()
    dcp.save({"weight": torch.ones(2)}, checkpoint_id=folder)
    assert {path.name for path in folder.iterdir()} >= {".metadata", "__0_0.distcp"}
    with pytest.raises(CheckpointError, match=r"holds \.distcp files, whose \.metadata is a pickle"):
        export(folder, tmp_path / "out")
    assert not (tmp_path / "out").exists()
