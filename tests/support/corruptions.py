"""What may have been done to a checkpoint's directory: functions that do one thing to it."""

import json
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
QUERY = "model.layers.3.self_attn.q_a_proj.weight"  # (32, 64)
EXPERT = "model.layers.4.mlp.experts.2.up_proj.weight"
STACK = "model.layers.3.mlp.experts.down_proj"
HEAD = "lm_head.weight"
SCALE = QUERY + "_scale"  # (32, 1)

Corruption = Callable[[Path], object]


def weights(edit: Callable[[dict], object], file: str = WEIGHTS) -> Corruption:
    """Edit the tensors of a file."""

    def corrupt(folder: Path) -> None:
        tensors = load_file(folder / file)
        edit(tensors)
        save_file(tensors, folder / file)

    return corrupt


def tensor(name: str, value: Callable[[torch.Tensor], torch.Tensor]) -> Corruption:
    """Replace one tensor."""
    return weights(lambda tensors: tensors.update({name: value(tensors[name]).contiguous()}))


def number(name: str, value: float) -> Corruption:
    """Replace the last number of one tensor."""

    def corrupt(tensors: dict) -> None:
        tensors[name].view(-1)[-1] = value

    return weights(corrupt)


def content(change: Callable[[bytes], bytes], file: str = WEIGHTS) -> Corruption:
    """Replace the bytes of a file."""
    return lambda folder: (folder / file).write_bytes(change((folder / file).read_bytes()))


def raw_header(change: Callable[[bytes], bytes]) -> Corruption:
    """Replace the JSON of the header, its length made to fit."""

    def corrupt(old: bytes) -> bytes:
        (length,) = struct.unpack("<Q", old[:8])
        header = change(old[8 : 8 + length])
        return struct.pack("<Q", len(header)) + header + old[8 + length :]

    return content(corrupt)


def header(edit: Callable[[dict], object]) -> Corruption:
    """Edit the header."""

    def change(old: bytes) -> bytes:
        entries = json.loads(old)
        edit(entries)
        return json.dumps(entries).encode()

    return raw_header(change)


def entry(name: str, **fields) -> Corruption:
    """Replace fields of a tensor's entry in the header."""
    return header(lambda entries: entries[name].update(fields))


def move(name: str, begin: int, end: int) -> Corruption:
    """Move the ends of a tensor's bytes."""

    def edit(entries: dict) -> None:
        offsets = entries[name]["data_offsets"]
        entries[name]["data_offsets"] = [offsets[0] + begin, offsets[1] + end]

    return header(edit)


def gap(folder: Path) -> None:
    """Put four bytes before a tensor, and move it and all behind it."""
    old = (folder / WEIGHTS).read_bytes()
    (length,) = struct.unpack("<Q", old[:8])
    entries = json.loads(old[8 : 8 + length])
    begin = entries[QUERY]["data_offsets"][0]
    for found in entries.values():
        if found.get("data_offsets", [-1])[0] >= begin:
            found["data_offsets"] = [offset + 4 for offset in found["data_offsets"]]
    new, data = json.dumps(entries).encode(), old[8 + length :]
    (folder / WEIGHTS).write_bytes(struct.pack("<Q", len(new)) + new + data[:begin] + b"\0" * 4 + data[begin:])


def json_file(file: str, edit: Callable[[dict], object]) -> Corruption:
    """Edit a JSON file."""

    def corrupt(folder: Path) -> None:
        fields = json.loads((folder / file).read_text())
        edit(fields)
        (folder / file).write_text(json.dumps(fields))

    return corrupt


def config(**fields) -> Corruption:
    """Replace fields of config.json."""
    return json_file("config.json", lambda old: old.update(fields))


def generation(**fields) -> Corruption:
    """Replace fields of generation_config.json."""
    return json_file("generation_config.json", lambda old: old.update(fields))


def index(**listed) -> Corruption:
    """Replace the file of the head in the index."""
    return json_file(INDEX, lambda old: old["weight_map"].update({HEAD: listed["head"]}))


def text(file: str, value: str) -> Corruption:
    """Replace a file by a text."""
    return lambda folder: (folder / file).write_text(value)


def gone(file: str) -> Corruption:
    """Remove a file."""
    return lambda folder: (folder / file).unlink()


def replaced(file: str, make: Callable[[Path], object]) -> Corruption:
    """Put something else in a file's place."""

    def corrupt(folder: Path) -> None:
        (folder / file).unlink()
        make(folder / file)

    return corrupt


def linked_out(file: str) -> Corruption:
    """Move a file out of the directory and leave a link to it."""

    def corrupt(folder: Path) -> None:
        outside = folder.parents[1] / "outside.safetensors"
        shutil.move(folder / file, outside)
        (folder / file).symlink_to(outside)

    return corrupt


def copied_to_another_shard(folder: Path) -> None:
    """Store a tensor in two shards."""
    first, second = sorted(folder.glob("model-*.safetensors"))[:2]
    again = next(iter(load_file(first)))
    save_file(load_file(second) | {again: load_file(first)[again]}, second)


def repeated_key(old: bytes) -> bytes:
    """Name a tensor twice in one header."""
    found = json.loads(old)[QUERY]
    return b'{"' + QUERY.encode() + b'":' + json.dumps(found).encode() + b"," + old[1:]
