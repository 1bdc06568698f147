"""Corrupted checkpoints, a row each: what is done to a good one, and what the refusal must name.

Every row is refused twice. ``validate`` lists the problem; and a command that reads such a directory (``export`` a
training checkpoint; ``import``, ``merge`` and ``quantize`` a published one, in turn) stops with it and leaves nothing
behind. What shows only while the target is being written, a number that is none, goes through each of them.

    python -m pytest tests/convert/test_corrupted.py -v     prints the table
"""

import json
import os
import pickle
import re
import shutil
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from trillion_convert.cli import app
from trillion_convert.manifest import MANIFEST
from trillion_convert.validation import survey
from trillion_model.errors import TrillionError

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
QUERY = "model.layers.3.self_attn.q_a_proj.weight"  # (32, 64)
EXPERT = "model.layers.4.mlp.experts.2.up_proj.weight"
STACK = "model.layers.3.mlp.experts.down_proj"
HEAD = "lm_head.weight"
SCALE = QUERY + "_scale"  # (32, 1)

Corruption = Callable[[Path], object]


# What is done to a directory.


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


# The table.


@dataclass(frozen=True)
class Row:
    """A corrupted checkpoint.

    Attributes:
        form: the good one: ``train``, ``hf`` (one file), ``shards``, ``fp8`` (quantised) or ``whole`` (``hf`` with its
            manifest).
        corrupt: what is done to it.
        names: what the message must say, a pattern.
        commands: whether commands that convert must refuse it too, or only ``validate`` reads what is wrong.
    """

    form: str
    corrupt: Corruption
    names: str
    commands: bool = True


DAMAGED = r"model\.safetensors is truncated or not safetensors"
Q = re.escape(QUERY)
E = re.escape(EXPERT)
H = re.escape(HEAD)
S = re.escape(SCALE)

TABLE = {
    # The file of weights.
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
    # Tensors.
    "a missing tensor": Row("train", weights(lambda t: t.pop(STACK)), rf"lacks {re.escape(STACK)}"),
    "a missing expert": Row("hf", weights(lambda t: t.pop(EXPERT)), rf"lacks {E}"),
    "a missing layer": Row(
        "hf", weights(lambda t: [t.pop(n) for n in list(t) if ".layers.6." in n]), r"lacks model\.layers\.6\..* more"
    ),
    "a layer too many": Row(
        "hf",
        weights(
            lambda t: t.update({n.replace("rs.6", "rs.7"): x.clone() for n, x in list(t.items()) if ".layers.6." in n})
        ),
        r"has model\.layers\.7\.",
    ),
    "a head that was left out as if tied": Row("hf", weights(lambda t: t.pop(HEAD)), rf"lacks {H}"),
    "a tensor that no part reads": Row(
        "hf", weights(lambda t: t.update({"model.x": torch.zeros(1)})), r"has model\.x, which no part"
    ),
    "a bias": Row("train", weights(lambda t: t.update({"lm_head.bias": torch.zeros(320)})), r"has lm_head\.bias"),
    "training names in a published directory": Row(
        "hf",
        weights(
            lambda t: t.update(
                {STACK: torch.stack([t.pop(STACK.replace("down", f"{e}.down") + ".weight") for e in range(4)])}
            )
        ),
        r"lacks model\.layers\.3\.mlp\.experts\.0\.down_proj\.weight",
    ),
    "a wrong shape": Row(
        "train", tensor(QUERY, lambda t: torch.zeros(32, 65)), rf"{Q}: shape is \(32, 65\).*\(32, 64\)"
    ),
    "a transposed matrix": Row("hf", tensor(QUERY, lambda t: t.T), rf"{Q}: shape is \(64, 32\).*\(32, 64\)"),
    "a flattened matrix": Row("hf", tensor(QUERY, lambda t: t.flatten()), rf"{Q}: shape is \(2048,\)"),
    "a tensor without numbers": Row("hf", tensor(QUERY, lambda t: t[:0]), rf"{Q}: shape is \(0, 64\)"),
    "a single number": Row("hf", tensor(HEAD, lambda t: t.sum()), rf"{H}: shape is \(\)"),
    "whole numbers": Row("hf", tensor(QUERY, lambda t: t.long()), rf"{Q}: stored as I64, but weights are one of F32"),
    "truth values": Row("train", tensor(QUERY, lambda t: t.bool()), rf"{Q}: stored as BOOL"),
    "numbers of eight bytes": Row("hf", tensor(QUERY, lambda t: t.double()), rf"{Q}: stored as F64"),
    "eight-bit numbers in a plain checkpoint": Row(
        "hf", tensor(QUERY, lambda t: t.to(torch.float8_e4m3fn)), rf"{Q}: stored as F8_E4M3"
    ),
    "a number that is none": Row(
        "hf", number(EXPERT, float("nan")), rf"({E}|layers\.4\.mlp\.experts\.gate_up_proj): holds"
    ),
    "an infinite number": Row("train", number(QUERY, float("inf")), rf"{Q}: holds numbers"),
    "a number that is minus infinity": Row("hf", number(HEAD, -float("inf")), rf"{H}: holds numbers"),
    "one tensor in another dtype": Row(
        "hf",
        tensor(QUERY, lambda t: t.half()),
        rf"{Q}: stored as float16, but dtype in config\.json is",
        commands=False,
    ),
    # The index.
    "an index to a parent directory": Row(
        "shards", index(head="../model.safetensors"), rf"{H}: .*'\.\./model\.safetensors'"
    ),
    "an index to an absolute path": Row("shards", index(head="/etc/x.safetensors"), rf"{H}: .*'/etc/x\.safetensors'"),
    "an index to a folder": Row("shards", index(head="a/x.safetensors"), rf"{H}: .*'a/x\.safetensors'"),
    "an index with backslashes": Row(
        "shards", index(head="..\\x.safetensors"), rf"{H}: .* but shards lie beside the index"
    ),
    "an index with a zero byte": Row(
        "shards", index(head="x\0.safetensors"), rf"{H}: .* but shards lie beside the index"
    ),
    "an index to a number": Row("shards", index(head=7), rf"{H}: .* gives the file 7"),
    "an index to a name that is too long": Row(
        "shards", index(head="x" * 300 + ".safetensors"), r"x+\.safetensors cannot be read: File name too long"
    ),
    "an index to a pickle": Row(
        "shards", index(head="pytorch_model.bin"), rf"{H}: .*'pytorch_model\.bin', but only safetensors"
    ),
    "an index to a shard that is missing": Row(
        "shards", index(head="model-9.safetensors"), r"model-9\.safetensors is missing"
    ),
    "a missing shard": Row(
        "shards", gone("model-00002-of-00004.safetensors"), r"model-00002-of-00004\.safetensors is missing"
    ),
    "a truncated shard": Row(
        "shards",
        content(lambda old: old[:-5], "model-00002-of-00004.safetensors"),
        r": ends at .*model-00002-of-00004\.safetensors is truncated",
    ),
    "a shard that is a link out": Row(
        "shards", linked_out("model-00003-of-00004.safetensors"), r"model-00003-of-00004\.safetensors is a link to"
    ),
    "a tensor in two shards": Row(
        "shards", copied_to_another_shard, r"\.weight: stored twice, in model-00001.* and in model-00002"
    ),
    "a tensor that is not listed": Row(
        "shards", json_file(INDEX, lambda i: i["weight_map"].pop(HEAD)), rf"{H}: stored in .* does not list it"
    ),
    "a tensor that is elsewhere": Row(
        "shards", index(head="model-00001-of-00004.safetensors"), rf"{H}: .* says it is in model-00001"
    ),
    "a tensor that is listed twice": Row(
        "shards",
        content(
            lambda old: old.replace(b'"weight_map": {', b'"weight_map": {"lm_head.weight": "a.safetensors",'), INDEX
        ),
        rf"{H}: listed twice in .*{INDEX}",
    ),
    "an index that is no JSON": Row("shards", text(INDEX, "{"), r"index\.json is not JSON"),
    "an index that is a list": Row("shards", text(INDEX, "[]"), r"index\.json is not JSON of an object"),
    "an index without a map": Row("shards", text(INDEX, "{}"), r"index\.json has no weight_map"),
    "an index with an empty map": Row("shards", text(INDEX, '{"weight_map": {}}'), r"index\.json has no weight_map"),
    "an index that is a directory": Row(
        "shards", replaced(INDEX, Path.mkdir), r"index\.json cannot be read: Is a directory"
    ),
    "a wrong total size": Row(
        "shards", json_file(INDEX, lambda i: i["metadata"].update(total_size=5)), r"metadata\.total_size in .* is 5"
    ),
    "an index beside a whole file": Row(
        "shards", lambda folder: save_file({}, folder / WEIGHTS), f"holds both {WEIGHTS} and {INDEX}"
    ),
    "a shard that no index lists": Row(
        "shards",
        lambda folder: save_file({}, folder / "model-00005-of-00005.safetensors"),
        r"model-00005-of-00005\.safetensors belongs to no",
        commands=False,
    ),
    # The configuration.
    "no configuration": Row("train", gone("config.json"), r"has no config\.json"),
    "a configuration that is no JSON": Row("train", text("config.json", "{"), r"config\.json is not JSON"),
    "a configuration that is a list": Row("hf", text("config.json", "[]"), r"config\.json is not JSON of an object"),
    "a configuration nested too deeply": Row(
        "hf", text("config.json", '{"a":' * 90_000), r"config\.json .* nested too deeply"
    ),
    "a configuration with a field twice": Row(
        "hf",
        content(lambda old: old.replace(b"{", b'{"hidden_size": 65,', 1), "config.json"),
        r"hidden_size: listed twice in .*config\.json",
    ),
    "a configuration that is a directory": Row(
        "hf", replaced("config.json", Path.mkdir), r"config\.json cannot be read"
    ),
    "a family that there is not": Row("hf", config(model_type="vaetkii"), r"model_type in .* is 'vaetkii'"),
    "no family": Row("train", config(model_type=None), r"model_type in .* is None"),
    "a negative rank": Row("train", config(q_lora_rank=-1), "q_lora_rank is -1"),
    "a text for a number": Row("hf", config(hidden_size="64"), "hidden_size is '64'"),
    "a fraction of a size": Row("hf", config(moe_intermediate_size=32.5), r"moe_intermediate_size is 32\.5"),
    "null for a window": Row("hf", config(sliding_window=None), "sliding_window is None"),
    "layer types of fewer layers": Row("hf", config(layer_types=["full_attention"]), "layer_types is"),
    "a layer type that there is not": Row(
        "hf", config(layer_types=["full_attention"] * 6 + ["half"]), r"layer_types\[6\] is 'half'"
    ),
    "a RoPE scaling without a type": Row("hf", config(rope_scaling={"factor": 2}), r"rope_scaling\.rope_type is None"),
    "a RoPE scaling by zero": Row(
        "hf", config(rope_scaling={"rope_type": "linear", "factor": 0}), r"rope_scaling\.factor is 0"
    ),
    "more experts a token than there are": Row("hf", config(num_experts_per_tok=5), "num_experts_per_tok is 5"),
    "more dense layers than there are": Row("hf", config(first_k_dense_replace=8), "first_k_dense_replace is 8"),
    "another activation": Row("hf", config(hidden_act="gelu"), "hidden_act is 'gelu'"),
    "another router": Row("hf", config(scoring_func="softmax"), "scoring_func is 'softmax'"),
    "a tied head": Row("hf", config(tie_word_embeddings=True), "tie_word_embeddings is True"),
    "a dtype of weights that there is not": Row("hf", config(dtype="int3"), "dtype is 'int3'"),
    "a field that Transformers cannot read": Row(
        "hf", config(id2label=3), r"config\.json is no configuration of vaetki"
    ),
    "a layer more than there is": Row(
        "hf",
        json_file("config.json", lambda c: c.update(num_hidden_layers=8, layer_types=["full_attention"] * 8)),
        r"lacks model\.layers\.7\..* more",
    ),
    "another hidden size": Row(
        "hf", config(hidden_size=96), r"model\.embed_tokens\.weight: shape is \(320, 64\).*\(320, 96\)"
    ),
    "a dense layer more than there is": Row(
        "hf", config(first_k_dense_replace=2), r"lacks model\.layers\.1\.mlp\.gate_proj\.weight"
    ),
    "another vocabulary": Row(
        "hf", config(vocab_size=321), r"model\.embed_tokens\.weight: shape is \(320, 64\).*\(321, 64\)"
    ),
    "an end token beyond the vocabulary": Row("hf", config(eos_token_id=320), "eos_token_id is 320"),
    "a negative begin token": Row("hf", config(bos_token_id=-1), "bos_token_id is -1"),
    "a dtype that is not the tensors'": Row(
        "hf", config(dtype="bfloat16"), r"stored as float32, but dtype in config\.json is bfloat16", commands=False
    ),
    "another class": Row(
        "hf", config(architectures=["LlamaForCausalLM"]), r"architectures in config\.json", commands=False
    ),
    # The tokenizer.
    "no tokenizer": Row("hf", gone("tokenizer.json"), r"holds no tokenizer: expected tokenizer\.json"),
    "a damaged tokenizer": Row("train", text("tokenizer/tokenizer.json", "{"), "the tokenizer in .* cannot be read"),
    "an empty tokenizer": Row("hf", text("tokenizer.json", "{}"), "the tokenizer in .* cannot be read"),
    "a tokenizer with more tokens than embeddings": Row(
        "train",
        lambda folder: (
            config(vocab_size=319)(folder),
            weights(lambda t: t.update({n: torch.zeros(319, 64) for n in ("model.embed_tokens.weight", HEAD)}))(folder),
        ),
        r"has 320 tokens, but vocab_size in config\.json is 319",
    ),
    "an end token that is not the tokenizer's": Row(
        "train", config(eos_token_id=5), r"eos_token_id is 5 in config\.json"
    ),
    "a begin token that is not the tokenizer's": Row(
        "hf", config(bos_token_id=5), r"bos_token_id is 5 in config\.json"
    ),
    "a padding token that is not the tokenizer's": Row(
        "hf", config(pad_token_id=5), r"pad_token_id is 5 in config\.json"
    ),
    "a chat template that does not parse": Row(
        "hf", text("chat_template.jinja", "{% for %}"), "chat_template in .* fails"
    ),
    "a chat template that raises": Row(
        "hf", text("chat_template.jinja", "{{ raise_exception('no') }}"), "chat_template in .* fails .*: no"
    ),
    # How to generate.
    "a generation file that is no JSON": Row(
        "hf", text("generation_config.json", "{"), r"generation_config\.json is not JSON", commands=False
    ),
    "another end of generation": Row(
        "hf", generation(eos_token_id=7), r"eos_token_id in .*generation_config\.json is 7", commands=False
    ),
    "an end of generation beyond the vocabulary": Row(
        "hf",
        generation(eos_token_id=[2, 999]),
        r"eos_token_id in .*generation_config\.json is \[2, 999\]",
        commands=False,
    ),
    "a temperature that is a text": Row(
        "hf", generation(temperature="hot"), r"temperature in .*generation_config\.json is 'hot'", commands=False
    ),
    "a negative temperature": Row("hf", generation(temperature=-1.0), r"temperature in .* is -1\.0", commands=False),
    # Quantised.
    "a scale that is missing": Row("fp8", weights(lambda t: t.pop(SCALE)), rf"lacks {S}", commands=False),
    "a scale of another shape": Row("fp8", tensor(SCALE, lambda t: t.T), rf"{S}: shape is \(1, 32\)", commands=False),
    "a scale that is none": Row("fp8", number(SCALE, float("nan")), rf"{S}: holds numbers", commands=False),
    "an eight-bit number that is none": Row("fp8", number(QUERY, float("nan")), rf"{Q}: holds numbers", commands=False),
    "whole numbers for eight-bit floats": Row(
        "fp8",
        tensor(QUERY, lambda t: t.view(torch.int8)),
        rf"{Q}: stored as int8, but quantization_config .* float8_e4m3fn",
        commands=False,
    ),
    "a quantisation that is not ours": Row(
        "fp8",
        config(quantization_config={"quant_method": "gptq"}),
        r"quantization_config in config\.json cannot be read",
        commands=False,
    ),
    # The manifest.
    "a number that was changed": Row(
        "whole",
        content(lambda old: old[:-1] + bytes([old[-1] ^ 1])),
        r"model\.safetensors has the digest",
        commands=False,
    ),
    "a card that was changed": Row(
        "whole", text("README.md", ""), r"README\.md has 0 bytes, but manifest\.json says", commands=False
    ),
    "a listed file that is missing": Row(
        "whole", gone("README.md"), r"README\.md is missing, but manifest\.json lists it", commands=False
    ),
    "a manifest that leaves the directory": Row(
        "whole",
        json_file(MANIFEST, lambda m: m["files"].update({"../x": m["files"]["README.md"]})),
        r"manifest\.json lists '\.\./x'",
        commands=False,
    ),
    "a manifest that is no JSON": Row(
        "whole", text(MANIFEST, "{"), r"manifest\.json is no manifest of ours", commands=False
    ),
}


@pytest.fixture(scope="session")
def good(trained, exported, tmp_path_factory):
    """The good checkpoints, without manifests: else every row would be a broken checksum before anything else."""
    home = tmp_path_factory.mktemp("good")
    shutil.copytree(trained, home / "train")
    shutil.copytree(exported, home / "hf")
    result = CliRunner().invoke(app, ["export", str(trained), str(home / "shards"), "--max-shard-size", "1MB"])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["quantize", str(exported), str(home / "fp8"), "--scheme", "fp8-dynamic"])
    assert result.exit_code == 0, result.output
    for manifest in home.rglob(MANIFEST):
        manifest.unlink()
    shutil.copytree(exported, home / "whole")
    return home


COMMANDS = {
    "train": [["export", "{source}", "{target}"]],
    "hf": [
        ["import", "{source}", "{target}"],
        ["merge", "{source}", "{source}", "{target}"],
        ["quantize", "{source}", "{target}", "--scheme", "fp8-dynamic"],
    ],
}
COMMANDS["shards"] = COMMANDS["hf"]


@pytest.mark.parametrize("form", ["train", "hf", "shards", "fp8", "whole"])
def test_the_good_ones_have_no_problem(good, form):
    assert survey(good / form).problems == ()


def commands_for(row: Row) -> list[list[str]]:
    """The commands that must refuse a row."""
    if not row.commands:
        return []
    commands = COMMANDS[row.form]
    return commands if "holds" in row.names else [commands[list(TABLE.values()).index(row) % len(commands)]]


@pytest.mark.parametrize("name", TABLE)
def test_refused(name, good, tmp_path):
    row = TABLE[name]
    source = shutil.copytree(good / row.form, tmp_path / "work" / "in")
    row.corrupt(source)
    problems = survey(source).problems
    assert any(re.search(row.names, problem) for problem in problems), problems
    assert all("\n" not in problem for problem in problems)
    for command in commands_for(row):
        arguments = [part.format(source=source, target=source.parent / "out") for part in command]
        result = CliRunner().invoke(app, arguments)
        assert isinstance(result.exception, TrillionError), (command[0], result.exception, result.output)
        assert re.search(row.names, str(result.exception)), (command[0], result.exception)
        assert [path.name for path in source.parent.iterdir()] == ["in"], f"{command[0]} left something behind"


def test_every_problem_is_listed_and_not_only_the_first(good, tmp_path):
    source = shutil.copytree(good / "hf", tmp_path / "in")
    config(q_lora_rank=0, hidden_act="gelu", moe_intermediate_size="x")(source)
    number(EXPERT, float("nan"))(source)
    number(QUERY, float("inf"))(source)
    found = [
        r"q_lora_rank is 0",
        r"hidden_act is 'gelu'",
        r"moe_intermediate_size is 'x'",
        rf"{E}: holds",
        rf"{Q}: holds",
    ]
    problems = survey(source).problems
    assert len(problems) == len(found)
    for pattern in found:
        assert any(re.search(pattern, problem) for problem in problems), pattern
