"""Every family keeps the contract of docs/adding-a-model.md, and that page lists every family."""

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from trillion_model import FAMILIES, presets
from trillion_model.architecture import Architecture, is_ours
from trillion_model.configuration import FamilyConfig
from trillion_serve.plugins.vllm import MODULES

PAGE = (Path(__file__).parents[2] / "docs" / "adding-a-model.md").read_text(encoding="utf-8")


def config_of(folder: str) -> type[FamilyConfig]:
    return getattr(import_module(f"trillion_model.{folder}"), f"{FAMILIES[folder]}Config")


@pytest.mark.parametrize("folder", FAMILIES)
def test_the_page_lists_the_family(folder):
    config = config_of(folder)
    names = [f"`{name}`" for name in presets.names() if type(presets.get(name)) is config]
    cells = [f"`{folder}`", f"`{FAMILIES[folder]}`", f"`{config.model_type}`", ", ".join(names), f"`{MODULES[folder]}`"]
    assert f"| {' | '.join(cells)} |\n" in PAGE


@pytest.mark.parametrize("name", presets.names())
def test_a_preset_says_what_sizes_and_caches_need(name):
    config = presets.get(name)
    assert isinstance(config, FamilyConfig) and is_ours(type(config))
    local = [config.is_local(layer) for layer in range(config.num_hidden_layers)]
    assert config.cached_numbers > 0
    assert not any(local) or config.sliding_window > 0


def differs_when_published(name: str) -> bool:
    config = presets.get(name)
    return any(getattr(config, field) != getattr(config.published(), field) for field in config.architecture_fields)


@pytest.mark.parametrize("name", list(filter(differs_when_published, presets.names())))
def test_the_published_configuration_calls_for_the_tensors_that_an_export_has(name):
    trained, published = (Architecture.of(config) for config in (presets.get(name), presets.get(name).published()))
    assert published.module_shapes != trained.module_shapes
    assert published.published_shapes() == trained.published_shapes()


@pytest.mark.parametrize("folder", FAMILIES)
def test_importing_the_folder_imports_no_torch(folder):
    code = f"import sys, trillion_model.{folder}; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
