"""The index leads out of the directory, nowhere, or to other tensors than the shards hold."""

from pathlib import Path

import pytest
from safetensors.torch import save_file

from support.corruptions import (
    HEAD,
    INDEX,
    WEIGHTS,
    content,
    copied_to_another_shard,
    gone,
    index,
    json_file,
    linked_out,
    replaced,
    text,
)
from support.refused import H, Row, assert_refused, rows

TABLE = {
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
}


@pytest.mark.parametrize(("row", "turn"), rows(TABLE))
def test_refused(row, turn, good, tmp_path):
    assert_refused(row, turn, good, tmp_path)
