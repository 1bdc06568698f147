"""Presets are the report's shapes: parameters counted from the modelling code on the meta device."""

import pytest
import torch

from trillion_model import presets
from trillion_model.errors import PresetError
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


def test_the_kv_cache_stores_576_numbers_a_token_a_layer():
    assert {presets.get(name).latent_size for name in presets.names()} == {576}


def test_an_unknown_preset_lists_those_there_are():
    with pytest.raises(PresetError, match="there is no preset 'vaetki-1t'; choose one of vaetki-100b-a10b"):
        presets.get("vaetki-1t")
