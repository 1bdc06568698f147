"""The file of weights is not what its header says, or no such file at all."""

import os
import pickle
import struct
from pathlib import Path

import pytest
import torch

from support.corruptions import (
    EXPERT,
    HEAD,
    QUERY,
    WEIGHTS,
    content,
    entry,
    gap,
    gone,
    header,
    linked_out,
    move,
    raw_header,
    repeated_key,
    replaced,
)
from support.refused import DAMAGED, Q, Row, assert_refused, rows

TABLE = {
    "an empty file": Row("hf", content(lambda old: b""), DAMAGED),
    "a file cut in its header length": Row("hf", content(lambda old: old[:4]), DAMAGED),
    "a file cut in its header": Row("hf", content(lambda old: old[:1000]), DAMAGED),
    "a file cut in its tensors": Row(
        "hf", content(lambda old: old[: len(old) // 2]), rf"\.weight: ends at .*{DAMAGED}"
    ),
    "a file without its last byte": Row("train", content(lambda old: old[:-1]), rf": ends at byte .*{DAMAGED}"),
    "a byte too many": Row("hf", content(lambda old: old + b"\0"), rf"{DAMAGED}: 1 bytes follow the end of .*\.weight"),
    "a header length of eight exabytes": Row("hf", content(lambda old: b"\xff" * 7 + b"\x7f" + old[8:]), DAMAGED),
    "a header longer than the file": Row("hf", content(lambda old: struct.pack("<Q", len(old)) + old[8:]), DAMAGED),
    "a header that is no JSON": Row(
        "hf", raw_header(lambda old: old[:-9]), r"header of .*model\.safetensors is not JSON"
    ),
    "a header that is no UTF-8": Row("hf", raw_header(lambda old: b"\xff" + old[1:]), r"header of .* is not JSON"),
    "a header that is a list": Row(
        "hf", raw_header(lambda old: b"[" + old + b"]"), r"header of .* of an object, but of list"
    ),
    "a header nested too deeply": Row(
        "hf", raw_header(lambda old: b'{"a":' * 90_000), r"header of .* nested too deeply"
    ),
    "a tensor named twice in a header": Row("hf", raw_header(repeated_key), rf"{Q}: listed twice in the header"),
    "metadata that is no text": Row(
        "hf", header(lambda e: e.update(__metadata__={"format": 1})), "__metadata__: must be"
    ),
    "a dtype that there is not": Row("hf", entry(QUERY, dtype="F33"), rf"{Q}: dtype is 'F33'"),
    "a dtype that is no text": Row("hf", entry(QUERY, dtype=["F32"]), rf"{Q}: dtype is \['F32'\]"),
    "a negative size": Row("hf", entry(QUERY, shape=[-32, -64]), rf"{Q}: shape is \[-32, -64\]"),
    "a size that is true": Row("hf", entry(QUERY, shape=[True, 2048]), rf"{Q}: shape is \[True, 2048\]"),
    "a shape larger than its bytes": Row("hf", entry(QUERY, shape=[32, 65]), rf"{Q}: data_offsets .* takes 8,320"),
    "a shape of ten to the thirty numbers": Row("hf", entry(QUERY, shape=[10**15, 10**15]), rf"{Q}: data_offsets"),
    "offsets the wrong way round": Row(
        "hf", entry(QUERY, data_offsets=[8192, 0]), rf"{Q}: data_offsets .* -8,192 bytes"
    ),
    "offsets that are no pair": Row("hf", entry(QUERY, data_offsets=[0]), rf"{Q}: data_offsets are \[0\]"),
    "an entry without offsets": Row(
        "hf", header(lambda e: e[QUERY].pop("data_offsets")), rf"{Q}: must be an object of"
    ),
    "offsets beyond the file": Row("hf", move(QUERY, 10**9, 10**9), rf"{Q}: ends at byte 1,0"),
    "tensors that overlap": Row("hf", move(QUERY, -4, -4), rf"{Q}: overlaps model\.\S+ by 4 bytes"),
    "bytes that are no tensor's": Row("hf", gap, rf"{Q}: 4 bytes before it in .* are no tensor's"),
    "two tensors in one place": Row(
        "hf",
        header(
            lambda e: e[EXPERT].update(data_offsets=e["model.layers.4.mlp.experts.1.up_proj.weight"]["data_offsets"])
        ),
        r"experts\.[12]\.up_proj\.weight: overlaps \S+experts\.[12]\.up_proj\.weight by 8,192 bytes",
    ),
    "a pickle under another name": Row(
        "hf",
        replaced(WEIGHTS, lambda path: torch.save({HEAD: torch.zeros(2)}, path)),
        r"model\.safetensors is a pickle",
    ),
    "a bare pickle under another name": Row(
        "hf",
        replaced(WEIGHTS, lambda path: path.write_bytes(pickle.dumps({HEAD: [0.0]}))),
        r"model\.safetensors is a pickle",
    ),
    "pickle files only": Row(
        "train",
        lambda folder: (folder / WEIGHTS).rename(folder / "pytorch_model.bin"),
        r"pickle files only \(pytorch_model\.bin\)",
    ),
    "no weights": Row("train", gone(WEIGHTS), r"holds no weights: expected model\.safetensors or"),
    "a directory in the weights' place": Row(
        "hf", replaced(WEIGHTS, Path.mkdir), r"model\.safetensors is not safetensors, but a directory"
    ),
    "a pipe in the weights' place": Row(
        "hf", replaced(WEIGHTS, os.mkfifo), r"model\.safetensors is not safetensors, but a directory or a device"
    ),
    "a link out of the directory": Row(
        "hf", linked_out(WEIGHTS), r"model\.safetensors is a link to .*outside\.safetensors"
    ),
    "a link to itself": Row("hf", replaced(WEIGHTS, lambda path: path.symlink_to(path.name)), "holds no weights"),
    "a shard that is a link to itself": Row(
        "shards",
        replaced("model-00003-of-00004.safetensors", lambda path: path.symlink_to(path.name)),
        r"model-00003-of-00004\.safetensors is a link that leads to itself",
    ),
    "a link to nothing": Row(
        "hf", replaced(WEIGHTS, lambda path: path.symlink_to("nothing")), r"model\.safetensors|holds no weights"
    ),
}


@pytest.mark.parametrize(("row", "turn"), rows(TABLE))
def test_refused(row, turn, good, tmp_path):
    assert_refused(row, turn, good, tmp_path)
