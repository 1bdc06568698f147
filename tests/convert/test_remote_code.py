"""Modelling files beside a checkpoint: Transformers loads it without our package, to the same logits."""

import ast
import json
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from support import tiny_gravity, tiny_tri70b, tiny_trillion, tiny_vaetki
from support.training_checkpoint import write_training_checkpoint
from trillion_convert.errors import ConvertError
from trillion_convert.export import export, import_checkpoint
from trillion_convert.remote_code import write_remote_code
from trillion_model.architecture import Architecture

IDS = [[5, 9, 300, 41, 7, 8, 250, 11, *range(20, 44)]]
ELSEWHERE = """
import sys

class NoTrillionPackages:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0].startswith("trillion_"):
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)

sys.meta_path.insert(0, NoTrillionPackages())
import torch
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

ids, outcomes = eval(sys.argv[1]), {}
for folder in sys.argv[3:]:
    model = AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True).eval()
    with torch.inference_mode():
        outcomes[folder + " logits"] = model(torch.tensor(ids), use_cache=False).logits
        outcomes[folder + " generated"] = model.generate(torch.tensor(ids), max_new_tokens=4, do_sample=False)
save_file(outcomes, sys.argv[2])
assert not any(name.partition(".")[0].startswith("trillion_") for name in sys.modules)
"""


FAMILIES = {"vaetki": tiny_vaetki, "trillion": tiny_trillion, "tri70b": tiny_tri70b, "gravity": tiny_gravity}


@pytest.fixture(scope="module")
def models(tokenizer):
    return {name: tiny.tiny_model(eos_token_id=tokenizer.eos_token_id).eval() for name, tiny in FAMILIES.items()}


@pytest.fixture(scope="module")
def bundles(models, tokenizer, tmp_path_factory):
    """A published directory with modelling files for every family."""
    root = tmp_path_factory.mktemp("bundles")
    for name, model in models.items():
        (root / f"{name}-trained").mkdir()
        trained = write_training_checkpoint(root / f"{name}-trained", model, tokenizer)
        export(trained, root / name, remote_code=True)
    return root


@pytest.fixture(scope="module")
def outcomes(bundles, tmp_path_factory):
    """What a process without our packages computes with each."""
    folder = tmp_path_factory.mktemp("elsewhere")
    names = [str(bundles / name) for name in FAMILIES]
    result = subprocess.run(
        [sys.executable, "-I", "-c", ELSEWHERE, repr(IDS), str(folder / "outcomes.safetensors"), *names],
        capture_output=True,
        text=True,
        check=False,
        env={"HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"},
    )
    assert result.returncode == 0, result.stderr
    return load_file(folder / "outcomes.safetensors")


@pytest.mark.parametrize("family", FAMILIES)
def test_another_environment_computes_the_same(bundles, models, outcomes, family):
    ids = torch.tensor(IDS)
    with torch.inference_mode():
        logits = models[family](ids, use_cache=False).logits
        generated = models[family].generate(ids, max_new_tokens=4, do_sample=False)
    assert torch.equal(outcomes[f"{bundles / family} logits"], logits)
    assert torch.equal(outcomes[f"{bundles / family} generated"], generated)
    assert not torch.equal(logits, logits.roll(1, dims=1))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_goes_there_and_back_without_a_byte_changed(bundles, tmp_path, family):
    import_checkpoint(bundles / family, tmp_path / "base")
    export(tmp_path / "base", tmp_path / "again")
    one, other = (load_file(folder / "model.safetensors") for folder in (bundles / family, tmp_path / "again"))
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert tensor.dtype is other[name].dtype and torch.equal(tensor, other[name]), name


@pytest.fixture(scope="module")
def bundled(bundles):
    return bundles / "vaetki"


def test_the_configuration_names_the_files(bundled):
    assert json.loads((bundled / "config.json").read_text())["auto_map"] == {
        "AutoConfig": "configuration_vaetki.VaetkiConfig",
        "AutoModel": "modeling_vaetki.VaetkiModel",
        "AutoModelForCausalLM": "modeling_vaetki.VaetkiForCausalLM",
    }
    assert {"configuration_vaetki.py", "modeling_vaetki.py", "layers_moe.py", "vaetki_layout.py"} <= {
        path.name for path in bundled.glob("*.py")
    }


def test_no_file_imports_our_packages_and_none_is_left_out(bundled):
    files = {path.stem for path in bundled.glob("*.py")}
    relative = set()
    for path in bundled.glob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level:
                relative.add(node.module)
            elif isinstance(node, ast.Import | ast.ImportFrom):
                names = [node.module] if isinstance(node, ast.ImportFrom) else [alias.name for alias in node.names]
                assert not any(name.startswith("trillion_") for name in names), path
    assert relative <= files
    assert files - relative == {"modeling_vaetki"}


def test_an_architecture_of_transformers_needs_none(tmp_path):
    from transformers import LlamaConfig

    config = LlamaConfig(
        vocab_size=32, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, head_dim=8
    )
    with pytest.raises(ConvertError, match="Transformers has llama itself, so it needs no modelling files"):
        write_remote_code(Architecture.of(config), tmp_path)
    assert list(tmp_path.iterdir()) == []
