"""Presets are the report's shapes: parameters counted from the modelling code on the meta device."""

import pytest
import torch

from trillion_model import presets
from trillion_model.errors import PresetError
from trillion_model.trillion import Trillion7BForCausalLM
from trillion_model.vaetki import VaetkiForCausalLM


@pytest.mark.parametrize(
    ("name", "total"),
    [
        ("vaetki-100b-a10b", 112_191_900_672),
        ("vaetki-20b-a2b", 19_596_810_240),
        ("vaetki-7b-a1b", 7_250_296_320),
    ],
)
def test_parameter_counts(name, total):
    with torch.device("meta"):
        model = VaetkiForCausalLM(presets.get(name))
    assert sum(p.numel() for p in model.parameters()) == total


@pytest.mark.parametrize(
    ("name", "trained", "published"),
    [("trillion-7b", 7_763_165_184, 7_527_206_912), ("trillion-1.8b", 1_798_782_976, 1_739_786_240)],
)
def test_parameter_counts_with_and_without_the_second_next_token(name, trained, published):
    config = presets.get(name)
    for built, total in ((config, trained), (config.published(), published)):
        with torch.device("meta"):
            model = Trillion7BForCausalLM(built)
        assert sum(p.numel() for p in model.parameters()) == total


def test_the_kv_cache_of_vaetki_stores_576_numbers_a_token_a_layer():
    sizes = {presets.get(name).cached_numbers for name in presets.names() if name.startswith("vaetki")}
    assert sizes == {576}


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(PresetError, match="there is no preset 'vaetki-1t'; choose one of vaetki-100b-a10b"):
        presets.get("vaetki-1t")
