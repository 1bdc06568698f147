"""Sizes: exact for every preset, and equal to what a directory holds."""

import json

import pytest

from trillion_convert.inspection import inspect_model, render
from trillion_model import presets
from trillion_model.errors import PresetError
from trillion_model.sizes import KvCache

TOTAL_ACTIVE_AND_WITHOUT_EMBEDDINGS = {
    "vaetki-100b-a10b": (112_191_900_672, 10_270_313_472, 9_848_785_920),
    "vaetki-20b-a2b": (19_596_810_240, 2_232_391_680, 1_951_373_312),
    "vaetki-7b-a1b": (7_250_296_320, 1_247_362_560, 1_036_598_784),
}


def figures(model: str) -> dict:
    return json.loads(inspect_model(model).to_json())


@pytest.mark.parametrize(("name", "counts"), TOTAL_ACTIVE_AND_WITHOUT_EMBEDDINGS.items())
def test_counts_of_the_published_models(name, counts):
    found = figures(name)
    assert (found["total"], found["active"], found["active_without_embeddings"]) == counts
    assert found["weight_bytes"]["bfloat16"] == 2 * counts[0]


@pytest.mark.parametrize("name", presets.names())
def test_parts_add_up_and_every_tensor_has_one(name):
    parameters, config = inspect_model(name).parameters, presets.get(name)
    experts = {"router", "routed experts", "shared experts"} if hasattr(config, "n_routed_experts") else set()
    trained = {"second next token"} if getattr(config, "num_nextn_predict_layers", 0) else set()
    dense = {"norms", "embeddings", "attention", "dense feed-forward", "head"}
    assert set(parameters.total) == dense | experts | trained
    assert parameters.total["embeddings"] == parameters.total["head"] == config.vocab_size * config.hidden_size
    if experts:
        total, active = (counts["routed experts"] for counts in (parameters.total, parameters.active))
        assert active * config.n_routed_experts == total * config.num_experts_per_tok


def test_parts_of_the_100b_model_by_hand():
    total = inspect_model("vaetki-100b-a10b").parameters.total
    assert total["router"] == 45 * 128 * 3072
    assert total["routed experts"] == 45 * 128 * 3 * 2048 * 3072
    assert total["shared experts"] == 45 * 3 * 2048 * 3072
    assert total["dense feed-forward"] == 3 * 3 * 18_432 * 3072
    assert total["norms"] == 48 * (4 * 3072 + 1536 + 512) + 3072
    assert total["attention"] == 48 * (3072 * 1536 + 1536 * 24 * 192 + 3072 * 576 + 512 * 24 * 256 + 24 * 128 * 3072)


def test_kv_cache_of_the_100b_model():
    found = figures("vaetki-100b-a10b")
    assert found["kv_bytes_per_token"]["bfloat16"] == {"layer": 1152, "local": 40 * 1152, "global": 8 * 1152}
    assert found["kv_bytes_per_request"]["bfloat16"] == 1152 * (8 * 32_768 + 40 * 512)


def test_a_request_inside_the_window_needs_no_more_than_its_tokens():
    cache = KvCache(numbers=576, local_layers=5, global_layers=1, window=64)
    assert cache.bytes_per_request("float32", 10) == 6 * 10 * 576 * 4
    assert cache.bytes_per_request("float32", 100) == (5 * 64 + 100) * 576 * 4


def test_a_directory_has_the_sizes_of_its_model(trained, exported, model):
    count = sum(p.numel() for p in model.parameters())
    for folder in (trained, exported):
        found = figures(str(folder))
        assert found["total"] == count
        assert found["stored"] == {"float32": 4 * count}
    assert figures("vaetki-nano")["stored"] is None


@pytest.mark.parametrize("name", presets.names())
def test_no_figure_is_cut_where_lines_are_short(name, monkeypatch, capsys):
    monkeypatch.setenv("COLUMNS", "80")
    found = inspect_model(name)
    render(found)
    out = capsys.readouterr().out
    request = found.cache.bytes_per_request("float32", found.context)
    for count in (*found.parameters.total.values(), 4 * sum(found.parameters.total.values()), request):
        assert f"{count:,} " in out
    assert f"KV, a request of {found.context:,} tokens" in out and "…" not in out
    assert max(map(len, out.splitlines())) <= 80


def test_neither_preset_nor_directory():
    with pytest.raises(PresetError, match="there is no preset 'vaetki-9b'; choose one of vaetki-100b-a10b"):
        inspect_model("vaetki-9b")
